import copy
import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fashion import training
from fashion.evaluation import evaluate, predict_logits
from fashion.files import UsageError
from fashion.layers import conv_blocks
from fashion.training import DivergenceError, Trainer, learning_rate_factor, make_optimizers
from models import MODELS

PRECISIONS = [torch.float32, torch.bfloat16]
# Narrow networks for tests that compare numbers; they hardly learn.
NARROW = {
    "ffn": {"widths": (64, 48, 32, 16), "dropout": 0.1},
    "cnn": {"channels": (4, 8, 8), "widths": (32, 16), "dropout": 0.1},
}


@pytest.fixture(scope="module")
def dataset(tiny_dataset):
    """The tiny dataset with 165 images to train on: ten batches of 16, and five images left."""
    return replace(tiny_dataset, train_indices=tiny_dataset.train_indices[:165])


def make_trainer(name, dataset, seed=0, precision=torch.float32, record=False, **settings):
    network = MODELS[name]
    short = {"model": NARROW.get(name, {}), "epochs": 2, "batch_size": 16, "freeze": [0.3, 0.7]}
    recipe = replace(network.recipe, **short | settings)
    return Trainer(network, dataset, recipe, seed, precision, record)


def train_to_the_end(trainer):
    while not trainer.finished:
        trainer.train_epoch()
    return trainer


@pytest.fixture(scope="module")
def undisturbed(dataset):
    """Return a function that returns a trainer of that name, trained without interruption.

    The kernels of the CNN are recorded here only, which must not change its weights.
    """

    @functools.cache
    def train(name, precision=torch.float32):
        record = name == "cnn"
        return train_to_the_end(make_trainer(name, dataset, precision=precision, record=record))

    return train


def assert_same_weights(one, other):
    """Assert that two trainers have the same weights, bit by bit."""
    for part in ("model", "averaged"):
        weights, others = (getattr(each, part).state_dict() for each in (one, other))
        assert weights.keys() == others.keys()
        assert all(weights[key].equal(others[key]) for key in weights)


def assert_same(one, other):
    """Assert that two trainers have the same weights and history, bit by bit."""
    assert_same_weights(one, other)
    assert one.history == other.history


# Learning


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ffn", {"widths": (256, 128, 64, 32), "dropout": 0.1}),
        ("cnn", {"channels": (8, 16, 32), "widths": (64, 32), "dropout": 0.1}),
    ],
)
def test_training_learns(tiny_dataset, name, model):
    trainer = make_trainer(name, tiny_dataset, model=model, epochs=8, batch_size=25)
    train_to_the_end(trainer)
    assert trainer.history[-1]["validation_accuracy"] > 0.5  # five times chance
    assert trainer.history[-1]["train_loss"] < 0.65 * trainer.history[0]["train_loss"]


def test_history_row_summarizes_the_epoch(dataset):
    trainer = make_trainer("ffn", dataset)
    chosen, peak = dataset.validation_indices, trainer.recipe.learning_rate
    hits = []
    for epoch in (1, 2):
        losses = []
        for images, labels in trainer.batches():
            hook = trainer.model.register_forward_hook(
                lambda _, __, logits, labels=labels: hits.append(logits.argmax(1) == labels)
            )
            losses.append(trainer.step(images, labels))
            hook.remove()
        row = trainer.validate()
        logits = predict_logits(trainer.averaged, dataset.images[chosen], dataset.mean, dataset.std)
        correct = logits.argmax(1) == dataset.labels[chosen]
        assert row == pytest.approx(
            {
                "epoch": epoch,
                "train_loss": sum(losses).item() / 10,
                "train_accuracy": torch.cat(hits[-10:]).float().mean().item(),
                "validation_loss": F.cross_entropy(logits, dataset.labels[chosen]).item(),
                "validation_accuracy": correct.float().mean().item(),
                "learning_rate": peak * learning_rate_factor(20, 0.1, 10 * epoch - 1),
            }
        )
        assert trainer.history[-1] == row
    assert trainer.finished and len(trainer.history) == len(trainer.epoch_seconds) == 2
    assert trainer.train_seconds == sum(trainer.epoch_seconds) > 0


def test_loss_is_smoothed_cross_entropy(dataset):
    trainer = make_trainer("ffn", dataset, label_smoothing=0.1)
    # Softmax gives class 0 a probability of 1 / 2 and the others 1 / 18 each.
    logits = torch.tensor([[9.0] + [1.0] * 9]).log()
    loss = trainer.loss(logits, torch.zeros(1, 28, 28), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.91 * np.log(2) + 0.09 * np.log(18))


def test_epoch_has_each_image_once_in_a_new_order_without_an_incomplete_batch(dataset):
    trainer = make_trainer("ffn", dataset, shift=0, flip=False)
    chosen = dataset.train_indices
    available = Counter(map(digest, dataset.images[chosen], dataset.labels[chosen]))
    orders = []
    for _ in range(2):
        batches = list(trainer.batches())
        assert [(len(images), len(labels)) for images, labels in batches] == [(16, 16)] * 10
        orders.append([digest(*pair) for batch in batches for pair in zip(*batch, strict=True)])
        assert Counter(orders[-1]) <= available
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def digest(image, label):
    return image.numpy().tobytes() + bytes([label])


def test_batches_are_augmented_as_the_recipe_says(dataset):
    plain, shifted = (
        next(make_trainer("ffn", dataset, **settings).batches())[0]
        for settings in (
            {"shift": 0, "flip": False},
            {"shift": 2, "shifted": 1.0, "flip": False},
        )
    )
    assert plain.shape == shifted.shape and not plain.equal(shifted)


def test_images_show_all_views_before_they_repeat_one(dataset):
    trainer = make_trainer("ffn", dataset, shift=1, flip=True)
    shown = []
    for epoch in range(18):
        trainer.history = [{}] * epoch
        shown.append(trainer.choose_views(dataset.train_indices))
    assert (
        torch.stack(shown)
        .sort(0)
        .values.equal(torch.arange(18)[:, None].expand(-1, len(dataset.train_indices)))
    )


def test_fewer_images_than_a_batch_are_one_batch(dataset):
    few = replace(dataset, train_indices=dataset.train_indices[:5])
    trainer = make_trainer("cnn", few, epochs=1)
    assert (trainer.steps_per_epoch, trainer.batch_size) == (1, 5)
    trainer.train_epoch()
    assert trainer.finished


def test_loss_that_is_not_finite_is_an_error_that_names_the_step(dataset):
    trainer = make_trainer("cnn", dataset, learning_rate=0.25)
    trainer.train_epoch()
    for number, (images, labels) in enumerate(trainer.batches(), start=1):
        if number == 3:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(torch.nan)
        trainer.step(images, labels)
    with pytest.raises(
        DivergenceError,
        match=r"loss of the CNN became nan in epoch 2, step 3 of 10, .* learning rate of 0\.25$",
    ):
        trainer.validate()
    assert len(trainer.history) == len(trainer.epoch_seconds) == 1


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    factors = [learning_rate_factor(10, 0.25, step) for step in range(11)]
    assert factors == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 1 / 2, 3 / 8, 2 / 8, 1 / 8, 0]
    )


def test_learning_rate_of_the_shortest_trainings_is_above_zero():
    for total_steps in range(1, 9):
        for warmup in (0.0, 0.25, 0.99):
            factors = [learning_rate_factor(total_steps, warmup, s) for s in range(total_steps)]
            assert min(factors) > 0 and max(factors) <= 1


# Optimizers


@pytest.mark.parametrize("name", MODELS)
def test_adamw_alone_updates_all_parameters(name):
    model = MODELS[name]()
    recipe = replace(MODELS[name].recipe, optimizer="adamw", weight_decay=0.125)
    (optimizer,) = make_optimizers(model, recipe, torch.float32)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], group["weight_decay"]) == (recipe.learning_rate, 0.125)
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_muon_updates_the_hidden_weights_and_adamw_the_others(name):
    model = MODELS[name]()
    recipe = replace(MODELS[name].recipe, optimizer="muon", learning_rate=0.5)
    muon, adamw = make_optimizers(model, recipe, torch.bfloat16)
    assert muon.precision == torch.bfloat16
    assert [each.param_groups[0]["lr"] for each in (muon, adamw)] == [0.5, 0.15]
    weights, others = (optimizer.param_groups[0]["params"] for optimizer in (muon, adamw))
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert set(map(id, weights)) == {id(layer.weight) for layer in layers[:-1]}
    assert sorted(map(id, weights + others)) == sorted(map(id, model.parameters()))


# Steps


def test_blocks_train_until_they_are_frozen(dataset):
    trainer = make_trainer("cnn", dataset, freeze=[0.5, 0.75])  # of 20 steps
    frozen = []
    for step in range(20):
        before = copy.deepcopy(trainer.model)
        if step % 10 == 0:
            batches = trainer.batches()
        trainer.step(*next(batches))
        blocks = zip(conv_blocks(before), conv_blocks(trainer.model), strict=True)
        frozen.append([have_same_parameters(*pair) for pair in blocks])
        if step == 9:
            trainer.validate()
    trains = [False, False, False]
    assert frozen == 10 * [trains] + 5 * [[True, False, False]] + 5 * [[True, True, False]]


def have_same_parameters(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_stopping_after_any_step_leaves_no_half_step(dataset, undisturbed, name):
    trainer = make_trainer(name, dataset)  # its average has a window of two steps
    steps = 0
    expected = averaged_tensors(trainer.model)
    while not trainer.finished:
        batches = trainer.batches()
        for _ in range(trainer.steps_per_epoch):
            for images, labels in batches:  # a new loop for each step
                trainer.step(images, labels)
                break
            steps += 1
            factor = learning_rate_factor(20, trainer.recipe.warmup, steps)
            for optimizer, schedule in zip(trainer.optimizers, trainer.schedules, strict=True):
                (group,) = optimizer.param_groups
                assert schedule.last_epoch == steps
                assert group["lr"] == pytest.approx(factor * group["initial_lr"])
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
            current = averaged_tensors(trainer.model)
            decay = training.average_decay(2, steps)
            expected = {
                key: decay * value + (1 - decay) * current[key] for key, value in expected.items()
            }
            for key, value in averaged_tensors(trainer.averaged).items():
                torch.testing.assert_close(value, expected[key])
        trainer.validate()
    assert_same(trainer, undisturbed(name))


def averaged_tensors(model):
    """Return copies of all weights and statistics that are averaged."""
    state = model.state_dict()
    return {key: value.clone() for key, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("name", MODELS)
def test_evaluating_after_every_step_changes_nothing(dataset, undisturbed, name):
    trainer = make_trainer(name, dataset)
    settings = dataset.mean, dataset.std
    while not trainer.finished:
        for images, labels in trainer.batches():
            trainer.step(images, labels)
            for model in (trainer.model, trainer.averaged):
                predict_logits(model, dataset.test_images[:20], *settings)
        trainer.validate()
    assert_same(trainer, undisturbed(name))


@pytest.mark.parametrize("name", MODELS)
def test_validation_changes_no_weight(dataset, undisturbed, name, monkeypatch):
    monkeypatch.setattr(training, "predict_logits", lambda _, images, *__: torch.zeros(100, 10))
    trainer = train_to_the_end(make_trainer(name, dataset))
    assert trainer.history != undisturbed(name).history
    assert_same_weights(trainer, undisturbed(name))


@pytest.mark.parametrize("name", MODELS)
def test_other_seeds_change_weights_and_order(dataset, name):
    one, other = (make_trainer(name, dataset, seed=seed) for seed in (0, 1))
    weights, others = (next(trainer.model.parameters()) for trainer in (one, other))
    assert not weights.equal(others)
    labels, other_labels = (next(trainer.batches())[1] for trainer in (one, other))
    assert not labels.equal(other_labels)


# Resuming


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_training_ends_like_one_never_interrupted(
    dataset, undisturbed, tmp_path, name, precision
):
    whole = undisturbed(name, precision)
    make = functools.partial(make_trainer, name, dataset, 0, precision, record=name == "cnn")
    interrupted = make()
    interrupted.train_epoch()
    interrupted.save(tmp_path / "resume.pt")
    for images, labels in interrupted.batches():  # lost when the process ends
        interrupted.step(images, labels)
        break
    torch.rand(17)
    resumed = make()
    resumed.resume(tmp_path / "resume.pt")
    assert resumed.history == whole.history[:1]
    assert resumed.epoch_seconds == interrupted.epoch_seconds
    assert_same(train_to_the_end(resumed), whole)
    assert list(resumed.frames) == list(whole.frames)
    assert all(resumed.frames[step].equal(whole.frames[step]) for step in whole.frames)


@pytest.fixture(scope="module")
def resume_file(dataset, tmp_path_factory):
    """The state of a new FFN trainer."""
    path = tmp_path_factory.mktemp("resume") / "resume.pt"
    make_trainer("ffn", dataset).save(path)
    return path


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("epochs", {"epochs": 4}),
        ("batch_size", {"batch_size": 32}),
        ("optimizer", {"optimizer": "adamw"}),
        ("learning_rate", {"learning_rate": 0.1}),
        ("weight_decay", {"weight_decay": 0.5}),
        ("warmup", {"warmup": 0.5}),
        ("freeze", {"freeze": [0.5]}),
        ("label_smoothing", {"label_smoothing": 0.5}),
        ("shift", {"shift": 2}),
        ("shifted", {"shifted": 0.5}),
        ("flip", {"flip": False}),
        ("ema_steps", {"ema_steps": 7}),
        ("dropout", {"model": NARROW["ffn"] | {"dropout": 0.2}}),
        ("model", {"name": "cnn"}),
        ("seed", {"seed": 7}),
        ("precision", {"precision": torch.bfloat16}),
    ],
)
def test_resuming_with_another_setting_is_rejected_by_its_name(
    dataset, resume_file, setting, change
):
    trainer = make_trainer(**{"name": "ffn", "dataset": dataset} | change)
    with pytest.raises(UsageError, match=f"a run with {setting} .*, but this run has "):
        trainer.resume(resume_file)


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("images 165", {"train_indices": torch.arange(100)}),
        ("dataset synthetic", {"name": "fashion-mnist"}),
        ("pixel_mean", {"mean": 0.5}),
    ],
)
def test_resuming_with_other_data_is_rejected(dataset, resume_file, setting, change):
    trainer = make_trainer("ffn", replace(dataset, **change))
    with pytest.raises(UsageError, match=f"a run with {setting}"):
        trainer.resume(resume_file)


def test_training_without_a_recording_cannot_be_resumed_with_one(dataset, tmp_path):
    make_trainer("cnn", dataset).save(tmp_path / "resume.pt")
    with pytest.raises(UsageError, match="did not record kernels"):
        make_trainer("cnn", dataset, record=True).resume(tmp_path / "resume.pt")


# Recording


def test_recording_has_the_averaged_kernels_from_the_first_step_to_the_last(dataset):
    trainer = make_trainer("cnn", dataset, record=True)
    kernels = [trainer.averaged.blocks[0].conv.weight.detach().clone()]
    while not trainer.finished:
        for images, labels in trainer.batches():
            trainer.step(images, labels)
            kernels.append(trainer.averaged.blocks[0].conv.weight.detach().clone())
        trainer.validate()
    assert list(trainer.frames) == list(range(21))  # fewer steps than frames
    assert all(map(torch.equal, trainer.frames.values(), kernels))


class OnAccelerator(torch.Tensor):
    """A stand-in for a tensor on a GPU: only cpu() returns a plain tensor."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_recorded_frames_are_on_the_cpu(dataset):
    trainer = make_trainer("cnn", dataset, record=True)
    conv = trainer.averaged.blocks[0].conv
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(OnAccelerator))
    trainer.step(*next(trainer.batches()))
    assert isinstance(conv.weight.detach(), OnAccelerator)
    assert type(trainer.frames[1]) is torch.Tensor


def test_many_steps_are_recorded_often_at_first_and_rarely_later():
    steps = sorted(training.recorded_steps(100_000))
    gaps = np.diff(steps)
    assert (steps[0], steps[-1], len(steps)) == (0, 100_000, training.RECORDED_FRAMES + 1)
    assert gaps[0] == 10 and gaps[-1] == 1990 and (np.diff(gaps) >= 0).all()


def test_decay_of_the_average_rises_to_that_of_its_window():
    decays = [training.average_decay(100, step) for step in range(1, 2000)]
    assert decays[0] == 2 / 11 and decays[-1] == 1 - 1 / 100
    assert decays == sorted(decays)
    assert training.average_decay(1, 5) == 0


def test_average_of_a_short_training_is_as_accurate_as_the_model(tiny_dataset):
    trainer = make_trainer("ffn", tiny_dataset, epochs=20, batch_size=50, ema_steps=100)
    trainer.train_epoch()
    images, labels = tiny_dataset.images[:1000], tiny_dataset.labels[:1000]
    current, averaged = (
        evaluate(predict_logits(model, images, tiny_dataset.mean, tiny_dataset.std), labels)
        for model in (trainer.model, trainer.averaged)
    )
    assert averaged.accuracy > current.accuracy - 0.1


def test_validation_loss_that_is_not_finite_ends_the_training(tiny_dataset):
    trainer = make_trainer("ffn", tiny_dataset)
    for images, labels in trainer.batches():
        trainer.step(images, labels)
    with torch.no_grad():
        next(trainer.averaged.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError, match="validation loss of the FFN became nan in epoch 1"):
        trainer.validate()
    assert not trainer.history


def test_unfinished_training_is_described(tiny_dataset, tmp_path):
    path = tmp_path / "resume.pt"
    assert training.describe_unfinished(path) is None
    trainer = make_trainer("ffn", tiny_dataset, epochs=2)
    for described in ("1 of 2 epochs of a run with seed 0", None):
        trainer.train_epoch()
        trainer.save(path)
        assert training.describe_unfinished(path) == described
    path.write_bytes(b"damaged")
    assert training.describe_unfinished(path) is None


def test_resuming_in_another_environment_is_a_warning(tiny_dataset, tmp_path, monkeypatch, caplog):
    make_trainer("ffn", tiny_dataset).save(tmp_path / "resume.pt")
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    make_trainer("ffn", tiny_dataset).resume(tmp_path / "resume.pt")
    assert "this process has torch 0.0.1" in caplog.text
