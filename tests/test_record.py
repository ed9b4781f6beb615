import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

import fashionmnist
from experiments import record
from fashion import cli, plots
from fashion.checkpoint import load_weights
from fashion.data import FASHION_MNIST, load_dataset
from fashion.evaluation import predict_logits
from fashion.files import UsageError
from fashion.layers import count_parameters
from fashion.runs import find_run, save_run, score
from fashion.training import Trainer
from models import MODELS

BEST_RECIPES = dict(record.BEST_RECIPES)  # before the small networks replace them
TEACHER_RECIPE = record.TEACHER_RECIPE
SMALL = {
    "ffn": {"widths": (32, 24, 16, 12)},
    "cnn": {"channels": (4, 4, 4), "widths": (16, 12)},
}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Train small networks for two epochs of some steps, and two teachers instead of five."""
    for name, recipe in record.BEST_RECIPES.items():
        small = replace(recipe, model=SMALL[name], epochs=2, batch_size=50)
        monkeypatch.setitem(record.BEST_RECIPES, name, small)
    small = replace(record.TEACHER_RECIPE, model=SMALL["cnn"], epochs=2, batch_size=50)
    monkeypatch.setattr(record, "TEACHER_RECIPE", small)
    monkeypatch.setattr(record, "FOLDS", 2)


@pytest.fixture
def dataset(small_folder):
    return load_dataset(FASHION_MNIST, small_folder)


@pytest.fixture
def arguments(small_folder, tmp_path):
    folders = ["--data-dir", str(small_folder), "--out", str(tmp_path / "out")]
    return record.parse_arguments(["--dataset", FASHION_MNIST, *folders])


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


@pytest.fixture
def trained(monkeypatch):
    """The trainers that are trained in this test, in order."""
    trainers = []

    def train(trainer, *arguments):
        trainers.append(trainer)
        return train_one(trainer, *arguments)

    train_one = fashionmnist.train
    monkeypatch.setattr(fashionmnist, "train", train)
    return trainers


def make_student(dataset, fingerprint="a"):
    """Return a student of an FFN's recipe whose table favours class 3 more with every view."""
    table = torch.full((len(dataset.labels), 18, 10), 0.01)
    table[:, :, 3] += torch.arange(18) / 100
    table = (table / table.sum(2, keepdim=True)).half()
    settings = MODELS["ffn"], dataset, record.BEST_RECIPES["ffn"], 0, torch.float32
    return record.Student(*settings, table=table, fingerprint=fingerprint)


def read_json(path):
    return json.loads(path.read_text())


def test_each_image_is_judged_by_the_teacher_that_has_not_seen_it(dataset, arguments, trained):
    table = record.teach(arguments, dataset, torch.float32)
    assert table.shape == (len(dataset.labels), 18, 10)
    folds = record.fold_numbers(len(dataset.labels))
    assert folds.bincount().tolist() == [len(folds) // 2] * 2
    assert [type(trainer.model) for trainer in trained] == [record.Teacher] * 2
    for fold, trainer in enumerate(trained):
        seen = trainer.dataset.train_indices
        assert set(seen.tolist()) < set(dataset.train_indices.tolist())
        assert (folds[seen] != fold).all()
        mine = folds == fold
        images = dataset.images[mine]
        for view, changed in ((record.UNCHANGED, images), (record.UNCHANGED + 1, images.flip(2))):
            logits = predict_logits(trainer.averaged, changed, dataset.mean, dataset.std)
            torch.testing.assert_close(table[mine, view].float(), logits, atol=2e-3, rtol=2e-3)


def test_student_learns_from_what_the_teacher_said_of_the_view_that_it_is_shown(
    dataset, arguments, trained
):
    table = record.teach(arguments, dataset, torch.float32).float().softmax(2)
    settings = MODELS["ffn"], dataset, record.BEST_RECIPES["ffn"], 0, torch.float32
    student = record.Student(*settings, table=table, fingerprint="a")
    folds = record.fold_numbers(len(dataset.labels))
    asked = []

    def remember(self, indices):
        asked.append(indices)
        return choose_views(self, indices)

    choose_views = record.Student.choose_views
    student.choose_views = remember.__get__(student)
    images, labels = next(student.batches())
    logits = torch.randn(len(images), 10)
    teachers = torch.stack(
        [predict_logits(each.averaged, images, dataset.mean, dataset.std) for each in trained]
    ).softmax(2)
    targets = teachers[folds[asked[0]], torch.arange(len(images))]
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert student.loss(logits, images, labels).item() == pytest.approx(expected.item(), rel=1e-3)


def test_state_and_runs_of_another_teacher_are_rejected(dataset, tmp_path):
    student = make_student(dataset)
    while not student.finished:
        student.train_epoch()
    student.save(tmp_path / "resume.pt")
    save_run(tmp_path, score(student, "ffn"))
    untaught = Trainer(MODELS["ffn"], dataset, student.recipe, 0, torch.float32)
    for other in (untaught, make_student(dataset, "b")):
        with pytest.raises(UsageError, match="teacher a"):
            other.resume(tmp_path / "resume.pt")
        with pytest.raises(UsageError, match="teacher a"):
            find_run(tmp_path, "ffn", other)


def test_ffn_is_taught_and_both_models_are_compared(run, tmp_path, monkeypatch, capsys):
    for slow in ("draw_predictions", "draw_confusion"):
        monkeypatch.setattr(plots, slow, lambda *_: Figure())
    out = tmp_path / "out"
    assert run("--out", out) == 0
    assert "of the 120 images left out correctly." in capsys.readouterr().out
    kinds = ("loss", "correct", "incorrect", "confusion")
    pictures = {f"{name}_{kind}.png" for name in SMALL for kind in kinds}
    files = {path.name for path in out.iterdir() if path.suffix in (".png", ".json")}
    assert files == {"metrics.json", "comparison.png", *pictures}
    settings = read_json(out / "metrics.json")["settings"]
    for name, network in MODELS.items():
        metadata = load_weights(out / f"{name}.safetensors", network).metadata
        assert metadata.get("teacher") == (settings["teacher"] if name == "ffn" else None)
        assert settings["recipes"][name]["optimizer"] == "muon"


def test_finished_teachers_and_runs_are_not_repeated(run, tmp_path, trained, no_pictures, capsys):
    options = ["--models", "ffn", "--out", tmp_path / "out"]
    assert run(*options) == 0
    history = read_json(tmp_path / "out" / "metrics.json")["models"]["ffn"]["history"]
    assert [type(trainer) for trainer in trained] == [Trainer, Trainer, record.Student]
    trained.clear()
    assert run(*options, "--runs", 3) == 0
    assert [trainer.seed for trainer in trained] == [1, 2]
    assert "Seeds 0, 1, 2 on Fashion-MNIST" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "metrics.json")["models"]["ffn"]["history"] == history


@pytest.mark.parametrize("interrupted", ["teachers/teacher1", "runs/ffn-seed0"])
def test_interrupted_training_resumes_to_the_same_history(
    run, tmp_path, monkeypatch, capsys, no_pictures, interrupted
):
    options = ["--models", "ffn", "--out"]
    assert run(*options, tmp_path / "whole") == 0
    state_path = tmp_path / "out" / f"{interrupted}.resume.pt"

    def save_and_interrupt(trainer, path):
        save(trainer, path)
        if path == state_path:
            raise KeyboardInterrupt

    save = Trainer.save
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_interrupt)
        assert run(*options, tmp_path / "out") == cli.INTERRUPTED
    assert "--resume" in capsys.readouterr().err
    assert state_path.exists()
    assert run(*options, tmp_path / "out") == 2
    assert f"{state_path} holds 1 of 2 epochs" in capsys.readouterr().err
    assert run(*options, tmp_path / "out", "--resume") == 0
    assert f"resumed from {state_path} after epoch 1 of 2" in capsys.readouterr().out
    assert not state_path.exists()
    whole, resumed = (read_json(tmp_path / folder / "metrics.json") for folder in ("whole", "out"))
    assert resumed["settings"]["teacher"] == whole["settings"]["teacher"]
    assert resumed["models"]["ffn"]["history"] == whole["models"]["ffn"]["history"]


def test_teacher_with_other_settings_or_damage_is_rejected(
    dataset, arguments, run, tmp_path, monkeypatch, capsys
):
    record.teach(arguments, dataset, torch.float32)
    path = tmp_path / "out" / "teachers" / "teacher1.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert run("--out", tmp_path / "out") == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    path.write_bytes(content)
    changed = replace(record.TEACHER_RECIPE, learning_rate=0.5)
    monkeypatch.setattr(record, "TEACHER_RECIPE", changed)
    assert run("--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a teacher with other settings; choose another folder with --out" in error


def test_invalid_argument_is_rejected(run, capsys):
    assert run("--runs", 0) == 2
    error = capsys.readouterr().err
    assert "--runs" in error and "see python -m experiments.record --help" in error


def test_summary_trains_nothing(run, tmp_path, trained, capsys):
    assert run("--summary", "--out", tmp_path / "out") == 0
    assert "CNN" in capsys.readouterr().out
    assert not trained and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(MODELS))
def test_best_recipes_build_larger_networks_of_the_same_layers(name):
    plain, best = MODELS[name](), MODELS[name](**BEST_RECIPES[name].model)
    assert count_parameters(best) > count_parameters(plain)
    assert [type(layer) for layer in best.modules()] == [type(layer) for layer in plain.modules()]


def test_cnn_needs_no_teachers(run, tmp_path, trained, no_pictures):
    out = tmp_path / "out"
    assert run("--models", "cnn", "--out", out) == 0
    assert [type(trainer) for trainer in trained] == [Trainer]
    assert trained[0].recipe.cutout == BEST_RECIPES["cnn"].cutout > 0
    assert not (out / record.TEACHER_FOLDER).exists()


def test_students_are_shown_the_views_that_the_teachers_judge():
    recipe = BEST_RECIPES[record.TAUGHT_MODEL]
    assert (recipe.shift, recipe.flip) == (TEACHER_RECIPE.shift, TEACHER_RECIPE.flip)
    assert recipe.shifted == 1
