"""Measure this project's training loop against the classic one, and how its cost grows.

    python benchmark.py

Prints a table and writes benchmark.json and benchmark.png to the folder outputs. It takes under ten
minutes on two CPU cores, most of them the classic loop's.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from tqdm import tqdm

import plots
from data import FASHION_MNIST, IMAGE_SIZE, Dataset, load_dataset
from fashionmnist import (
    Parser,
    collect_versions,
    describe,
    number_type,
    print_files,
    run_script,
    warn,
    write_json,
)
from files import WorldFault, prepare_folder
from training import (
    MODELS,
    RECIPES,
    Recipe,
    Trainer,
    choose_device,
    choose_precision,
    evaluate,
    predict_logits,
)

# The classic loop: what most tutorials on this dataset share.
CLASSIC_BATCH_SIZE = 64
CLASSIC_LEARNING_RATE = 1e-3  # Adam's default
CLASSIC_EPOCHS = 10
# What our recipes change to reach the classic loop's accuracy soon: few epochs, in which no image
# is learned by heart, so that what is against that (augmentation, dropout) is only in the way.
SPRINTS: dict[str, dict[str, Any]] = {
    "ffn": {"epochs": 8, "learning_rate": 0.006, "shifted": 0.0, "flip": False},
    "cnn": {
        "model": {**RECIPES["cnn"].model, "dropout": 0.1},
        "epochs": 3,
        "learning_rate": 0.02,
        "shifted": 0.0,
        "flip": False,
    },
}

SEED = 0
NETWORK_TIMEOUT = 20  # seconds, as in fashionmnist.py
WARM_UP_STEPS = 3  # the first steps set up memory and kernels
MATRIX_SIZE = 2048  # of the product that counts as the peak: large enough to hide all else
PEAK_REPEATS = 10
GROWTH_IMAGES = (6_000, 15_000, 30_000, 55_000)
GROWTH_FACTORS = (0.5, 1, 2, 4)  # of all widths but the input's and the output's
GROWTH_STEPS = 6  # measured at each width, from which an epoch is reckoned


class ClassicLoop:
    """The training loop that tutorials write: Dataset, DataLoader, float32, Adam.

    Attributes:
        model: of the same class and size as ours.
        seconds: time of each epoch so far.
    """

    def __init__(self, name: str, data_dir: Path, dataset: Dataset) -> None:
        torch.manual_seed(SEED)
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((dataset.mean,), (dataset.std,))]
        )
        parts = (datasets.FashionMNIST(data_dir, train, transform) for train in (True, False))
        self.train_loader, self.test_loader = (
            DataLoader(part, batch_size=CLASSIC_BATCH_SIZE, shuffle=shuffle)
            for part, shuffle in zip(parts, (True, False), strict=True)
        )
        self.device = dataset.images.device
        self.model = MODELS[name](**RECIPES[name].model).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=CLASSIC_LEARNING_RATE)
        self.loss = nn.CrossEntropyLoss()
        self.seconds: list[float] = []

    def train_epoch(self) -> float:
        """Train one epoch and return its images per second."""
        start = time.perf_counter()
        self.model.train()
        for images, labels in self.train_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            self.loss(self.model(images), labels).backward()
            self.optimizer.step()
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)
        return len(self.train_loader.dataset) / self.seconds[-1]

    @torch.no_grad()
    def test_accuracy(self) -> float:
        """Return the fraction of test images that are classified correctly."""
        self.model.eval()
        correct = 0
        for images, labels in self.test_loader:
            logits = self.model(images.to(self.device))
            correct += (logits.argmax(1).cpu() == labels).sum().item()
        return correct / len(self.test_loader.dataset)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see fashionmnist.run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, data, peak, both loops, growth, table, files.

    Raises:
        UserMistake, WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    prepare_folder(arguments.out)
    dataset = load_real_data(arguments.data_dir, device)
    result: dict[str, Any] = {
        "device": describe(device),
        "precision": str(precision).removeprefix("torch."),
        "versions": collect_versions(),
        "classic_epochs": arguments.epochs,
        "peak_flops": {
            str(kind).removeprefix("torch."): measure_peak(kind, device)
            for kind in (torch.float32, precision)
        },
        "start_seconds": measure_start(arguments.data_dir, device),
        "peak_memory_bytes": measure_memory(arguments.data_dir, device),
    }
    for name in MODELS:
        print(f"{name.upper()}: {arguments.epochs} epochs of the classic loop, ours in between")
        result[name] = compare_loops(name, dataset, precision, arguments)
        result[name]["growth"] = measure_growth(name, dataset, precision)
    print_table(result)
    files = [
        write_json(arguments.out / "benchmark.json", result),
        arguments.out / "benchmark.png",
    ]
    plots.save_figure(plots.draw_benchmark({name: result[name] for name in MODELS}), files[-1])
    print_files(files)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown, malformed or out of range.
    """
    parser = Parser(
        prog="benchmark.py",
        description="Measure the training loop against the classic one.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--epochs",
        type=number_type(int, 1, 1000),
        default=CLASSIC_EPOCHS,
        help="of the classic loop (default: %(default)s)",
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every measuring script has."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="(default: %(default)s, the fastest there is)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder that holds, or will hold, FashionMNIST/raw (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder for what is written (default: %(default)s)",
    )


def load_real_data(data_dir: Path, device: torch.device) -> Dataset:
    """Return Fashion-MNIST on the device; there is no measuring on a stand-in.

    Raises:
        WorldFault: see load_dataset.
    """
    return load_dataset(FASHION_MNIST, data_dir, None, NETWORK_TIMEOUT, None, warn).to(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given; a CPU always has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def measure_peak(precision: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations a second of a large square matrix product."""
    one, other = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(precision) for _ in range(2)
    )
    times = []
    for _ in range(PEAK_REPEATS):
        start = time.perf_counter()
        one @ other
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * MATRIX_SIZE**3 / min(times)


def count_network_flops(model: nn.Module) -> float:
    """Return the floating-point operations of products, forward and backward, for one image."""
    images, labels = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() / len(images)


def count_step_flops(trainer: Trainer) -> float:
    """Return the same of a whole training step, with the optimizers' own products, an image."""
    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        next(trainer.train_steps())
    return counter.get_total_flops() / trainer.batch_size


def compare_loops(
    name: str, dataset: Dataset, precision: torch.dtype, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run both loops in alternation, then ours alone to the accuracy that the classic one reached.

    Both are timed without any evaluation. Throughput is the median over the epochs.
    """
    classic = ClassicLoop(name, arguments.data_dir, dataset)
    make_trainer = partial(Trainer, name, dataset, seed=SEED, precision=precision)
    ours = make_trainer(recipe=RECIPES[name])
    speeds: list[tuple[float, float]] = []
    for _ in tqdm(range(arguments.epochs), name, unit="epoch", leave=False, disable=None):
        speeds.append((classic.train_epoch(), ours.steps * ours.batch_size / time_epoch(ours)))
    classic_speed, our_speed = map(statistics.median, zip(*speeds, strict=True))
    ratios = [mine / theirs for theirs, mine in speeds]

    sprint = make_trainer(recipe=replace(RECIPES[name], **SPRINTS[name]))
    sprint_seconds = sum(time_epoch(sprint) for _ in range(sprint.recipe.epochs))
    accuracy, seconds = evaluate_test(sprint)
    goal = classic.test_accuracy()
    share = sprint_seconds / sum(classic.seconds)
    network_flops = count_network_flops(MODELS[name](**RECIPES[name].model))
    flops = count_step_flops(make_trainer(recipe=RECIPES[name]))
    return {
        "classic_images_per_second": classic_speed,
        "images_per_second": our_speed,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "classic_seconds": sum(classic.seconds),
        "classic_test_accuracy": goal,
        "sprint": SPRINTS[name],
        "sprint_seconds": sprint_seconds,
        "sprint_test_accuracy": accuracy,
        # Ours over the classic one's; None where the accuracy was not reached.
        "time_to_accuracy_ratio": share if accuracy >= goal else None,
        "flops_per_image": flops,
        "optimizer_share_of_flops": 1 - network_flops / flops,
        "share_of_peak": flops * our_speed / measure_peak(precision, dataset.images.device),
        "evaluation_seconds": seconds,
    }


def time_epoch(trainer: Trainer) -> float:
    """Train one epoch without validation and return its seconds."""
    trainer.model.train()
    start = time.perf_counter()
    for _ in trainer.train_steps():
        pass
    synchronize(trainer.device)
    return time.perf_counter() - start


def evaluate_test(trainer: Trainer) -> tuple[float, float]:
    """Return the accuracy on the test images, and the seconds that the evaluation took."""
    dataset = trainer.dataset
    start = time.perf_counter()
    logits = predict_logits(
        trainer.averaged, dataset.test_images, dataset.mean, dataset.std, trainer.precision
    )
    accuracy = evaluate(logits, dataset.test_labels).accuracy
    return accuracy, time.perf_counter() - start


def measure_growth(name: str, dataset: Dataset, precision: torch.dtype) -> dict[str, Any]:
    """Return the seconds of an epoch by number of images and by width of the network."""
    recipe = RECIPES[name]
    by_images = {}
    for count in GROWTH_IMAGES:
        part = replace(dataset, train_indices=dataset.train_indices[:count])
        trainer = Trainer(name, part, recipe, SEED, precision)
        by_images[len(part.train_indices)] = trainer.steps * time_steps(trainer, trainer.steps)
    by_width = {}
    for factor in GROWTH_FACTORS:
        wider = Trainer(name, dataset, widen(recipe, factor), SEED, precision)
        by_width[factor] = wider.steps * time_steps(wider, GROWTH_STEPS)
    return {"seconds_by_images": by_images, "seconds_by_width": by_width}


def time_steps(trainer: Trainer, count: int) -> float:
    """Return the median seconds of a step of a training that has just begun."""
    trainer.model.train()
    times = []
    for _ in range(-(-(count + WARM_UP_STEPS) // trainer.steps)):
        start = time.perf_counter()
        for _ in trainer.train_steps():
            synchronize(trainer.device)
            times.append(time.perf_counter() - start)
            if len(times) == count + WARM_UP_STEPS:
                break
            start = time.perf_counter()
    return statistics.median(times[WARM_UP_STEPS:])


def widen(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with all the network's widths multiplied."""
    widths = {
        key: tuple(round(factor * width) for width in value) if isinstance(value, tuple) else value
        for key, value in recipe.model.items()
    }
    return replace(recipe, model=widths)


def measure_start(data_dir: Path, device: torch.device) -> float:
    """Return the seconds from the command to the end of a first epoch of one single step.

    That is more than to the first step, by one validation and one file to resume from.

    Raises:
        WorldFault: when the main script fails.
    """
    start = time.perf_counter()
    limit = str(RECIPES["ffn"].batch_size)
    for line in run_main_script(data_dir, device, "--models", "ffn", "--limit", limit):
        if line.lstrip().startswith("1/1 "):
            seconds = time.perf_counter() - start
    return seconds


def measure_memory(data_dir: Path, device: torch.device) -> int:
    """Return the most bytes of main memory that the main script held, over one epoch of each model.

    Raises:
        WorldFault: when the main script fails.
    """
    for _ in run_main_script(data_dir, device):
        pass
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def run_main_script(data_dir: Path, device: torch.device, *options: str) -> Iterator[str]:
    """Run fashionmnist.py for one epoch in a process and folder of its own; yield what it prints.

    Raises:
        WorldFault: when it fails.
    """
    script = Path(__file__).with_name("fashionmnist.py")
    with tempfile.TemporaryDirectory() as out:
        places = ["--data-dir", data_dir, "--out", out, "--device", device.type, "--epochs", "1"]
        with subprocess.Popen(
            [sys.executable, script, *places, *options], stdout=subprocess.PIPE, text=True
        ) as process:
            yield from process.stdout
    if process.returncode:
        raise WorldFault(f"{script.name} failed with exit status {process.returncode}")


def print_table(result: dict[str, Any]) -> None:
    """Print what was measured, one column a model."""
    models = {name: result[name] for name in MODELS}
    peaks = ", ".join(
        f"{speed / 1e12:.2f} in {kind}" for kind, speed in result["peak_flops"].items()
    )
    print(
        f"\nOn {result['device']}, in {result['precision']}; a matrix product reaches, in TFLOP/s, "
        f"{peaks}\n{'':<44}{''.join(f'{name.upper():>12}' for name in models)}"
    )
    epochs = result["classic_epochs"]
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("classic loop, images/s", lambda m: f"{m['classic_images_per_second']:,.0f}"),
        ("ours, images/s", lambda m: f"{m['images_per_second']:,.0f}"),
        ("ratio", lambda m: f"{m['ratio']:.1f} x"),
        ("share of the matrix peak", lambda m: f"{m['share_of_peak']:.0%}"),
        ("  of it in the optimizer", lambda m: f"{m['optimizer_share_of_flops']:.0%}"),
        (f"classic loop, {epochs} epochs", lambda m: f"{m['classic_seconds']:.1f} s"),
        ("  test accuracy", lambda m: f"{m['classic_test_accuracy']:.2%}"),
        ("ours, a few epochs", lambda m: f"{m['sprint_seconds']:.1f} s"),
        ("  test accuracy", lambda m: f"{m['sprint_test_accuracy']:.2%}"),
        (
            "share of the classic loop's time",
            lambda m: (
                f"{m['time_to_accuracy_ratio']:.1%}"
                if m["time_to_accuracy_ratio"]
                else "not reached"
            ),
        ),
        ("evaluation of the test images", lambda m: f"{m['evaluation_seconds']:.2f} s"),
    )
    for title, text in rows:
        print(f"{title:<44}{''.join(f'{text(model):>12}' for model in models.values())}")
    print(
        f"{'from the command to the first epoch of a step':<44}{result['start_seconds']:>10.1f} s\n"
        f"{'peak memory, both models trained':<44}{result['peak_memory_bytes'] / 1e9:>9.2f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
