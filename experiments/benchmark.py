"""Compare the speed of this project's training loop with the classic one.

    python -m experiments.benchmark

Prints a table and writes benchmark.json and benchmark.png to the folder outputs. Takes 10 to 25
minutes on two CPU cores, mostly for the classic loop.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from experiments import peers
from experiments.timing import SEED, add_options, load_data, use_torch_dropout
from fashion import cli, plots
from fashion.data import IMAGE_SIZE, Dataset
from fashion.environment import choose_precision, collect_versions, describe_device, synchronize
from fashion.evaluation import evaluate, predict_logits
from fashion.files import RunError, UsageError, write_json
from fashion.layers import Network
from fashion.training import Trainer
from models import MODELS, STYLES

MAIN_SCRIPT = Path(__file__).parents[1] / "fashionmnist.py"

# The classic loop, as in most tutorials on this dataset.
CLASSIC_BATCH_SIZE = 64
CLASSIC_LEARNING_RATE = 1e-3  # Adam's default
CLASSIC_EPOCHS = 10

QUICK_SEEDS = 3  # a single one would reach the classic loop's accuracy by chance, or miss it

# Runs a command and prints its peak memory. The process that runs it has to be small: on Linux, the
# peak of a child is at least that of its parent.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""

MATRIX_SIZE = 2048  # large enough to hide the cost of everything but the product
PEAK_REPEATS = 10


class ClassicLoop:
    """The training loop of most tutorials: Dataset, DataLoader, torch's layers, float32 and Adam.

    Args:
        network: Class of the model, which has the size and dropout of its quick recipe.
        data_dir: Folder with FashionMNIST/raw.
        dataset: The same data; provides the training images, the device and pixel statistics.

    Attributes:
        seconds: Time of each epoch so far.
        accuracies: Test accuracy after each epoch.
    """

    def __init__(self, network: type[Network], data_dir: Path, dataset: Dataset) -> None:
        torch.manual_seed(SEED)
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((dataset.mean,), (dataset.std,))]
        )
        train, test = (datasets.FashionMNIST(data_dir, part, transform) for part in (True, False))
        train = Subset(train, dataset.train_indices.tolist())  # without the validation images
        self.image_count = len(train)
        self.train_loader = DataLoader(train, CLASSIC_BATCH_SIZE, shuffle=True)
        self.test_loader = DataLoader(test, CLASSIC_BATCH_SIZE)
        self.device = dataset.images.device
        self.model = network(**network.quick_recipe.model).to(self.device)
        use_torch_dropout(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=CLASSIC_LEARNING_RATE)
        self.loss = nn.CrossEntropyLoss()
        self.seconds: list[float] = []
        self.accuracies: list[float] = []

    @property
    def best(self) -> tuple[float, float]:
        """The highest test accuracy so far, and the training time in which it was reached."""
        accuracy = max(self.accuracies)
        return accuracy, sum(self.seconds[: self.accuracies.index(accuracy) + 1])

    def train_epoch(self) -> float:
        """Train and test one epoch; return the number of training images per second."""
        start = time.perf_counter()
        self.model.train()
        for images, labels in self.train_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            self.loss(self.model(images), labels).backward()
            self.optimizer.step()
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)
        self.accuracies.append(self.test_accuracy())
        return self.image_count / self.seconds[-1]

    @torch.no_grad()
    def test_accuracy(self) -> float:
        """Return the fraction of test images that are classified correctly."""
        self.model.eval()
        correct = [
            self.model(images.to(self.device)).argmax(1).cpu() == labels
            for images, labels in self.test_loader
        ]
        return torch.cat(correct).float().mean().item()


def main(arguments: argparse.Namespace) -> None:
    """Measure everything, print the table and write the files."""
    dataset = load_data(arguments)
    device = dataset.images.device
    if arguments.peers and device.type != "cpu":
        raise UsageError("--peers compares loops on the CPU: add --device cpu")
    precision = choose_precision("auto", device)
    result: dict[str, Any] = {
        "device": describe_device(device),
        "precision": str(precision).removeprefix("torch."),
        "versions": collect_versions(),
        "classic_epochs": arguments.epochs,
        "peak_flops": {
            str(dtype).removeprefix("torch."): measure_peak(dtype, device)
            for dtype in (torch.float32, precision)
        },
        "start_seconds": measure_start(arguments.data_dir, device),
        "peak_memory_bytes": measure_memory(arguments.data_dir, device),
    }
    for name in MODELS:
        print(f"{name.upper()}: {arguments.epochs} epochs of both loops in alternation")
        result[name] = compare_loops(name, dataset, precision, arguments)
    print_table(result)
    files = [write_json(arguments.out / "benchmark.json", result), arguments.out / "benchmark.png"]
    figure = plots.draw_benchmark({name: result[name] for name in MODELS}, STYLES)
    plots.save_figure(figure, files[-1])
    cli.print_files(files)


def measure_peak(precision: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations per second of a large square matrix product."""
    first, second = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(precision) for _ in range(2)
    )
    times = []
    for _ in range(PEAK_REPEATS):
        start = time.perf_counter()
        first @ second
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * MATRIX_SIZE**3 / min(times)


def count_network_flops(model: nn.Module) -> float:
    """Return the floating-point operations per image of a forward and backward pass.

    Only matrix products and convolutions count.
    """
    images, labels = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() / len(images)


def count_step_flops(trainer: Trainer) -> float:
    """Return the same for a whole training step, which includes the optimizers' products."""
    images, labels = next(trainer.batches())
    with FlopCounterMode(display=False) as counter:
        trainer.step(images, labels)
    return counter.get_total_flops() / trainer.batch_size


def compare_loops(
    name: str, dataset: Dataset, precision: torch.dtype, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run both loops in alternation, then the quick recipe, which should be as accurate.

    All times exclude evaluation. Throughput is the median over the epochs; time and accuracy of the
    quick recipe are means over QUICK_SEEDS seeds.
    """
    network = MODELS[name]
    recipe = network.recipe
    make_trainer = partial(Trainer, network, dataset, precision=precision)
    classic = ClassicLoop(network, arguments.data_dir, dataset)
    # The learning rate must not fall below zero if the classic loop runs longer than the recipe.
    epochs = max(recipe.epochs, arguments.epochs)
    ours = make_trainer(recipe=replace(recipe, epochs=epochs), seed=SEED)
    speeds: list[tuple[float, float]] = []
    for _ in cli.progress_bar(range(arguments.epochs), name, unit="epoch"):
        speeds.append(
            (classic.train_epoch(), ours.steps_per_epoch * ours.batch_size / time_epoch(ours))
        )
    classic_speed, our_speed = map(statistics.median, zip(*speeds, strict=True))
    ratios = [mine / theirs for theirs, mine in speeds]

    quick = [
        time_training(make_trainer(recipe=network.quick_recipe, seed=seed))
        for seed in range(SEED, SEED + QUICK_SEEDS)
    ]
    accuracies = [accuracy for _, accuracy, _ in quick]
    quick_seconds, accuracy, evaluation_seconds = map(statistics.mean, zip(*quick, strict=True))
    target, classic_seconds = classic.best
    loops: dict[str, dict[str, Any] | None] = {
        "this project": {
            "images_per_second": our_speed,
            "seconds_to_target": quick_seconds if accuracy >= target else None,
            "test_accuracy": accuracy,
            "test_accuracies": accuracies,
            "reached": sum(value >= target for value in accuracies),  # of QUICK_SEEDS trainings
        },
        "classic loop": {
            "images_per_second": classic_speed,
            "seconds_to_target": classic_seconds,
            "test_accuracy": target,
            "test_accuracies": classic.accuracies,  # after each epoch
        },
    }
    for peer in peers.PEERS if arguments.peers else ():
        print(f"{name.upper()}: {peer}", flush=True)
        try:
            loops[peer] = peers.measure(
                peer, name, dataset, precision, target, sum(classic.seconds)
            )
        except Exception as error:  # of a library; the other results are not to be lost
            print(f"{peer} failed: {error}")
            loops[peer] = None
    network_flops = count_network_flops(network(**recipe.model))
    flops = count_step_flops(make_trainer(recipe=recipe, seed=SEED))
    return {
        "target_accuracy": target,  # of the test images, the classic loop's highest
        "loops": loops,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "quick_seconds": quick_seconds,
        "time_to_accuracy_ratio": (quick_seconds / classic_seconds if accuracy >= target else None),
        "flops_per_image": flops,
        "optimizer_share_of_flops": 1 - network_flops / flops,
        "share_of_peak": flops * our_speed / measure_peak(precision, dataset.images.device),
        "evaluation_seconds": evaluation_seconds,
    }


def time_epoch(trainer: Trainer) -> float:
    """Train one epoch without validation and return its time in seconds."""
    start = time.perf_counter()
    for images, labels in trainer.batches():
        trainer.step(images, labels)
    synchronize(trainer.device)
    return time.perf_counter() - start


def time_training(trainer: Trainer) -> tuple[float, float, float]:
    """Train to the end; return the seconds, the test accuracy and the seconds to evaluate it."""
    seconds = sum(time_epoch(trainer) for _ in range(trainer.recipe.epochs))
    dataset = trainer.dataset
    start = time.perf_counter()
    logits = predict_logits(trainer.averaged, dataset.test_images, dataset.mean, dataset.std)
    accuracy = evaluate(logits, dataset.test_labels).accuracy
    return seconds, accuracy, time.perf_counter() - start


def measure_start(data_dir: Path, device: torch.device) -> float:
    """Return the seconds from starting the main script to the end of an epoch of one step.

    This is slightly more than the time to the first step: it includes a validation and the file to
    resume from.
    """
    name, network = next(iter(MODELS.items()))
    limit = str(network.recipe.batch_size)
    return run_main_script(data_dir, device, "--models", name, "--limit", limit)[0]


def measure_memory(data_dir: Path, device: torch.device) -> int | None:
    """Return the peak main memory in bytes of the main script with one epoch of each model.

    None on Windows, where Python does not report it.
    """
    if sys.platform == "win32":
        return None
    launcher = (sys.executable, "-c", LAUNCHER)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return unit * int(run_main_script(data_dir, device, launcher=launcher)[1])


def run_main_script(
    data_dir: Path, device: torch.device, *options: str, launcher: Sequence[str] = ()
) -> tuple[float, str]:
    """Run fashionmnist.py for one epoch in a process and folder of its own.

    Args:
        data_dir: Folder of the dataset.
        device: What to train on.
        *options: Further options of the script.
        launcher: Command that runs the one given after it.

    Returns:
        The seconds from its start to the end of the epoch, of the last model, and the last line
        that was printed.

    Raises:
        RunError: If it fails.
    """
    seconds, line = None, ""
    with tempfile.TemporaryDirectory() as out:
        command = [
            *launcher,
            sys.executable,
            str(MAIN_SCRIPT),
            "--data-dir",
            str(data_dir),
            "--out",
            out,
        ]
        command += ["--device", device.type, "--epochs", "1", *options]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if line.lstrip().startswith("1/1 "):
                    seconds = time.perf_counter() - start
    if process.returncode or seconds is None:
        raise RunError(f"{MAIN_SCRIPT.name} failed with exit status {process.returncode}")
    return seconds, line


def print_table(result: dict[str, Any]) -> None:
    """Print all measurements with one column per model."""
    models = {name: result[name] for name in MODELS}
    peaks = ", ".join(
        f"{speed / 1e12:.2f} TFLOP/s in {precision}"
        for precision, speed in result["peak_flops"].items()
    )
    print(
        f"\n{result['device']}, training in {result['precision']}; matrix products reach {peaks}\n"
        f"{'':<44}{''.join(f'{name.upper():>12}' for name in models)}"
    )
    for title, key, form in (
        ("images/s, ratio to the classic loop", "ratio", "{:.1f} x"),
        ("share of peak matrix-product throughput", "share_of_peak", "{:.0%}"),
        ("  optimizer's share of the operations", "optimizer_share_of_flops", "{:.0%}"),
        ("training with the quick recipe", "quick_seconds", "{:.1f} s"),
        ("  share of the classic loop's time", "time_to_accuracy_ratio", "{:.1%}"),
        ("evaluation of the test images", "evaluation_seconds", "{:.2f} s"),
    ):
        cells = (
            "not reached" if model[key] is None else form.format(model[key])
            for model in models.values()
        )
        print(f"{title:<44}{''.join(f'{cell:>12}' for cell in cells)}")
    memory = result["peak_memory_bytes"]
    text = "not measured" if memory is None else f"{memory / 1e9:.2f} GB"
    start = f"{result['start_seconds']:.1f} s"
    print(f"{'start, first step and its validation':<46}{start:>10}")
    print(f"{'peak memory, all models trained':<44}{text:>12}")
    for name, model in models.items():
        print_loops(name, model)


def print_loops(name: str, model: dict[str, Any]) -> None:
    """Print a model's speed in every loop, and its time to the classic loop's accuracy."""
    target = f"seconds to {model['target_accuracy']:.2%}"
    print(f"\n{name.upper():<24}{'images/s':>12}{target:>20}{'accuracy':>12}")
    for loop, measured in model["loops"].items():
        if measured is None:
            print(f"{loop:<24}{'not measured':>12}")
            continue
        seconds = measured["seconds_to_target"]
        reached = "not reached" if seconds is None else f"{seconds:.1f}"
        print(
            f"{loop:<24}{measured['images_per_second']:>12,.0f}{reached:>20}"
            f"{measured['test_accuracy']:>12.2%}"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.benchmark", "Compare this project's training loop with the classic one."
    )
    parser.add_argument(
        "--epochs",
        type=cli.number_type(int, 1, 1000),
        default=CLASSIC_EPOCHS,
        metavar="N",
        help="epochs of the classic loop (default: %(default)s)",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also measure the same networks in a faster PyTorch loop and, where installed, in "
        "Keras and Flax",
    )
    add_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
