import json
from dataclasses import replace

from fashion.evaluation import evaluate

import pytest
from torch import nn

from experiments import ablation, shared
from fashionmnist import train
from models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_changes_differ_from_both_recipes_and_fit_the_network(name):
    model = MODELS[name]
    for recipe in (model.recipe, model.quick):
        first, *changes = ablation.list_changes(model, recipe)
        assert first == {} and len(changes) > 9
        for settings in changes:
            assert all(value != getattr(recipe, key) for key, value in settings.items())
            model.network(**settings.get("model", {}))
    plain = ablation.list_changes(model._replace(network=nn.Flatten), model.recipe)
    assert not any("model" in settings for settings in plain)


def test_table_compares_validation_accuracies(tiny, tmp_path, monkeypatch, call):
    small = replace(MODELS["ffn"].recipe, epochs=1, batch_size=100, model={"widths": (32, 16)})
    monkeypatch.setattr(ablation, "MODELS", {"ffn": MODELS["ffn"]._replace(recipe=small)})
    changes = {"learning_rate": 0.001, "flip": False, "model": {"dropout": 0}}
    monkeypatch.setattr(ablation, "list_changes", lambda *_: [{}, changes])
    monkeypatch.setattr(shared, "load", lambda *_: tiny)
    status, out, _ = call(ablation, "--seeds", 2, "--device", "cpu", "--out", tmp_path)
    assert status == 0
    result = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    changed = replace(small, **changes | {"model": {"widths": (32, 16), "dropout": 0}})
    expected = [
        [evaluate(train("ffn", recipe, seed, tiny).model, tiny)[1] for seed in (0, 1)]
        for recipe in (small, changed)
    ]
    assert [row["accuracy"]["values"] for row in result["ffn"]] == expected
    mean = sum(expected[1]) / 2 - sum(expected[0]) / 2
    assert result["ffn"][1]["difference"]["mean"] == pytest.approx(mean)
    _, row = out.split("learning rate 0.001, flip False, dropout 0 ")
    assert f"{50 * sum(expected[1]):.2f} ±" in row and f"{100 * mean:+.2f} ±" in row
