import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments import ablation, timing
from experiments.ablation import INGREDIENTS
from fashion import cli, training
from fashion.data import FASHION_MNIST, load_dataset
from fashion.evaluation import predict_logits
from fashion.layers import Dropout
from fashion.training import Trainer
from models import MODELS

SMALL = {"ffn": {"widths": (32, 24, 16, 12)}, "cnn": {"channels": (2, 2, 2), "widths": (16, 12)}}


def run(*arguments):
    return cli.run(ablation.parse_arguments, ablation.main, [str(each) for each in arguments])


def find_ingredient(name):
    return next(each for each in INGREDIENTS if each.name == name)


def make_trainer(name, folder, precision=torch.float32):
    dataset = load_dataset(FASHION_MNIST, folder)
    return Trainer(MODELS[name], dataset, MODELS[name].recipe, 0, precision)


def test_table_has_a_row_for_each_ingredient(small_folder, tmp_path, monkeypatch, capsys):
    for name, network in MODELS.items():
        monkeypatch.setattr(network, "recipe", replace(network.recipe, model=SMALL[name]))
    monkeypatch.setattr(ablation, "EPOCHS", {"ffn": 1, "cnn": 1})
    monkeypatch.setattr(ablation, "TIMING_ROUNDS", 1)
    monkeypatch.setattr(ablation, "time_steps", lambda trainer: timing.time_steps(trainer, 1))
    monkeypatch.setattr(ablation, "call_in_own_process", lambda time, *each: time(*each))
    monkeypatch.setattr(training, "set_malloc", training.set_malloc)  # restores it afterwards
    monkeypatch.setattr(timing, "WARM_UP_STEPS", 0)
    # In float32, there is no row of bfloat16.
    monkeypatch.setattr(ablation, "choose_precision", lambda *_: torch.float32)
    out = tmp_path / "out"
    assert run("--seeds", 2, "--data-dir", small_folder, "--out", out) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "ablation.json").read_text())
    for name in MODELS:
        expected = [each for each in INGREDIENTS if name in each.models]
        expected.remove(ablation.BFLOAT16)
        rows = result[name]
        assert list(rows) == [ablation.COMPLETE.name, *(each.name for each in expected)]
        complete = rows.pop(ablation.COMPLETE.name)["accuracy"]["values"]
        for ingredient in expected:
            row = rows[ingredient.name]
            assert f"{row['time_ratio']:.2f}x" in printed and ingredient.name in printed
            assert ("accuracy" in row) == ingredient.learns
            if ingredient.learns:
                without = row["accuracy"]["values"]
                differences = [b - a for a, b in zip(complete, without, strict=True)]
                assert row["difference"]["values"] == pytest.approx(differences)


@pytest.mark.parametrize("ingredient", INGREDIENTS, ids=lambda each: each.name)
def test_ingredient_is_part_of_the_recipes_and_left_out(ingredient):
    assert ingredient.settings or ingredient.change or ingredient.own_process
    for name in ingredient.models:
        for setting, value in ingredient.settings.items():
            recipe = MODELS[name].recipe
            if setting == "model":
                complete = MODELS[name](**recipe.model).arguments
                assert MODELS[name](**{**recipe.model, **value}).arguments != complete
            else:
                assert getattr(recipe, setting) != value


def test_time_ratio_is_relative_to_the_complete_step(small_folder, monkeypatch):
    def time_steps(trainer):
        return 3.0 if trainer.recipe.label_smoothing == 0 else 2.0

    monkeypatch.setattr(ablation, "time_steps", time_steps)
    dataset = load_dataset(FASHION_MNIST, small_folder)
    ingredient = next(each for each in INGREDIENTS if each.name == "label smoothing")
    assert ablation.compare_steps("ffn", dataset, ingredient) == 1.5


def test_torch_dropout_replaces_ours(small_folder):
    ingredient = find_ingredient("dropout from bytes")
    dataset = load_dataset(FASHION_MNIST, small_folder)
    trainer = ablation.make_trainer("ffn", dataset, ingredient, 0)
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, nn.Dropout)]
    assert len(layers) == 4 and not any(isinstance(layer, Dropout) for layer in layers)


def test_pooling_last_does_not_change_the_logits(small_folder):
    trainer = make_trainer("cnn", small_folder)
    arguments = trainer.dataset.images[:20], 0.3, 0.3
    first = predict_logits(trainer.model, *arguments)
    sizes = []
    trainer.model.blocks[2].relu.register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].shape[2])
    )
    find_ingredient("pooling first").change(trainer)
    # Batch norm with positive scales and ReLU preserve the order of values, and so the maximum.
    assert torch.allclose(predict_logits(trainer.model, *arguments), first, atol=1e-5)
    assert sizes == [6]


def test_random_views_repeat_some_before_all_are_shown(small_folder):
    trainer = make_trainer("cnn", small_folder)
    indices = trainer.dataset.train_indices
    in_turn = trainer.choose_views(indices)
    assert in_turn.equal(trainer.choose_views(indices))
    ablation.draw_views(trainer)
    views = torch.stack([trainer.choose_views(indices) for _ in range(18)])
    assert views.min() == 0 and views.max() == 17
    assert max(len(shown.unique()) for shown in views.T) < 18


def test_longer_iterations_reach_the_optimizer(small_folder):
    trainer = make_trainer("cnn", small_folder)
    before = trainer.optimizers[0].iterations
    ablation.iterate_longer(trainer)
    assert before == 3 and trainer.optimizers[0].iterations == 5


def test_float32_reaches_the_optimizer(small_folder):
    trainer = make_trainer("cnn", small_folder, torch.bfloat16)
    ablation.use_float32(trainer)
    assert trainer.precision == trainer.optimizers[0].precision == torch.float32


def test_invalid_argument_is_rejected(capsys):
    assert run("--seeds", 0) == 2
    error = capsys.readouterr().err
    assert "--seeds" in error and "see python -m experiments.ablation --help" in error


def test_steps_without_kept_memory_leave_malloc_alone(small_folder, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "set_malloc", lambda **settings: calls.append(settings))
    monkeypatch.setattr(ablation, "time_steps", lambda trainer: 1.0)
    dataset = load_dataset(FASHION_MNIST, small_folder)
    ingredient = next(each for each in INGREDIENTS if each.own_process)
    ablation.time_step("ffn", dataset, ablation.COMPLETE)
    assert len(calls) == 1
    ablation.time_step("ffn", dataset, ingredient)
    assert len(calls) == 1
