"""Leave out one ingredient of the recipes at a time and measure the effect.

    python -m experiments.ablation

Trains short versions of the recipes with several seeds each, prints a table and writes
ablation.json to the folder outputs. Accuracy is measured on the validation images; the test images
are not used. Takes a quarter of an hour to an hour on two CPU cores.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.timing import (
    SEED,
    add_options,
    call_in_own_process,
    load_data,
    time_steps,
    use_torch_dropout,
)
from fashion import cli, training
from fashion.comparison import compare_paired, summarize_values
from fashion.data import Dataset, view_count
from fashion.environment import choose_precision, collect_versions, describe_device
from fashion.files import write_json
from fashion.layers import ConvBlock, conv_blocks
from fashion.muon import Muon
from fashion.training import Trainer
from models import MODELS

# Short, to save time: they do not show what prevents overfitting.
EPOCHS = {"ffn": 15, "cnn": 2}
SEEDS = 3
TIMING_ROUNDS = 3  # in which a step without the ingredient alternates with a complete one
# The learning rate was chosen for smaller batches.
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3}


@dataclass(frozen=True)
class Ingredient:
    """One element of the recipes and how to train without it.

    Attributes:
        name: Its name in the table.
        settings: Settings of the recipe that leave it out.
        change: Changes a new trainer so that it does without the ingredient.
        learns: Whether it affects the accuracy; otherwise only the time of a step is measured.
        own_process: Whether its steps are timed in processes of their own, which malloc needs: the
            defaults of glibc adapt to the program and cannot be restored.
        models: Models whose training has it.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Trainer], None] | None = None
    learns: bool = True
    own_process: bool = False
    models: Sequence[str] = tuple(MODELS)


def use_float32(trainer: Trainer) -> None:
    """Compute all matrix products in float32."""
    trainer.precision = torch.float32
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, Muon):
            optimizer.precision = torch.float32


def use_contiguous(trainer: Trainer) -> None:
    """Store feature maps one after the other instead of pixel by pixel."""
    trainer.model.to(memory_format=torch.contiguous_format)


def pool_last(trainer: Trainer) -> None:
    """Pool after batch norm and ReLU, which then process four times as many values."""
    for block in conv_blocks(trainer.model):
        block.forward = partial(_pool_last, block)  # type: ignore[method-assign]


def _pool_last(block: ConvBlock, maps: Tensor) -> Tensor:
    """Do what ConvBlock.forward does in another order."""
    return block.pool(block.relu(block.norm(block.conv(maps))))


def draw_views(trainer: Trainer) -> None:
    """Draw a random view of each image in each epoch."""
    views = view_count(trainer.recipe.shift, trainer.recipe.flip)
    trainer.choose_views = lambda indices: torch.randint(  # type: ignore[method-assign]
        views, indices.shape, generator=trainer.generator, device=trainer.device
    )


def iterate_longer(trainer: Trainer) -> None:
    """Use as many Newton-Schulz iterations as the authors of Muon."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, Muon):
            optimizer.iterations = 5


BFLOAT16 = Ingredient("bfloat16 (float32 instead)", change=use_float32, learns=False)
INGREDIENTS = (
    Ingredient("Muon (AdamW instead, not tuned)", ADAMW),
    Ingredient("mirroring", {"flip": False}),
    Ingredient("shifting", {"shift": 0}),
    Ingredient("each view in turn (random ones)", change=draw_views),
    Ingredient("label smoothing", {"label_smoothing": 0.0}),
    Ingredient("averaged weights", {"ema_steps": 1}),
    BFLOAT16,
    Ingredient(
        "dropout from bytes", change=lambda trainer: use_torch_dropout(trainer.model), learns=False
    ),
    Ingredient("memory kept between steps", learns=False, own_process=True),
    Ingredient("channels_last", change=use_contiguous, learns=False, models=("cnn",)),
    Ingredient("unpadded second convolution", {"model": {"padding": (1, 1, 1)}}, models=("cnn",)),
    Ingredient("3 iterations in Muon (5 instead)", change=iterate_longer),
    Ingredient("pooling first", change=pool_last, learns=False, models=("cnn",)),
)
COMPLETE = Ingredient("nothing, the complete recipe")


def main(arguments: argparse.Namespace) -> None:
    """Train without each ingredient, print the table and write the file."""
    dataset = load_data(arguments)
    result: dict[str, Any] = {
        "device": describe_device(dataset.images.device),
        "versions": collect_versions(),
        "seeds": arguments.seeds,
        "epochs": EPOCHS,
    }
    print(f"Validation accuracy over {arguments.seeds} seeds, and time of a step")
    for name in MODELS:
        print(
            f"\n{name.upper()}, {count_epochs(name)} epochs\n"
            f"{'without':<34}{'accuracy':>16}{'difference':>12}{'time':>8}"
        )
        result[name] = ablate(name, dataset, range(SEED, SEED + arguments.seeds))
    cli.print_files([write_json(arguments.out / "ablation.json", result)])


def count_epochs(name: str) -> int:
    """Return the epochs of each training of a model."""
    return EPOCHS.get(name, MODELS[name].recipe.epochs)


def ablate(name: str, dataset: Dataset, seeds: Iterable[int]) -> dict[str, Any]:
    """Train a model with its complete recipe and without each ingredient; print a row for each."""
    complete = validate(name, dataset, COMPLETE, seeds)
    rows = {COMPLETE.name: {"accuracy": summarize_values(complete), "time_ratio": 1.0}}
    print_row(COMPLETE.name, rows[COMPLETE.name])
    in_float32 = choose_precision("auto", dataset.images.device) == torch.float32
    for ingredient in INGREDIENTS:
        if name not in ingredient.models or (in_float32 and ingredient is BFLOAT16):
            continue
        row: dict[str, Any] = {"time_ratio": compare_steps(name, dataset, ingredient)}
        if ingredient.learns:
            without = validate(name, dataset, ingredient, seeds)
            row["accuracy"] = summarize_values(without)
            row["difference"] = compare_paired(complete, without)
        rows[ingredient.name] = row
        print_row(ingredient.name, row)
    return rows


def make_trainer(name: str, dataset: Dataset, without: Ingredient, seed: int) -> Trainer:
    """Return a trainer of the short recipe without an ingredient."""
    network = MODELS[name]
    recipe = network.recipe.change(epochs=count_epochs(name), **without.settings)
    precision = choose_precision("auto", dataset.images.device)
    trainer = Trainer(network, dataset, recipe, seed, precision)
    if without.change:
        without.change(trainer)
    return trainer


def validate(name: str, dataset: Dataset, without: Ingredient, seeds: Iterable[int]) -> list[float]:
    """Train without an ingredient and return the validation accuracy for each seed."""
    accuracies = []
    for seed in cli.progress_bar(seeds, without.name, unit="training"):
        trainer = make_trainer(name, dataset, without, seed)
        while not trainer.finished:
            trainer.train_epoch()
        accuracies.append(trainer.history[-1]["validation_accuracy"])
    return accuracies


def compare_steps(name: str, dataset: Dataset, without: Ingredient) -> float:
    """Return the time of a step without an ingredient relative to a complete step."""
    ratios = []
    for _ in range(TIMING_ROUNDS):
        changed, complete = (
            call_in_own_process(time_step, name, dataset, each)
            if without.own_process
            else time_step(name, dataset, each)
            for each in (without, COMPLETE)
        )
        ratios.append(changed / complete)
    return statistics.median(ratios)


def time_step(name: str, dataset: Dataset, without: Ingredient) -> float:
    """Return the median time of a step without an ingredient, in seconds."""
    if without.own_process:
        training.set_malloc = lambda **_: None  # the process keeps the defaults of glibc
    return time_steps(make_trainer(name, dataset, without, SEED))


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one row of the table."""
    accuracy = difference = ""
    if "accuracy" in row:
        spread = row["accuracy"]["std"] or 0
        accuracy = f"{row['accuracy']['mean']:.2%} ± {100 * spread:.2f}"
    if "difference" in row:
        difference = f"{100 * row['difference']['mean']:+.2f}"
    print(f"{name:<34}{accuracy:>16}{difference:>12}{row['time_ratio']:>7.2f}x", flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.ablation", "Measure the effect of each ingredient of the recipes."
    )
    parser.add_argument(
        "--seeds",
        type=cli.number_type(int, 1, 100),
        default=SEEDS,
        metavar="N",
        help="training runs per ingredient and model (default: %(default)s)",
    )
    add_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
