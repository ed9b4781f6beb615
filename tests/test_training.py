import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import training
from files import UserMistake, WorldFault
from training import (
    RECIPES,
    Trainer,
    checkpoint_content,
    evaluate,
    load_checkpoint,
    predict_logits,
    write_tensors,
)

NAMES = ["ffn", "cnn"]
PRECISIONS = [torch.float32, torch.bfloat16]
# As narrow as still learns, for quick tests.
SMALL = {
    "ffn": {"widths": (256, 128, 64, 32), "dropout": 0.1},
    "cnn": {"channels": (16, 32, 64), "widths": (64, 32), "dropout": 0.1},
}


def make_trainer(name, dataset, seed=0, precision=torch.float32, record=False, **settings):
    recipe = replace(
        RECIPES[name], **{"model": SMALL[name], "epochs": 3, "batch_size": 64, **settings}
    )
    return Trainer(name, dataset, recipe, seed, precision, record=record)


def train_to_the_end(trainer):
    while not trainer.finished:
        trainer.train_epoch()
    return trainer


def assert_same(one, other):
    """Assert that two trainers have the same weights and history, to the last bit."""
    for part in ("model", "averaged"):
        weights, others = (getattr(t, part).state_dict() for t in (one, other))
        assert all(weights[key].equal(others[key]) for key in weights)
    assert one.history == other.history


# Learning


@pytest.mark.parametrize("name", NAMES)
def test_training_learns(tiny_dataset, name):
    trainer = train_to_the_end(make_trainer(name, tiny_dataset, epochs=8, batch_size=32))
    first, last = trainer.history[0], trainer.history[-1]
    assert last["train_loss"] < first["train_loss"]
    assert last["validation_accuracy"] > 0.5  # a guess has 0.1


def test_history_has_one_whole_entry_an_epoch(tiny_dataset):
    trainer = train_to_the_end(make_trainer("ffn", tiny_dataset))
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3]
    assert set(trainer.history[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
    }
    assert len(trainer.epoch_seconds) == 3 and trainer.train_seconds > 0
    rates = [entry["learning_rate"] for entry in trainer.history]
    assert rates[-1] < RECIPES["ffn"].learning_rate / 10


def test_fewer_images_than_a_batch_are_one_batch(tiny_dataset):
    dataset = replace(tiny_dataset, train_indices=tiny_dataset.train_indices[:5])
    trainer = make_trainer("cnn", dataset, epochs=1)
    assert (trainer.steps, trainer.batch_size) == (1, 5)
    trainer.train_epoch()


@pytest.mark.parametrize("name", NAMES)
def test_loss_that_is_no_number_stops_with_epoch_step_and_learning_rate(tiny_dataset, name):
    trainer = make_trainer(name, tiny_dataset)
    trainer.train_epoch()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(WorldFault, match=r"epoch 2, step 1 .*learning rate of .*--lr"):
        trainer.train_epoch()
    assert len(trainer.history) == 1


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    factors = [training.learning_rate_factor(100, 0.25, step) for step in range(101)]
    assert 0 < factors[0] < 0.05 and factors[-1] == 0
    assert max(factors) == factors[25] == 1
    assert factors[:26] == sorted(factors[:26]) and factors[25:] == sorted(factors[25:])[::-1]


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.9])
def test_learning_rate_of_the_shortest_training_is_above_zero(total_steps, warmup):
    for step in range(total_steps):
        assert 0 < training.learning_rate_factor(total_steps, warmup, step) <= 1


# The same bits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_seed_same_bits_and_another_seed_others(tiny_dataset, name, precision):
    one, again = (
        train_to_the_end(make_trainer(name, tiny_dataset, precision=precision)) for _ in range(2)
    )
    assert_same(one, again)
    other = train_to_the_end(make_trainer(name, tiny_dataset, seed=1, precision=precision))
    assert other.history != one.history


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_run_ends_like_one_never_stopped(tiny_dataset, tmp_path, name, precision):
    whole = train_to_the_end(make_trainer(name, tiny_dataset, precision=precision))

    first = make_trainer(name, tiny_dataset, precision=precision)
    first.train_epoch()
    first.save(tmp_path / "resume.pt")
    torch.rand(17)  # what else was drawn meanwhile does not matter
    second = make_trainer(name, tiny_dataset, precision=precision)
    second.resume(tmp_path / "resume.pt")
    assert len(second.history) == 1
    assert_same(train_to_the_end(second), whole)


@pytest.mark.parametrize("name", NAMES)
def test_evaluating_in_between_changes_nothing(tiny_dataset, name):
    quiet, watched = (make_trainer(name, tiny_dataset) for _ in range(2))
    train_to_the_end(quiet)
    torch.manual_seed(0)
    watched = make_trainer(name, tiny_dataset)
    while not watched.finished:
        watched.train_epoch(lambda steps: look_at_each_step(steps, watched))
    assert_same(quiet, watched)


@pytest.mark.parametrize("name", NAMES)
def test_turning_off_validation_changes_no_weight(tiny_dataset, name, monkeypatch):
    watched = train_to_the_end(make_trainer(name, tiny_dataset))
    monkeypatch.setattr(training, "predict_logits", lambda _, images, *__: torch.zeros(100, 10))
    blind = train_to_the_end(make_trainer(name, tiny_dataset))
    assert len({entry["validation_accuracy"] for entry in blind.history}) == 1  # always class 0
    for part in ("model", "averaged"):
        weights, others = (getattr(t, part).state_dict() for t in (watched, blind))
        assert all(weights[key].equal(others[key]) for key in weights)


def look_at_each_step(steps, trainer):
    dataset = trainer.dataset
    for step in steps:
        for model in (trainer.model, trainer.averaged):
            predict_logits(model, dataset.test_images, dataset.mean, dataset.std, trainer.precision)
        yield step


# Learning from a teacher


@pytest.fixture
def teacher(tiny_dataset, tmp_path):
    """A CNN trained for two epochs, as a checkpoint."""
    trainer = train_to_the_end(make_trainer("cnn", tiny_dataset, epochs=2))
    write_tensors(tmp_path / "teacher.pt", checkpoint_content(trainer))
    return load_checkpoint(tmp_path / "teacher.pt", "cnn")


def test_teacher_takes_the_place_of_the_labels(tiny_dataset, teacher):
    recipe = replace(RECIPES["ffn"], model=SMALL["ffn"], epochs=6, batch_size=50)
    other_labels = replace(tiny_dataset, labels=tiny_dataset.labels.roll(1))
    taught, blind = (
        train_to_the_end(Trainer("ffn", dataset, recipe, 0, torch.float32, teacher))
        for dataset in (tiny_dataset, other_labels)
    )
    weights, others = (trainer.model.state_dict() for trainer in (taught, blind))
    assert all(weights[key].equal(others[key]) for key in weights)

    images = tiny_dataset.images[tiny_dataset.validation_indices]
    arguments = images, teacher.mean, teacher.std, torch.float32
    answers, wanted = (
        predict_logits(model, *arguments).argmax(1) for model in (taught.averaged, teacher.model)
    )
    assert (answers == wanted).float().mean() > 0.5


def test_resuming_with_another_teacher_is_refused(tiny_dataset, tmp_path, teacher):
    trainer = Trainer("ffn", tiny_dataset, RECIPES["ffn"], 0, torch.float32, teacher)
    trainer.save(tmp_path / "resume.pt")
    with pytest.raises(UserMistake, match="with teacher "):
        Trainer("ffn", tiny_dataset, RECIPES["ffn"], 0, torch.float32).resume(
            tmp_path / "resume.pt"
        )


# Resuming


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("epochs", {"epochs": 4}),
        ("batch-size", {"batch_size": 32}),
        ("lr", {"learning_rate": 0.1}),
        ("weight-decay", {"weight_decay": 0.5}),
        ("seed", {"seed": 7}),
        ("precision", {"precision": torch.bfloat16}),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_name(
    tiny_dataset, tmp_path, setting, change
):
    trainer = make_trainer("ffn", tiny_dataset)
    trainer.train_epoch()
    trainer.save(tmp_path / "resume.pt")
    with pytest.raises(UserMistake, match=f"with {setting} "):
        make_trainer("ffn", tiny_dataset, **change).resume(tmp_path / "resume.pt")


def test_resuming_with_fewer_images_is_refused(tiny_dataset, tmp_path):
    trainer = make_trainer("ffn", tiny_dataset)
    trainer.save(tmp_path / "resume.pt")
    fewer = replace(tiny_dataset, train_indices=tiny_dataset.train_indices[:100])
    with pytest.raises(UserMistake, match="with images 500"):
        make_trainer("ffn", fewer).resume(tmp_path / "resume.pt")


def test_resuming_from_a_damaged_file_is_refused(tiny_dataset, tmp_path):
    path = tmp_path / "resume.pt"
    trainer = make_trainer("ffn", tiny_dataset)
    trainer.save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserMistake, match="damaged"):
        trainer.resume(path)


# Recording


def test_recording_holds_the_kernels_from_first_step_to_last(tiny_dataset, tmp_path):
    trainer = make_trainer("cnn", tiny_dataset, record=True)
    untrained = trainer.model.blocks[0].conv.weight.detach().clone()
    train_to_the_end(trainer)
    training.save_recording(trainer, tmp_path / "recording.pt")
    write_tensors(tmp_path / "cnn.pt", checkpoint_content(trainer))
    checkpoint = load_checkpoint(tmp_path / "cnn.pt", "cnn")
    recording = training.load_recording(tmp_path / "recording.pt", checkpoint)
    assert recording.steps == list(range(trainer.total_steps + 1))  # fewer steps than frames
    assert recording.steps_per_epoch == trainer.steps
    assert recording.kernels[0].equal(untrained)
    assert recording.kernels[-1].equal(trainer.averaged.blocks[0].conv.weight)


def test_many_steps_are_recorded_often_at_first_and_seldom_later():
    steps = sorted(training.recorded_steps(100_000))
    gaps = np.diff(steps)
    assert (steps[0], steps[-1]) == (0, 100_000)
    assert len(steps) == training.RECORDED_FRAMES + 1 and (np.diff(gaps) >= 0).all()


def test_recording_changes_no_weight(tiny_dataset):
    plain, recorded = (
        train_to_the_end(make_trainer("cnn", tiny_dataset, epochs=1, record=record))
        for record in (False, True)
    )
    assert not plain.frames and recorded.frames
    assert_same(plain, recorded)


def test_resumed_recording_is_that_of_a_training_never_stopped(tiny_dataset, tmp_path):
    whole = train_to_the_end(make_trainer("cnn", tiny_dataset, record=True))
    first = make_trainer("cnn", tiny_dataset, record=True)
    first.train_epoch()
    first.save(tmp_path / "resume.pt")
    second = make_trainer("cnn", tiny_dataset, record=True)
    second.resume(tmp_path / "resume.pt")
    train_to_the_end(second)
    assert list(second.frames) == list(whole.frames)
    assert all(second.frames[step].equal(whole.frames[step]) for step in whole.frames)


def test_recording_that_would_lack_its_beginning_is_refused(tiny_dataset, tmp_path):
    make_trainer("cnn", tiny_dataset).save(tmp_path / "resume.pt")
    with pytest.raises(UserMistake, match="--record"):
        make_trainer("cnn", tiny_dataset, record=True).resume(tmp_path / "resume.pt")


def test_recording_of_another_training_is_none_and_a_damaged_one_an_error(
    tiny_dataset, trained_folder, tmp_path
):
    write_tensors(tmp_path / "cnn.pt", checkpoint_content(make_trainer("cnn", tiny_dataset, 5)))
    other = load_checkpoint(tmp_path / "cnn.pt", "cnn")
    assert training.load_recording(trained_folder / "recording.pt", other) is None
    assert training.load_recording(tmp_path / "recording.pt", other) is None
    for content in ({}, {"steps": [0], "kernels": 5, "steps_per_epoch": 1}):
        write_tensors(tmp_path / "recording.pt", content)
        with pytest.raises(UserMistake, match="no recording"):
            training.load_recording(tmp_path / "recording.pt", other)


# Checkpoints


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_brings_back_the_same_predictions(tiny_dataset, tmp_path, name):
    trainer = train_to_the_end(make_trainer(name, tiny_dataset))
    write_tensors(tmp_path / "model.pt", checkpoint_content(trainer))
    checkpoint = load_checkpoint(tmp_path / "model.pt", name)
    assert (checkpoint.mean, checkpoint.std) == (tiny_dataset.mean, tiny_dataset.std)
    assert checkpoint.dataset == "synthetic" and len(checkpoint.class_names) == 10
    arguments = (tiny_dataset.test_images, checkpoint.mean, checkpoint.std, torch.float32)
    assert predict_logits(checkpoint.model, *arguments).equal(
        predict_logits(trainer.averaged, *arguments)
    )


class Command:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoint_with_a_command_inside_is_refused_and_not_run(tmp_path):
    torch.save({"model": "cnn", "weights": Command(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(UserMistake, match="not data"):
        load_checkpoint(tmp_path / "model.pt", "cnn")
    assert not (tmp_path / "ran").exists()


def test_missing_checkpoint_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UserMistake, match=r"python fashionmnist.py --out"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")


def test_checkpoint_of_another_model_is_refused(tiny_dataset, tmp_path):
    write_tensors(tmp_path / "model.pt", checkpoint_content(make_trainer("ffn", tiny_dataset)))
    with pytest.raises(UserMistake, match="holds model ffn, and cnn is needed"):
        load_checkpoint(tmp_path / "model.pt", "cnn")


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["weights"].popitem(),
        lambda state: state["weights"]["blocks.0.conv.weight"].fill_(torch.nan),
        lambda state: state.update(std=0.0),
        lambda state: state.update(model="rnn"),
        lambda state: state.update(model=["cnn"]),
        lambda state: state.update(arguments={"depth": 3}),
        lambda state: state.update(class_names=["shoe"]),
        lambda state: state.update(dataset="CIFAR-10"),
        lambda state: state.pop("mean"),
    ],
)
def test_checkpoint_with_wrong_content_is_refused(tiny_dataset, tmp_path, damage):
    path = tmp_path / "model.pt"
    write_tensors(path, checkpoint_content(make_trainer("cnn", tiny_dataset)))
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    with pytest.raises(UserMistake, match=r"damaged or no checkpoint"):
        load_checkpoint(path, "cnn")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense" * 100])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "cnn.pt").write_bytes(content)
    with pytest.raises(UserMistake, match="damaged"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")


def test_truncated_checkpoints_are_refused(tiny_dataset, tmp_path):
    path = tmp_path / "cnn.pt"
    write_tensors(path, checkpoint_content(make_trainer("cnn", tiny_dataset)))
    whole = path.read_bytes()
    for share in range(1, 10):
        path.write_bytes(whole[: len(whole) * share // 10])
        with pytest.raises(UserMistake, match="damaged"):
            load_checkpoint(path, "cnn")


# Evaluation


def test_evaluation_against_values_computed_by_hand():
    labels = torch.tensor([0, 0, 1, 2])
    logits = torch.full((4, 10), -100.0)
    for row, guess in enumerate([0, 1, 1, 1]):
        logits[row, guess] = 0
    result = evaluate(logits, labels)
    assert result.accuracy == 0.5
    assert result.accuracy_by_class[:3] == [0.5, 1, 0]
    assert result.confusion_matrix[0][:3] == [1, 1, 0]
    assert result.confusion_matrix[2][:3] == [0, 1, 0]
    assert sum(map(sum, result.confusion_matrix)) == 4
    # Two right answers cost nothing, two wrong ones 100 nats each.
    assert result.loss == pytest.approx(50)


def test_prediction_restores_the_mode_and_keeps_the_order(tiny_dataset):
    trainer = make_trainer("cnn", tiny_dataset)
    trainer.model.train()
    images = tiny_dataset.images[:1500]
    logits = predict_logits(trainer.model, images, 0.3, 0.3, torch.float32)
    assert trainer.model.training
    alone = predict_logits(trainer.model, images[1200:1201], 0.3, 0.3, torch.float32)
    assert logits.shape == (1500, 10)
    assert torch.allclose(logits[1200], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_flip_averaging_is_the_mean_over_both_views(tiny_dataset, name):
    model, images = training.MODELS[name]().eval(), tiny_dataset.images[:50]
    arguments = tiny_dataset.mean, tiny_dataset.std, torch.float32
    averaged = training.average_over_flip(model, images, *arguments).softmax(1)
    views = [predict_logits(model, view, *arguments) for view in (images, images.flip(2))]
    assert torch.allclose(averaged, sum(view.softmax(1) for view in views) / 2, atol=1e-6)
    assert not torch.allclose(averaged, views[0].softmax(1), atol=1e-6)


# Choices


def test_unknown_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserMistake, match="--device cuda"):
        training.choose_device("cuda")


def test_auto_precision_asks_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert training.choose_precision("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert training.choose_precision("auto", cpu) == torch.float32
    assert training.choose_precision("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_adamw_alone_takes_all_weights(name):
    model = training.MODELS[name]()
    recipe = replace(RECIPES[name], optimizer="adamw")
    (optimizer,) = training.make_optimizers(model, recipe, torch.float32)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == recipe.learning_rate
    parameters = optimizer.param_groups[0]["params"]
    assert list(map(id, parameters)) == list(map(id, model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_muon_takes_the_hidden_weights_and_adamw_all_else(name):
    model = training.MODELS[name]()
    recipe = replace(RECIPES[name], optimizer="muon")
    muon, adamw = training.make_optimizers(model, recipe, torch.float32)
    weights, others = (optimizer.param_groups[0]["params"] for optimizer in (muon, adamw))
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert set(map(id, weights)) == {id(layer.weight) for layer in layers[:-1]}
    everything = list(map(id, model.parameters()))
    assert sorted(map(id, weights + others)) == sorted(everything)


def test_averaged_weights_are_the_moving_average_of_those_in_training(tiny_dataset):
    trainer = make_trainer("ffn", tiny_dataset, epochs=10, ema_steps=4)
    key, share = "layers.1.weight", 1 / 4
    expected = trainer.model.state_dict()[key].clone()
    for _ in trainer.train_steps():
        expected = (1 - share) * expected + share * trainer.model.state_dict()[key]
    averaged = trainer.averaged.state_dict()
    assert torch.allclose(averaged[key], expected, atol=1e-6)
    assert averaged["layers.2.running_var"].ne(1).any()


@pytest.mark.parametrize("recipes", [RECIPES, training.BEST_RECIPES])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_fit_their_models(recipes, name):
    assert training.MODELS[name](**recipes[name].model)


@pytest.mark.parametrize("name", NAMES)
def test_summary_lists_every_layer_and_the_parameters(name):
    model = training.MODELS[name]()
    lines = training.summarize(model).splitlines()
    leaves = [part for part in model.modules() if not list(part.children())]
    assert len(lines) == len(leaves) + 2
    total = sum(parameter.numel() for parameter in model.parameters())
    assert lines[-1].split() == ["total", f"{total:,}"]
    assert lines[-2].split()[-2:] == ["10", f"{sum(p.numel() for p in leaves[-1].parameters()):,}"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.44, "8.4 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (4200, "1 h 10 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert training.format_duration(seconds) == text
