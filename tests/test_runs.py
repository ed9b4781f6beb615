"""Runs as files: they continue bit for bit, are not repeated, and depend on all that matters."""

from dataclasses import replace

from fashion import optim, runs
from fashion.script import UserError

import pytest
import torch

import fashionmnist
from fashionmnist import train
from models import MODELS

RECIPES = {name: replace(model.recipe, epochs=4, batch_size=100) for name, model in MODELS.items()}


class EndError(Exception):
    """Stands for the end of a process."""


def interrupt_after(epochs, monkeypatch):
    """Let a training end after this number of epochs, between the end of one and the next."""
    save = runs.save

    def save_and_stop(run, *optimizers):
        save(run, *optimizers)
        if len(run.history) == epochs:
            raise EndError

    monkeypatch.setattr(runs, "save", save_and_stop)


def without_seconds(run):
    return [{key: row[key] for key in row if key != "seconds"} for row in run.history]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_interrupted_training_ends_bit_for_bit_like_one_without(
    name, optimizer, tiny, tmp_path, monkeypatch, capsys
):
    recipe = replace(RECIPES[name], optimizer=optimizer)
    whole = train(name, recipe, 3, tiny)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(EndError):
            train(name, recipe, 3, tiny, tmp_path)
    capsys.readouterr()
    continued = train(name, recipe, 3, tiny, tmp_path)
    assert "continues after epoch 2" in capsys.readouterr().out
    assert without_seconds(continued) == without_seconds(whole)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[key]), key


def test_finished_training_is_not_repeated_unless_it_is_to_be_fresh(tiny, tmp_path, capsys):
    recipe = replace(RECIPES["ffn"], epochs=1)
    first = train("ffn", recipe, 0, tiny, tmp_path)
    first.score(tiny)
    capsys.readouterr()
    again = train("ffn", recipe, 0, tiny, tmp_path)
    assert capsys.readouterr().out == f"FFN, seed 0, is finished already: {first.path}\n"
    assert again.history == first.history  # with the same seconds
    assert torch.equal(again.logits["test"], first.logits["test"])
    assert again.tested_at == first.tested_at
    fresh = train("ffn", recipe, 0, tiny, tmp_path, fresh=True)
    assert fresh.history[0]["seconds"] != first.history[0]["seconds"]
    assert without_seconds(fresh) == without_seconds(first)


def test_key_depends_on_settings_data_precision_and_code(tiny, tmp_path, monkeypatch):
    def key(recipe=RECIPES["ffn"], seed=0, dataset=tiny, precision="float32", code=train):
        run = runs.Run("ffn", seed, recipe, MODELS["ffn"].network(), {"precision": precision})
        return runs.key(run, dataset, code)

    keys = [
        key(),
        key(recipe=replace(RECIPES["ffn"], epochs=5)),
        key(recipe=replace(RECIPES["ffn"], model={"dropout": 0.5})),
        key(seed=1),
        key(dataset=replace(tiny, train=tiny.train[:-1])),
        key(precision="bfloat16"),
        key(code=interrupt_after),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    source = runs.source
    monkeypatch.setattr(runs, "source", lambda part: source(part).replace("nn.ReLU", "nn.GELU"))
    assert key() not in keys


def test_other_settings_leave_an_unfinished_run_alone(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(EndError):
            train("ffn", RECIPES["ffn"], 0, tiny, tmp_path)
    (unfinished,) = tmp_path.iterdir()
    before = unfinished.read_bytes()
    train("ffn", replace(RECIPES["ffn"], epochs=1), 0, tiny, tmp_path)
    assert unfinished.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    assert train("ffn", RECIPES["ffn"], 0, tiny, tmp_path).path == unfinished


@pytest.mark.parametrize("damage", [lambda content: content[:500], lambda content: b""])
def test_damaged_run_is_an_error_that_says_what_to_do(tiny, tmp_path, damage):
    recipe = replace(RECIPES["ffn"], epochs=1)
    path = train("ffn", recipe, 0, tiny, tmp_path).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged: remove it, or train again with --fresh"):
        train("ffn", recipe, 0, tiny, tmp_path)
    assert train("ffn", recipe, 0, tiny, tmp_path, fresh=True).finished


def test_test_images_are_scored_once_and_without_changing_the_network(tiny, tmp_path):
    run = train("cnn", replace(RECIPES["cnn"], epochs=1), 0, tiny, tmp_path)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.score(tiny)
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    logits, tested_at = run.logits["test"], run.tested_at
    run.score(replace(tiny, test_images=255 - tiny.test_images))
    assert run.logits["test"] is logits
    assert run.tested_at == tested_at
    mirrored = train("cnn", run.recipe, 0, tiny)
    mirrored.score(replace(tiny, test_images=tiny.test_images.flip(2)))
    assert torch.equal(mirrored.logits["test"], run.logits["mirrored"])


def test_training_is_not_changed_by_evaluating_in_between(tiny, monkeypatch):
    recipe = replace(RECIPES["cnn"], epochs=2)
    normal = train("cnn", recipe, 0, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(fashionmnist, "evaluate", lambda model, dataset: (0.0, 0.0))
        without = train("cnn", recipe, 0, tiny)
    for key, value in normal.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[key]), key


def test_learning_rate_of_each_epoch_follows_the_schedule(tiny):
    run = train("ffn", RECIPES["ffn"], 0, tiny)
    steps = 4 * 10
    last = [optim.schedule(10 * epoch - 1, steps, 0.1) for epoch in (1, 2, 3, 4)]
    rates = [row["learning_rate"] / RECIPES["ffn"].learning_rate for row in run.history]
    assert rates == pytest.approx(last)


def test_diverging_training_says_so_and_suggests_the_learning_rate_of_the_recipe(tiny):
    recipe = replace(RECIPES["ffn"], learning_rate=1e30)
    with pytest.raises(UserError, match="no longer finite in epoch 1.*--lr 0.03") as error:
        train("ffn", recipe, 0, tiny)
    assert error.value.status == 1


def test_a_training_learns(finished, tiny):
    for series in finished.values():
        accuracies = [row["validation_accuracy"] for row in series[0].history]
        assert accuracies[-1] > max(0.6, accuracies[0] - 0.1)
        assert series[0].history[-1]["train_loss"] < series[0].history[0]["train_loss"]
