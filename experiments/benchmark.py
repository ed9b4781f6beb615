"""Compare the speed of this project's training loop with those of other loops.

    python -m experiments.benchmark

Trains the classic loop of most tutorials and this project's in alternation, prints a table, and
writes benchmark.json and benchmark.png to the folder outputs/benchmark. Takes 10 to 25 minutes on
two CPU cores, and twice as long with --peers. This trains the same networks in a faster PyTorch
loop and in two libraries, which are skipped unless installed:

    pip install keras tensorflow-cpu jax flax optax
"""

import copy
import pickle
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from fashion.data import Dataset
from fashion.options import Parser
from fashion.recipe import Recipe
from fashion.runs import Run
from fashion.script import UserError, list_files, quiet, run
from fashion.style import GREY, colour, label, make_figure, save_figure, styled

import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.loops import BATCH_SIZE, PEERS, classic_loop, measure_accuracy, train_peer
from experiments.shared import record, start
from fashionmnist import train
from models import MODELS

EPOCHS = 10  # of the classic loop, and of this project's in alternation with it
OURS = "this project"


def main() -> None:
    """Measure all loops with all networks, print the tables and write the files."""
    parser = Parser("Compare training loops.", prog="-m experiments.benchmark")
    parser.add_argument("--peers", action="store_true", help="measure other loops too, on a CPU")
    args, dataset = start(parser, "benchmark")
    device = dataset.images.device
    if args.peers and device.type != "cpu":
        raise UserError("--peers compares loops on a CPU: add --device cpu")
    networks: dict[str, Any] = {}
    for name in MODELS:
        print(f"\n{name.upper()}: {EPOCHS} epochs of both loops in alternation", flush=True)
        networks[name] = compare(name, dataset, args.seeds, args.peers)
        print(f"Images per second, and time to {networks[name]['target']:.2%}")
        for loop, measured in networks[name]["loops"].items():
            print(f"  {loop:<24}{text(measured)}", flush=True)
    path = record(args.out / "benchmark.json", dataset, args.seeds, {"networks": networks})
    figure = draw_benchmark(networks, dataset.title)
    list_files([path, save_figure(figure, path.with_suffix(".png"))])


def compare(name: str, dataset: Dataset, seeds: int, peers: bool) -> dict[str, Any]:
    """Return speed and accuracy of a network in each loop; times leave out all evaluations."""
    network, recipe, quick_recipe = MODELS[name]
    torch.manual_seed(0)
    model = network(**quick_recipe.model)
    classic, theirs, ours = classic_loop(copy.deepcopy(model), dataset), [], []
    for epoch in range(EPOCHS):
        theirs.append(next(classic))
        ours.append(train_timed(name, replace(recipe, epochs=1), epoch, dataset).seconds)
    target = max(accuracy for _, accuracy in theirs)
    quick = [train_timed(name, quick_recipe, seed, dataset) for seed in range(seeds)]
    accuracies = [measure_accuracy(run.model, dataset) for run in quick]
    reached = statistics.mean(accuracies) >= target
    batch_size = min(recipe.batch_size, len(dataset.train))
    shown = len(dataset.train) // batch_size * batch_size  # without the incomplete batch
    loops = {
        OURS: {
            "images_per_second": shown / statistics.median(ours),  # of the full recipe
            "seconds_to_target": statistics.mean(run.seconds for run in quick) if reached else None,
            "accuracy": accuracies,  # with the quick recipe, for each seed
        },
        "classic loop": summarize(theirs, len(dataset.train), target),
    }
    for peer in PEERS if peers else ():
        print(f"{name.upper()}: {peer}", flush=True)
        limit = sum(seconds for seconds, _ in theirs)
        try:
            loops[peer] = measure_peer(peer, model, dataset, target, limit)
        except Exception as error:  # any, of a library; the other results are not to be lost
            print(f"  not measured: {error}")
    return {"target": target, "loops": loops}


def train_timed(name: str, recipe: Recipe, seed: int, dataset: Dataset) -> Run:
    """Train without validation, of which one image remains, so that only steps are timed."""
    with quiet():
        return train(name, recipe, seed, replace(dataset, validation=dataset.validation[:1]))


def measure_peer(
    peer: str, model: nn.Module, dataset: Dataset, target: float, limit: float
) -> dict[str, Any]:
    """Train in another loop, in its own process, to the target or for about `limit` seconds."""
    count = len(dataset.train) // BATCH_SIZE * BATCH_SIZE  # all batches have one shape
    dataset = replace(dataset, train=dataset.train[torch.randperm(len(dataset.train))[:count]])
    # As bytes: the shared memory that torch would use for tensors may be small.
    job = pickle.dumps((PEERS[peer], model, dataset, target, limit))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return summarize(pool.submit(train_peer, job).result(), count, target)


def summarize(epochs: list[tuple[float, float]], images: int, target: float) -> dict[str, Any]:
    """Return the speed of a loop and its time to the target, None if it does not reach that."""
    seconds, accuracies = zip(*epochs, strict=True)
    needed = next((i + 1 for i, accuracy in enumerate(accuracies) if accuracy >= target), None)
    return {
        "images_per_second": images / statistics.median(seconds),
        "seconds_to_target": sum(seconds[:needed]) if needed else None,
        "accuracy": accuracies,  # after each epoch
    }


def text(measured: dict[str, Any]) -> str:
    """Return speed and time of a loop for people."""
    seconds = measured["seconds_to_target"]
    reached = f"{seconds:,.1f} s" if seconds else "accuracy not reached"
    return f"{measured['images_per_second']:,.0f} images/s, {reached}"


@styled()
def draw_benchmark(networks: dict[str, Any], title: str) -> Figure:
    """Draw the speed of each network in each loop."""
    rows = sum(len(network["loops"]) + 2.5 for network in networks.values())
    figure = make_figure(f"Speed of training loops, {title}", 10, 0.45 * rows)
    note = "This project: images per second of the full recipe, time of a quick training"
    figure.supxlabel(note, fontsize=9, color=GREY)
    panels = figure.subplots(len(networks), squeeze=False).flat
    for axes, (name, network) in zip(panels, networks.items(), strict=True):
        loops = network["loops"]
        speeds = [measured["images_per_second"] for measured in loops.values()]
        colours = [colour(name) if loop == OURS else GREY for loop in loops]
        bars = axes.barh(list(loops), speeds, color=colours)
        axes.bar_label(bars, list(map(text, loops.values())), padding=4)
        axes.set_title(f"{label(name)}: speed, and time to {network['target']:.1%} test accuracy")
        axes.set(xlim=(0, 1.6 * max(speeds)), xlabel="images per second")  # room for the texts
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.invert_yaxis()
        axes.grid(visible=False)
    return figure


if __name__ == "__main__":
    sys.exit(run(main))
