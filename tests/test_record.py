import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

import fashionmnist
from experiments import record
from fashion import cli, plots
from fashion.checkpoint import load_weights, save_tensors
from fashion.data import FASHION_MNIST, load_dataset
from fashion.evaluation import predict_logits
from fashion.files import UsageError
from fashion.layers import count_parameters
from fashion.runs import find_run, save_run, score
from fashion.training import Trainer
from models import MODELS

BEST_RECIPES = dict(record.BEST_RECIPES)  # before the small networks replace them
SMALL = {
    "ffn": {"widths": (32, 24, 16, 12)},
    "cnn": {"channels": (4, 4, 4), "widths": (16, 12)},
}
SMALL_TEACHER = {"channels": (4, 4, 4), "depth": 1}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Train small networks for two epochs of some steps, and two teachers instead of three."""
    for name, recipe in record.BEST_RECIPES.items():
        small = replace(recipe, model=SMALL[name], epochs=2, batch_size=50)
        monkeypatch.setitem(record.BEST_RECIPES, name, small)
    small = replace(record.TEACHER_RECIPE, model=SMALL_TEACHER, epochs=2, batch_size=50)
    monkeypatch.setattr(record, "TEACHER_RECIPE", small)
    monkeypatch.setattr(record, "TEACHERS", 2)


@pytest.fixture
def dataset(small_folder):
    return load_dataset(FASHION_MNIST, small_folder)


@pytest.fixture
def options(small_folder):
    return ["--dataset", FASHION_MNIST, "--data-dir", str(small_folder), "--device", "cpu"]


@pytest.fixture
def arguments(options, tmp_path):
    return record.parse_arguments([*options, "--out", str(tmp_path / "out")])


@pytest.fixture
def run(options):
    """Run the script on the small files: run(option, value, ...) returns the exit status."""

    def run_script(*more):
        argv = [str(each) for each in (*options, *more)]
        return cli.run(record.parse_arguments, record.main, argv)

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


@pytest.fixture
def mixture(dataset):
    pictures = record.ROUNDS * 18
    return record.draw_mixture(len(dataset.images), dataset.train_indices, pictures)


def make_trainer(dataset, mixture, table):
    settings = MODELS["ffn"], dataset, record.BEST_RECIPES["ffn"], 0, torch.float32
    return record.MixTrainer(*settings, mixture=mixture, table=table)


def read_json(path):
    return json.loads(path.read_text())


# Pictures


def test_half_of_the_pictures_are_mixed_with_training_images(dataset, mixture):
    top, left, bottom, right = mixture.boxes.int().unbind(2)
    area = (bottom - top) * (right - left)
    mixed = area > 0
    assert mixed.float().mean().item() == pytest.approx(record.MIXED_SHARE, abs=0.02)
    # Boxes are uniform in area before a part of some falls outside of the image.
    assert 0.2 < (area[mixed] / 784).mean().item() < 0.5
    assert set(mixture.partners.unique().tolist()) == set(dataset.train_indices.tolist())


def test_box_of_the_partner_covers_the_image():
    images, others = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.ones(2, 28, 28).byte()
    boxes = torch.tensor([[2, 3, 5, 10], [4, 4, 4, 4]], dtype=torch.uint8)
    mixed = record.cover(images, others, boxes)
    assert mixed[0, 2:5, 3:10].all() and mixed.sum() == 3 * 7


def test_labels_have_the_shares_of_the_visible_areas(dataset, mixture):
    labels = mixture.mix_labels(dataset.labels)
    assert labels.shape == (len(dataset.labels), record.ROUNDS * 18, 10)
    torch.testing.assert_close(
        labels.float().sum(2), torch.ones(labels.shape[:2]), atol=2e-3, rtol=0
    )
    image, number = (mixture.boxes[..., 2] > 0).nonzero()[0].tolist()
    size = torch.zeros(1, 28, 28)
    covered = record.cover(size, size + 1, mixture.boxes[image, number][None]).mean()
    expected = torch.zeros(10)
    expected[dataset.labels[image]] += 1 - covered
    expected[dataset.labels[mixture.partners[image, number]]] += covered
    torch.testing.assert_close(labels[image, number].float(), expected, atol=1e-3, rtol=0)


def test_pictures_are_mixed_views(dataset, mixture):
    trainer = make_trainer(dataset, mixture, mixture.mix_labels(dataset.labels))
    unchanged = 18 + 8  # in the second round, the view without shift and mirroring
    index = dataset.train_indices[:1]
    picture = trainer.draw(index, torch.tensor([unchanged]))
    partner = mixture.partners[index, unchanged].long()
    images, others = dataset.images[index], dataset.images[partner]
    expected = record.cover(images, others, mixture.boxes[index, unchanged])
    assert picture.equal(expected)


def test_an_image_shows_all_its_pictures_before_it_repeats_one(dataset, mixture):
    trainer = make_trainer(dataset, mixture, mixture.mix_labels(dataset.labels))
    index, count = dataset.train_indices[:5], record.ROUNDS * 18
    seen = []
    for epoch in range(count):
        trainer.history = [{}] * epoch
        seen.append(trainer.choose_views(index))
    assert (torch.stack(seen).sort(0).values == torch.arange(count)[:, None]).all()


# Teachers


def test_table_is_the_mean_of_the_teachers_for_the_pictures_shown(
    dataset, arguments, mixture, trained
):
    table = record.teach(arguments, dataset, mixture, torch.float32)
    assert [type(trainer.model) for trainer in trained] == [record.Teacher] * 2
    student = make_trainer(dataset, mixture, table)
    images, labels = next(student.batches())
    logits = torch.randn(len(images), 10)
    teachers = torch.stack(
        [
            predict_logits(each.averaged, images, dataset.mean, dataset.std).softmax(1)
            for each in trained
        ]
    ).mean(0)
    expected = -(teachers * logits.log_softmax(1)).sum(1).mean()
    assert student.loss(logits, images, labels).item() == pytest.approx(expected.item(), rel=1e-3)
    held_out = dataset.validation_indices
    assert not table[held_out].any()


def test_teachers_learn_the_mixed_labels(dataset, arguments, mixture, trained):
    record.teach(arguments, dataset, mixture, torch.float32)
    assert trained[0].table.equal(mixture.mix_labels(dataset.labels))
    assert [trainer.seed for trainer in trained] == [0, 1]


def test_state_and_runs_with_other_targets_are_rejected(dataset, mixture, tmp_path):
    labels = mixture.mix_labels(dataset.labels)
    student = make_trainer(dataset, mixture, labels)
    while not student.finished:
        student.train_epoch()
    student.save(tmp_path / "resume.pt")
    save_run(tmp_path, score(student, "ffn"))
    untaught = Trainer(MODELS["ffn"], dataset, student.recipe, 0, torch.float32)
    for other in (untaught, make_trainer(dataset, mixture, labels / 2)):
        with pytest.raises(UsageError, match=f"targets {student.fingerprint}"):
            other.resume(tmp_path / "resume.pt")
        with pytest.raises(UsageError, match=f"targets {student.fingerprint}"):
            find_run(tmp_path, "ffn", other)


def test_damaged_stages_and_those_of_other_settings_are_rejected(
    run, tmp_path, monkeypatch, capsys, no_pictures
):
    folder = tmp_path / "out" / record.TEACHER_FOLDER
    assert run("--out", tmp_path / "out") == 0
    for name in ("teacher1", "predictions"):
        path = folder / f"{name}.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert run("--out", tmp_path / "out") == 2
        assert f"{path} is damaged" in capsys.readouterr().err
        path.write_bytes(content)
    changed = replace(record.TEACHER_RECIPE, learning_rate=0.5)
    monkeypatch.setattr(record, "TEACHER_RECIPE", changed)
    assert run("--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "teacher0.safetensors was made with other settings or data: remove it" in error


@pytest.mark.parametrize("broken", [torch.full((2,), torch.nan), torch.zeros(3)])
def test_stage_with_other_tensors_is_rejected(tmp_path, broken):
    path = tmp_path / "stage.safetensors"
    save_tensors(path, {"a": broken}, {"identity": {}})
    with pytest.raises(UsageError, match=r"stage.safetensors is damaged: remove it"):
        record.load_stage(path, {}, {"a": torch.zeros(2)})


# The script


def test_both_models_are_taught_and_compared(run, tmp_path, monkeypatch):
    for slow in ("draw_predictions", "draw_confusion"):
        monkeypatch.setattr(plots, slow, lambda *_: Figure())
    out = tmp_path / "out"
    assert run("--out", out) == 0
    kinds = ("loss", "correct", "incorrect", "confusion")
    pictures = {f"{name}_{kind}.png" for name in SMALL for kind in kinds}
    files = {path.name for path in out.iterdir() if path.suffix in (".png", ".json")}
    assert files == {"metrics.json", "comparison.png", *pictures}
    metadata = [
        load_weights(out / f"{name}.safetensors", network).metadata
        for name, network in MODELS.items()
    ]
    assert metadata[0]["targets"] == metadata[1]["targets"]


def test_finished_stages_and_runs_are_not_repeated(run, tmp_path, trained, no_pictures, capsys):
    options = ["--models", "ffn", "--out", tmp_path / "out"]
    assert run(*options) == 0
    history = read_json(tmp_path / "out" / "metrics.json")["models"]["ffn"]["history"]
    assert [trainer.network for trainer in trained] == [record.Teacher] * 2 + [MODELS["ffn"]]
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
    histories = [
        read_json(tmp_path / folder / "metrics.json")["models"]["ffn"]["history"]
        for folder in ("whole", "out")
    ]
    assert histories[0] == histories[1]


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


@pytest.mark.parametrize("name", list(MODELS))
def test_students_and_teachers_train_on_the_same_pictures(name):
    for setting, value in record.SHOWN.items():
        assert getattr(BEST_RECIPES[name], setting) == value
        assert getattr(record.TEACHER_RECIPE, setting) == value


def test_teacher_pools_all_but_the_last_maps():
    teacher = record.Teacher()
    maps = []
    for layer in teacher.layers:
        layer.register_forward_hook(lambda *args: maps.append(args[2].shape[1:]))
    teacher(torch.zeros(2, 1, 28, 28))
    assert [shape[-1] for shape in maps if len(shape) == 3] == [28] * 3 + [14] * 4 + [7] * 4 + [1]
    assert count_parameters(teacher) == 1_922_762
