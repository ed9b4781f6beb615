from dataclasses import replace

from fashion import report, runs, script
from fashion.data import Views, normalize
from fashion.evaluation import predict

import pytest
import torch
import torch.nn.functional as F

from experiments import record, shared
from models import MODELS


@pytest.fixture(autouse=True)
def small_recipes(monkeypatch):
    """One teacher, and small networks that are trained for two epochs."""
    common = {"epochs": 2, "batch_size": 50}
    models = {"ffn": {"widths": (32, 16)}, "cnn": {"channels": (4, 4, 4), "widths": (16,)}}
    for name, model in models.items():
        recipe = replace(record.STUDENTS[name], model=model | {"dropout": 0}, **common)
        monkeypatch.setitem(record.STUDENTS, name, recipe)
    teacher = replace(record.TEACHER, model={"channels": (4, 4, 4), "depth": 1}, **common)
    monkeypatch.setattr(record, "TEACHER", teacher)
    monkeypatch.setattr(record, "TEACHERS", 1)


@pytest.fixture(scope="module")
def few(tiny):
    """The dataset with 100 images to train on and 50 to validate."""
    return replace(tiny, train=tiny.train[:100], validation=tiny.validation[:50])


def test_half_of_the_images_have_a_box_of_the_one_before_and_its_share_of_the_label():
    labels = torch.arange(3000) % 10
    grey = labels.byte()[:, None, None].expand(-1, 28, 28)  # each pixel shows its class
    images, shares = record.mix(grey, labels)
    counts = F.one_hot(images.long().flatten(1), 10).sum(1)
    torch.testing.assert_close(shares, counts / 784)
    other = images != grey
    mixed = other.any(2).any(1)
    assert mixed.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.2 < other[mixed].float().mean().item() < 0.5  # 0.5 without what lies outside
    assert images[other].equal(grey.roll(1, 0)[other])
    assert other.equal(other.any(2)[:, :, None] & other.any(1)[:, None, :])  # a rectangle


@pytest.mark.parametrize("count", [0, 2])
def test_loss_is_the_cross_entropy_with_the_mean_of_the_teachers(count, few, tmp_path):
    teachers = [
        record.train("teacher", record.TEACHER, seed, few, tmp_path, []) for seed in range(count)
    ]
    recipe = replace(record.STUDENTS["ffn"], epochs=1, batch_size=100)
    run = record.train("ffn", recipe, 3, few, tmp_path, teachers)  # a single step
    torch.manual_seed(3)
    model, views = MODELS["ffn"].network(**recipe.model), Views(few.images, recipe)
    torch.manual_seed(30_001)
    chosen = few.train[torch.randperm(100)]
    images, target = record.mix(views.show(chosen, 0), few.labels[chosen])
    if teachers:
        taught = [predict(teacher.model, images, few.mean, few.std) for teacher in teachers]
        target = sum(logits.softmax(1) for logits in taught) / 2
    loss = F.cross_entropy(model(normalize(images, few.mean, few.std)), target)
    assert run.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-3)


def test_interrupted_experiment_continues_to_the_same_weights(few, tmp_path, monkeypatch, call):
    def interrupt(run, *optimizers):
        save(run, *optimizers)
        if run.name == "cnn" and not interrupted:
            interrupted.append(run)
            raise KeyboardInterrupt

    monkeypatch.setattr(shared, "load", lambda *_: few)
    monkeypatch.setattr(report, "write_network", lambda *_: None)  # has tests of its own
    monkeypatch.setattr(report, "write_results", lambda _, series, *__: results.append(series))
    save, results, interrupted, printed = runs.save, [], [], ""
    monkeypatch.setattr(runs, "save", interrupt)
    for folder, status in (("parts", script.INTERRUPTED), ("parts", 0), ("whole", 0)):
        found = call(record, "--device", "cpu", "--seeds", 1, "--out", tmp_path / folder)
        assert found[0] == status
        printed += found[1]
    assert "CNN, seed 0, continues after epoch 1" in printed
    for name in MODELS:
        (parts,), (whole,) = (series[name] for series in results)
        assert whole.tested_at and whole.logits["test"].equal(parts.logits["test"])
