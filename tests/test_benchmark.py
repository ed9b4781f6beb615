import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fashionmnist
from experiments import benchmark
from fashion import cli, report
from fashion.data import FASHION_MNIST, load_dataset
from fashion.files import RunError
from fashion.layers import Dropout
from fashion.muon import ITERATIONS
from fashion.training import Trainer
from models import MODELS

CPU = torch.device("cpu")
SMALL = {"ffn": {"widths": (64, 48, 36, 24)}, "cnn": {"channels": (2, 2, 2), "widths": (16, 12)}}


def run(*arguments):
    return cli.run(benchmark.parse_arguments, benchmark.main, [str(each) for each in arguments])


@pytest.fixture
def stub_script(tmp_path, monkeypatch):
    """Replace the main script: stub_script(code) sets what its stand-in executes."""
    script = tmp_path / "fashionmnist.py"
    monkeypatch.setattr(benchmark, "MAIN_SCRIPT", script)
    return script.write_text


def test_all_measurements_are_written_and_printed(small_folder, tmp_path, monkeypatch, capsys):
    # Processes of their own would not know the small files.
    monkeypatch.setattr(benchmark, "measure_start", lambda *_: 3.0)
    monkeypatch.setattr(benchmark, "measure_memory", lambda *_: None)
    for name, network in MODELS.items():
        for recipe in ("recipe", "quick_recipe"):
            small = replace(getattr(network, recipe), model=SMALL[name])
            monkeypatch.setattr(network, recipe, small)
    monkeypatch.setattr(benchmark, "MATRIX_SIZE", 64)
    monkeypatch.setattr(benchmark.peers, "PEERS", {"stand-in loop": None})
    peer = {"images_per_second": 7.0, "seconds_to_target": None, "test_accuracy": 0.5}
    monkeypatch.setattr(benchmark.peers, "measure", lambda *_: peer)
    out = tmp_path / "out"
    options = ["--device", "cpu", "--data-dir", small_folder, "--out", out]
    assert run("--peers", "--epochs", 2, *options) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"benchmark.json", "benchmark.png"}
    assert np.asarray(Image.open(out / "benchmark.png").convert("L")).std() > 10
    assert "not measured" in printed
    result = json.loads((out / "benchmark.json").read_text())
    for name in MODELS:
        figures = result[name]
        assert len(figures["ratios"]) == 2
        assert figures["optimizer_share_of_flops"] > 0 or MODELS[name].recipe.optimizer == "adamw"
        ours = figures["loops"]["this project"]
        assert len(ours["test_accuracies"]) == benchmark.QUICK_SEEDS
        assert ours["test_accuracy"] == pytest.approx(np.mean(ours["test_accuracies"]))
        reached = ours["test_accuracy"] >= figures["target_accuracy"]
        assert (figures["time_to_accuracy_ratio"] is not None) == reached
        assert (ours["seconds_to_target"] is not None) == reached
        for loop, measured in figures["loops"].items():
            row = f"{loop:<24}{measured['images_per_second']:>12,.0f}"
            assert row in printed
        assert list(figures["loops"]) == ["this project", "classic loop", "stand-in loop"]


def test_epochs_are_timed_without_validation(small_folder, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", None)
    recipe = replace(MODELS["ffn"].recipe, batch_size=50)
    dataset = load_dataset(FASHION_MNIST, small_folder)
    trainer = Trainer(MODELS["ffn"], dataset, recipe, 0, torch.float32)
    ticks = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert benchmark.time_epoch(trainer) == 2.5
    assert benchmark.time_epoch(trainer) == 1.0
    assert trainer.schedules[0].last_epoch == 2 * trainer.steps_per_epoch


def test_operations_of_the_ffn_match_a_count_by_hand():
    model = MODELS["ffn"]()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight.numel() for layer in layers]
    # Forward, gradient of the weights, and gradient of the inputs except for the images.
    assert benchmark.count_network_flops(model) == 2 * (3 * sum(weights) - weights[0])


def test_operations_of_a_step_include_the_optimizer(small_folder):
    recipe = replace(MODELS["ffn"].recipe, batch_size=100, optimizer="muon")
    dataset = load_dataset(FASHION_MNIST, small_folder)
    trainer = Trainer(MODELS["ffn"], dataset, recipe, 0, torch.float32)
    network = benchmark.count_network_flops(trainer.model)
    muon = 0
    for weight in trainer.optimizers[0].param_groups[0]["params"]:
        short, long = sorted(weight.shape)
        muon += ITERATIONS * (2 * short * short * long * 2 + 2 * short**3)
    assert benchmark.count_step_flops(trainer) == pytest.approx(network + muon / 100)


def test_peak_is_computed_from_the_fastest_product(monkeypatch):
    ticks = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # 4, 2 and 3 seconds
    monkeypatch.setattr(benchmark, "MATRIX_SIZE", 10)
    monkeypatch.setattr(benchmark, "PEAK_REPEATS", 3)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert benchmark.measure_peak(torch.float32, CPU) == 2 * 10**3 / 2


def test_start_ends_with_the_row_of_the_first_epoch(small_folder, tmp_path, stub_script, capsys):
    dataset = load_dataset(FASHION_MNIST, small_folder)
    recipe = replace(MODELS["ffn"].recipe, epochs=1)
    trainer = Trainer(MODELS["ffn"], dataset, recipe, 0, torch.float32)
    trainer.train_epoch()
    report.print_epoch(trainer)
    row = capsys.readouterr().out
    given = tmp_path / "arguments"
    stub_script(
        "import pathlib, sys, time\n"
        f"pathlib.Path({str(given)!r}).write_text('\\n'.join(sys.argv[1:]))\n"
        f"print({row!r}, end='', flush=True)\n"
        "time.sleep(1.5)\n"
    )
    start = time.perf_counter()
    seconds = benchmark.measure_start(small_folder, CPU)
    assert 0 < seconds < time.perf_counter() - start - 1
    arguments = fashionmnist.parse_arguments(given.read_text().splitlines())
    assert (arguments.models, arguments.epochs) == (["ffn"], 1)
    assert arguments.limit == MODELS["ffn"].recipe.batch_size
    assert arguments.data_dir == small_folder and arguments.device == "cpu"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report it")
def test_memory_is_the_peak_of_the_main_script(tmp_path, stub_script):
    ballast = b"a" * 400_000_000  # memory of the parent does not count
    measured = []
    for size in (10_000_000, 210_000_000):
        stub_script(f"pixels = b'a' * {size}\nprint('   1/1  ')\n")
        measured.append(benchmark.measure_memory(tmp_path, CPU))
    assert len(ballast) > measured[1]
    assert measured[1] - measured[0] == pytest.approx(200_000_000, rel=0.1)


def test_memory_is_not_measured_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert benchmark.measure_memory(tmp_path, CPU) is None


def test_failing_script_is_an_error(tmp_path, stub_script):
    stub_script("import sys\nprint('   1/1  ')\nsys.exit(3)")
    with pytest.raises(RunError, match=r"fashionmnist\.py failed with exit status 3"):
        benchmark.run_main_script(tmp_path, CPU)


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--nonsense"]])
def test_invalid_argument_is_rejected(arguments, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert arguments[0] in error and "see python -m experiments.benchmark --help" in error


def test_both_loops_train_on_the_same_images(small_folder):
    dataset = load_dataset(FASHION_MNIST, small_folder)
    classic = benchmark.ClassicLoop(MODELS["ffn"], small_folder, dataset)
    assert classic.image_count == len(dataset.train_indices) == 220
    labels = torch.tensor([label for _, label in classic.train_loader.dataset])
    assert labels.equal(dataset.labels[dataset.train_indices])


def test_classic_loop_uses_the_dropout_of_torch(small_folder):
    dataset = load_dataset(FASHION_MNIST, small_folder)
    model = benchmark.ClassicLoop(MODELS["cnn"], small_folder, dataset).model
    assert not any(isinstance(layer, Dropout) for layer in model.modules())


def test_more_epochs_than_the_recipe_has_keep_the_learning_rate_positive(small_folder, monkeypatch):
    monkeypatch.setattr(
        MODELS["ffn"], "recipe", replace(MODELS["ffn"].recipe, model=SMALL["ffn"], epochs=1)
    )
    monkeypatch.setattr(MODELS["ffn"], "quick_recipe", replace(MODELS["ffn"].recipe, epochs=1))
    rates, seeds = [], []

    def time_epoch(trainer):
        seeds.append(trainer.seed)
        for images, labels in trainer.batches():
            trainer.step(images, labels)
            rates.append(trainer.learning_rate)
        return 1.0

    monkeypatch.setattr(benchmark, "time_epoch", time_epoch)
    dataset = load_dataset(FASHION_MNIST, small_folder)
    arguments = SimpleNamespace(epochs=3, data_dir=small_folder, peers=False)
    benchmark.compare_loops("ffn", dataset, torch.float32, arguments)
    assert seeds == [0, 0, 0, *range(benchmark.QUICK_SEEDS)]
    assert len(rates) == len(seeds) and min(rates) > 0
