import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import ablation
from ablation import INGREDIENTS
from layers import Dropout
from training import MODELS, RECIPES, Trainer, predict_logits


def make_trainer(name, dataset):
    recipe = replace(RECIPES[name], epochs=1, batch_size=50)
    return Trainer(name, dataset, recipe, 0, torch.float32)


def test_ablation_writes_a_row_of_each_ingredient(small_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "EPOCHS", {"ffn": 1, "cnn": 1})
    monkeypatch.setattr(ablation, "TIMING_ROUNDS", 1)
    monkeypatch.setattr(ablation, "GROWTH_STEPS", 1)
    out = tmp_path / "out"
    assert ablation.main(["--seeds", "2", "--data-dir", str(small_folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "ablation.json").read_text())
    for name in MODELS:
        expected = [each for each in INGREDIENTS if name in each.models]
        rows = result[name]
        assert list(rows) == ["nothing, the whole recipe", *(each.name for each in expected)]
        whole = rows.pop("nothing, the whole recipe")["accuracy"]["values"]
        for ingredient in expected:
            row = rows[ingredient.name]
            assert row["time_ratio"] > 0 and ingredient.name in printed
            assert ("accuracy" in row) == ingredient.learns
            if ingredient.learns:
                without = row["accuracy"]["values"]
                differences = [b - a for a, b in zip(whole, without, strict=True)]
                assert row["difference"]["values"] == pytest.approx(differences)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_setting_left_out_is_one_that_the_recipe_has(name):
    for ingredient in INGREDIENTS:
        if name in ingredient.models:
            assert ingredient.settings or ingredient.change
            for setting, value in ingredient.settings.items():
                assert getattr(RECIPES[name], setting) != value


def test_torch_dropout_takes_the_place_of_ours(tiny_dataset):
    trainer = make_trainer("ffn", tiny_dataset)
    ablation.use_torch_dropout(trainer)
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, nn.Dropout)]
    assert len(layers) == 4 and not any(isinstance(layer, Dropout) for layer in layers)


def test_pooling_last_gives_the_same_answers(tiny_dataset):
    trainer = make_trainer("cnn", tiny_dataset)
    arguments = tiny_dataset.images[:20], 0.3, 0.3, torch.float32
    first = predict_logits(trainer.model, *arguments)
    ablation.pool_last(trainer)
    # Batch norm with a positive scale, and ReLU, keep the order of values, and so the largest.
    assert torch.allclose(predict_logits(trainer.model, *arguments), first, atol=1e-5)


def test_float32_reaches_the_optimizer(tiny_dataset):
    trainer = Trainer("cnn", tiny_dataset, RECIPES["cnn"], 0, torch.bfloat16)
    ablation.use_float32(trainer)
    assert trainer.precision == trainer.optimizers[0].precision == torch.float32
