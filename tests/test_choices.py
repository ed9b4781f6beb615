import json
from dataclasses import replace

import pytest
import torch

from experiments import choices
from fashion import cli
from fashion.data import FASHION_MNIST, load_dataset
from models import MODELS

SMALL = {"ffn": {"widths": (32, 24, 16, 12)}, "cnn": {"channels": (2, 2, 2), "widths": (16, 12)}}
ALL_CHANGES = [
    (kind, name, settings)
    for kind, models in choices.CHANGES.items()
    for name, changes in models.items()
    for settings in changes
]


def run(*arguments):
    return cli.run(choices.parse_arguments, choices.main, [str(each) for each in arguments])


def test_each_recipe_has_a_table_with_its_changes(small_folder, tmp_path, monkeypatch, capsys):
    for name, network in MODELS.items():
        for kind in choices.CHANGES:
            short = replace(getattr(network, kind), model=SMALL[name], epochs=1, batch_size=50)
            monkeypatch.setattr(network, kind, short)
    changes = {
        kind: dict.fromkeys(MODELS, ({"learning_rate": 0.001}, {"model": {"dropout": 0.4}}))
        for kind in choices.CHANGES
    }
    monkeypatch.setattr(choices, "CHANGES", changes)
    out = tmp_path / "out"
    assert run("--data-dir", small_folder, "--out", out) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "choices.json").read_text())
    for name in MODELS:
        for kind in changes:
            rows = result[name][kind]
            assert list(rows) == ["none", "learning rate 0.001", "dropout 0.4"]
            for row in rows.values():
                assert len(row["accuracy"]["values"]) == choices.SEEDS[kind]
                assert f"{row['accuracy']['mean']:.2%}" in printed
            losses = [row["loss"]["values"][0] for row in rows.values()]
            assert len(set(losses)) == 3


@pytest.mark.parametrize(("kind", "name", "settings"), ALL_CHANGES, ids=str)
def test_change_is_valid_and_differs_from_the_recipe(kind, name, settings):
    recipe = getattr(MODELS[name], kind)
    changed = recipe.change(**settings)
    for setting in settings.keys() - {"model"}:
        assert getattr(changed, setting) != getattr(recipe, setting)
    if "model" in settings:
        arguments = [MODELS[name](**each.model).arguments for each in (recipe, changed)]
        assert arguments[0] != arguments[1]


def test_other_arguments_of_the_network_are_kept():
    recipe = replace(MODELS["cnn"].recipe, model={"padding": (1, 1, 1), "dropout": 0.1})
    changed = recipe.change(epochs=3, model={"dropout": 0.2})
    assert changed.model == {"padding": (1, 1, 1), "dropout": 0.2} and changed.epochs == 3
    assert recipe.model == {"padding": (1, 1, 1), "dropout": 0.1}


def test_a_quarter_of_the_training_images_is_held_out(small_folder):
    dataset = choices.hold_out(load_dataset(FASHION_MNIST, small_folder))
    assert len(dataset.validation_indices) == 60 and len(dataset.train_indices) == 180
    both = torch.cat([dataset.validation_indices, dataset.train_indices])
    assert both.sort().values.equal(torch.arange(240))
    pixels = dataset.images[dataset.train_indices].double() / 255
    assert dataset.mean == pytest.approx(pixels.mean().item())


def test_invalid_argument_is_rejected(capsys):
    assert run("--seeds", 3) == 2
    assert "see python -m experiments.choices --help" in capsys.readouterr().err
