"""Runs as files: they continue bit for bit, are not repeated, and depend on all that matters."""

from dataclasses import replace

from fashion import optim, runs
from fashion.script import UserError

import pytest
import torch

import fashionmnist
from fashionmnist import train
from models import MODELS

SMALL = {"ffn": {"widths": (32, 16)}, "cnn": {"channels": (4, 8, 8), "widths": (16,)}}
RECIPES = {
    name: replace(MODELS[name].recipe, epochs=3, batch_size=100, model=model)
    for name, model in SMALL.items()
}


class EndError(Exception):
    """Stands for the end of a process."""


def interrupt(name, recipe, seed, dataset, folder):
    """Train for two epochs, as if the process then ended."""

    def save_and_stop(run, *optimizers, save=runs.save):
        save(run, *optimizers)
        if len(run.history) == 2:
            raise EndError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EndError):
        patch.setattr(runs, "save", save_and_stop)
        train(name, recipe, seed, dataset, folder)


def without_seconds(run):
    return [{key: row[key] for key in row if key != "seconds"} for row in run.history]


@pytest.mark.parametrize(
    ("name", "optimizer"), [("ffn", "muon"), ("cnn", "muon"), ("ffn", "adamw"), ("ffn", "sgd")]
)
def test_interrupted_training_ends_bit_for_bit_like_one_without(
    name, optimizer, tiny, tmp_path, capsys
):
    recipe = replace(RECIPES[name], optimizer=optimizer)
    whole = train(name, recipe, 3, tiny)
    interrupt(name, recipe, 3, tiny, tmp_path)
    continued = train(name, recipe, 3, tiny, tmp_path)
    assert "continues after epoch 2" in capsys.readouterr().out
    assert without_seconds(continued) == without_seconds(whole)
    other = whole.model.state_dict()
    assert all(value.equal(other[key]) for key, value in continued.model.state_dict().items())


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


def test_key_depends_on_settings_data_precision_and_code(tiny):
    def key(recipe=RECIPES["ffn"], seed=0, dataset=tiny, precision="float32", code=train):
        run = runs.Run("ffn", seed, recipe, MODELS["ffn"].network(), {"precision": precision})
        return runs.key(run, dataset, code)

    keys = [
        key(),
        key(recipe=replace(RECIPES["ffn"], epochs=5)),
        key(recipe=replace(RECIPES["ffn"], model={"dropout": 0.5})),
        key(seed=1),
        key(dataset=replace(tiny, train=tiny.train[:-1])),
        key(dataset=replace(tiny, test_images=tiny.test_images.flip(2))),
        key(precision="bfloat16"),
        key(code=interrupt),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_damaged_run_is_an_error_that_says_what_to_do(tiny, tmp_path):
    recipe = replace(RECIPES["ffn"], epochs=1)
    path = train("ffn", recipe, 0, tiny, tmp_path).path
    for damaged in (path.read_bytes()[:500], b""):
        path.write_bytes(damaged)
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
    assert run.logits["test"] is logits and run.tested_at == tested_at
    mirrored = train("cnn", run.recipe, 0, tiny)
    mirrored.score(replace(tiny, test_images=tiny.test_images.flip(2)))
    assert torch.equal(mirrored.logits["test"], run.logits["mirrored"])


def test_training_is_not_changed_by_evaluating_in_between(tiny, monkeypatch):
    recipe = replace(RECIPES["cnn"], epochs=2)
    normal = train("cnn", recipe, 0, tiny).model.state_dict()
    monkeypatch.setattr(fashionmnist, "evaluate", lambda model, dataset: (0.0, 0.0))
    without = train("cnn", recipe, 0, tiny).model.state_dict()
    assert all(torch.equal(normal[key], without[key]) for key in normal)


def test_learning_rate_of_each_epoch_follows_the_schedule(tiny):
    run = train("ffn", RECIPES["ffn"], 0, tiny)
    last = [optim.schedule(10 * epoch - 1, 3 * 10, 0.1) for epoch in (1, 2, 3)]
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
