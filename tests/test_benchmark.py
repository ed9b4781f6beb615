import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import benchmark
from files import WorldFault
from muon import ITERATIONS
from training import MODELS, RECIPES, Trainer

KEYS = {
    "classic_images_per_second",
    "images_per_second",
    "ratio",
    "time_to_accuracy_ratio",
    "share_of_peak",
}
CPU = torch.device("cpu")


@pytest.fixture
def small_benchmark(small_folder, tmp_path, monkeypatch, capsys):
    """A whole benchmark on small files, in little time: its folder and what it printed.

    What it starts as processes of their own is left out: they would not know the small files.
    """
    monkeypatch.setattr(benchmark, "measure_start", lambda *_: 3.0)
    monkeypatch.setattr(benchmark, "measure_memory", lambda *_: 10**9)
    monkeypatch.setattr(benchmark, "GROWTH_IMAGES", (100, 200))
    monkeypatch.setattr(benchmark, "GROWTH_FACTORS", (0.5, 1))
    monkeypatch.setattr(benchmark, "GROWTH_STEPS", 1)
    out = tmp_path / "out"
    arguments = ["--epochs", "2", "--data-dir", small_folder, "--out", out]
    assert benchmark.main([str(argument) for argument in arguments]) == 0
    return out, capsys.readouterr().out


def test_benchmark_writes_its_figures_and_prints_them(small_benchmark):
    out, printed = small_benchmark
    assert {path.name for path in out.iterdir()} == {"benchmark.json", "benchmark.png"}
    result = json.loads((out / "benchmark.json").read_text())
    for name in MODELS:
        figures = result[name]
        assert set(figures) > KEYS
        for key in KEYS - {"time_to_accuracy_ratio"}:
            assert figures[key] > 0
        assert len(figures["ratios"]) == 2
        assert set(figures["growth"]["seconds_by_images"]) == {"100", "200"}
        reached = figures["sprint_test_accuracy"] >= figures["classic_test_accuracy"]
        assert (figures["time_to_accuracy_ratio"] is not None) == reached
        assert f"{figures['images_per_second']:,.0f}" in printed
    assert np.asarray(Image.open(out / "benchmark.png").convert("L")).std() > 10


def test_operations_of_a_training_step_are_counted_by_hand_for_the_ffn():
    model = MODELS["ffn"](**RECIPES["ffn"].model)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight.numel() for layer in layers]
    # Forward, gradient of the weights, and of the inputs except for the images.
    expected = 2 * (3 * sum(weights) - weights[0])
    assert benchmark.count_network_flops(model) == expected


def test_operations_of_a_whole_step_include_the_optimizers(tiny_dataset):
    recipe = replace(RECIPES["ffn"], batch_size=100, optimizer="muon")
    trainer = Trainer("ffn", tiny_dataset, recipe, 0, torch.float32)
    network = benchmark.count_network_flops(trainer.model)
    muon = 0
    for weight in trainer.optimizers[0].param_groups[0]["params"]:
        short, long = sorted(weight.shape)
        muon += ITERATIONS * (2 * short * short * long * 2 + 2 * short**3)
    assert benchmark.count_step_flops(trainer) == pytest.approx(network + muon / 100)


@pytest.mark.parametrize("name", list(MODELS))
def test_step_is_timed_over_as_many_epochs_as_it_takes(tiny_dataset, name):
    recipe = replace(RECIPES[name], batch_size=100)
    trainer = Trainer(name, tiny_dataset, recipe, 0, torch.float32)
    assert trainer.steps == 5
    assert 0 < benchmark.time_steps(trainer, 8) < 60


@pytest.mark.parametrize("name", list(MODELS))
def test_widened_networks_keep_their_layers(name):
    recipe = RECIPES[name]
    wider = benchmark.widen(recipe, 2)
    assert wider.model["dropout"] == recipe.model["dropout"]
    assert wider.model["widths"] == tuple(2 * width for width in recipe.model["widths"])
    assert MODELS[name](**wider.model)


def test_start_is_timed_on_the_real_script_and_data(real_archives):
    assert 0 < benchmark.measure_start(real_archives, CPU) < 600


def test_script_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorldFault, match="exit status 1"):
        list(benchmark.run_main_script(tmp_path, CPU))


def test_peak_is_a_plausible_number_of_operations():
    assert 1e8 < benchmark.measure_peak(torch.float32, CPU) < 1e16


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--device", "tpu"], ["--nonsense"]])
def test_wrong_argument_is_refused(arguments, capsys):
    assert benchmark.main(arguments) == 2
    assert arguments[0] in capsys.readouterr().err
