import hashlib
import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

import fashionmnist
from experiments import record
from fashion import cli, plots
from fashion.checkpoint import load_weights
from fashion.data import FASHION_MNIST, load_dataset, normalize
from fashion.files import UsageError
from fashion.layers import count_parameters
from fashion.runs import find_run, save_run, save_weights, score
from fashion.training import Trainer
from models import MODELS

BEST_RECIPES = dict(record.BEST_RECIPES)  # before the small networks replace them
SMALL = {
    "ffn": {"widths": (32, 24, 16, 12)},
    "cnn": {"channels": (4, 4, 4), "widths": (16, 12)},
}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Train small networks for two epochs of four steps."""
    for name, recipe in record.BEST_RECIPES.items():
        small = replace(recipe, model=SMALL[name], epochs=2, batch_size=50)
        monkeypatch.setitem(record.BEST_RECIPES, name, small)


@pytest.fixture
def dataset(small_folder):
    return load_dataset(FASHION_MNIST, small_folder)


@pytest.fixture
def teacher_path(dataset, tmp_path):
    """A trained CNN and, in another file, a trained FFN."""
    for name in ("ffn", "cnn"):
        trainer = Trainer(MODELS[name], dataset, record.BEST_RECIPES[name], 7, torch.float32)
        while not trainer.finished:
            trainer.train_epoch()
        save_weights(tmp_path / f"{name}.safetensors", score(trainer, name))
    return tmp_path / "cnn.safetensors"


@pytest.fixture
def run(small_folder):
    """Run the script on the small files: run(option, value, ...) returns the exit status."""

    def run_script(*options):
        argv = ["--dataset", FASHION_MNIST, "--data-dir", small_folder, *options]
        return cli.run(record.parse_arguments, record.main, [str(each) for each in argv])

    return run_script


@pytest.fixture
def no_pictures(monkeypatch):
    """Draw nothing, which takes longer than the trainings."""
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: None)


def make_taught(dataset, path, fingerprint="a", **changes):
    teacher = load_weights(path, MODELS["cnn"])
    recipe = replace(record.BEST_RECIPES["ffn"], **changes)
    settings = MODELS["ffn"], dataset, recipe, 0, torch.float32
    return record.DistilledTrainer(*settings, teacher=teacher, fingerprint=fingerprint)


def read_json(path):
    return json.loads(path.read_text())


def test_loss_is_the_cross_entropy_with_the_teachers_probabilities(dataset, teacher_path):
    trainer = make_taught(dataset, teacher_path, label_smoothing=0.5)
    # The teacher's own pixel statistics apply.
    trainer.teacher = replace(trainer.teacher, mean=0.1, std=0.7)
    images, logits = dataset.images[:20], torch.randn(20, 10)
    with torch.no_grad():
        targets = trainer.teacher.model(normalize(images, 0.1, 0.7)).softmax(1)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    for labels in (dataset.labels[:20], dataset.labels[20:40]):
        assert trainer.loss(logits, images, labels).item() == pytest.approx(expected.item())


def test_state_and_runs_of_another_teacher_are_rejected(dataset, teacher_path, tmp_path):
    taught = make_taught(dataset, teacher_path)
    while not taught.finished:
        taught.train_epoch()
    taught.save(tmp_path / "resume.pt")
    save_run(tmp_path, score(taught, "ffn"))
    untaught = Trainer(MODELS["ffn"], dataset, taught.recipe, 0, torch.float32)
    for other in (untaught, make_taught(dataset, teacher_path, "b")):
        with pytest.raises(UsageError, match="teacher a"):
            other.resume(tmp_path / "resume.pt")
        with pytest.raises(UsageError, match="teacher a"):
            find_run(tmp_path, "ffn", other)


def test_both_models_are_taught_and_compared(run, teacher_path, tmp_path, monkeypatch):
    for slow in ("draw_predictions", "draw_confusion"):
        monkeypatch.setattr(plots, slow, lambda *_: Figure())
    out = tmp_path / "out"
    assert run("--teacher", teacher_path, "--epochs", 1, "--out", out) == 0
    kinds = ("loss", "correct", "incorrect", "confusion")
    pictures = {f"{name}_{kind}.png" for name in SMALL for kind in kinds}
    files = {path.name for path in out.iterdir() if path.suffix in (".png", ".json")}
    assert files == {"metrics.json", "comparison.png", *pictures}
    settings = read_json(out / "metrics.json")["settings"]
    assert settings["teacher"] == str(teacher_path)
    for name, network in MODELS.items():
        metadata = load_weights(out / f"{name}.safetensors", network).metadata
        assert metadata["teacher"] == hashlib.md5(teacher_path.read_bytes()).hexdigest()
        assert settings["recipes"][name]["optimizer"] == "muon"


def test_finished_runs_of_a_series_are_not_repeated(
    run, tmp_path, monkeypatch, capsys, no_pictures
):
    options = ["--models", "ffn", "--out", tmp_path / "out"]
    assert run(*options) == 0
    history = read_json(tmp_path / "out" / "metrics.json")["models"]["ffn"]["history"]
    trained = []

    def train(trainer, *arguments):
        trained.append(trainer.seed)
        return train_one(trainer, *arguments)

    train_one = fashionmnist.train
    monkeypatch.setattr(fashionmnist, "train", train)
    assert run(*options, "--runs", 3) == 0
    assert trained == [1, 2]
    assert "Seeds 0, 1, 2 on Fashion-MNIST" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "metrics.json")["models"]["ffn"]["history"] == history


def test_interrupted_run_resumes_to_the_same_history(
    run, tmp_path, monkeypatch, capsys, no_pictures
):
    options = ["--models", "ffn", "--epochs", 3, "--out"]
    assert run(*options, tmp_path / "whole") == 0

    def save_and_interrupt(trainer, path):
        save(trainer, path)
        raise KeyboardInterrupt

    save = Trainer.save
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_interrupt)
        assert run(*options, tmp_path / "out") == cli.INTERRUPTED
    assert "--resume" in capsys.readouterr().err
    resume_path = tmp_path / "out" / "runs" / "ffn-seed0.resume.pt"
    assert resume_path.exists()
    assert run(*options, tmp_path / "out", "--resume") == 0
    assert f"resumed from {resume_path} after epoch 1 of 3" in capsys.readouterr().out
    assert not resume_path.exists()
    whole, resumed = (
        read_json(tmp_path / folder / "metrics.json")["models"]["ffn"]
        for folder in ("whole", "out")
    )
    assert resumed["history"] == whole["history"]


@pytest.mark.parametrize(
    ("file", "message"), [("none", "does not exist"), ("ffn", "holds a model of class FFN")]
)
def test_invalid_teacher_is_rejected_before_anything_is_written(
    run, teacher_path, tmp_path, capsys, file, message
):
    path = teacher_path.with_stem(file)
    assert run("--teacher", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and "--teacher needs the weights of a CNN" in error
    assert not (tmp_path / "out").exists()


def test_invalid_argument_is_rejected(run, capsys):
    assert run("--runs", 0) == 2
    error = capsys.readouterr().err
    assert "--runs" in error and "see python -m experiments.record --help" in error


@pytest.mark.parametrize("name", list(MODELS))
def test_best_recipes_build_larger_networks_of_the_same_layers(name):
    plain, best = MODELS[name](), MODELS[name](**BEST_RECIPES[name].model)
    assert count_parameters(best) > count_parameters(plain)
    assert [type(layer) for layer in best.modules()] == [type(layer) for layer in plain.modules()]


def test_teacher_trained_on_other_data_is_rejected(run, trained_folder, tmp_path, capsys):
    teacher = trained_folder / "cnn.safetensors"
    assert run("--teacher", teacher, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was trained on drawn stand-in, not Fashion-MNIST, not on Fashion-MNIST" in error
