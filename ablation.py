"""Leave out one ingredient of the recipes at a time, and measure what it brought.

    python ablation.py

Trains short versions of both recipes with several seeds each, prints a table and writes
ablation.json to the folder outputs. Accuracy is of the validation images: the test set has no part
in it. It takes about a quarter of an hour on two CPU cores.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmark import GROWTH_STEPS, SEED, add_common_arguments, load_real_data, time_steps
from comparison import compare_paired, summarize_values
from data import Dataset
from fashionmnist import (
    Parser,
    collect_versions,
    describe,
    number_type,
    print_files,
    run_script,
    write_json,
)
from files import prepare_folder
from layers import Dropout
from muon import Muon
from training import MODELS, RECIPES, Trainer, choose_device, choose_precision, set_malloc

# Short trainings: what an ingredient brings shows, and the whole takes a quarter of an hour.
EPOCHS = {"ffn": 30, "cnn": 4}
SEEDS = 3
TIMING_ROUNDS = 3  # alternations of an ingredient's step with the whole recipe's
# The other optimizer of the two, with what does best on the validation images.
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3}
MUON = {"optimizer": "muon", "learning_rate": 0.03}
# glibc's own settings, see mallopt(3): blocks, and bytes.
MALLOC_MMAP_MAX, MALLOC_TRIM_THRESHOLD = 65_536, 128 * 1024


@dataclass(frozen=True)
class Ingredient:
    """One thing that the recipes do, and how to do without it.

    Attributes:
        name: what the table calls it.
        settings: of the recipe, that leave it out.
        change: what else leaves it out of a trainer that has not begun.
        learns: whether it can change the accuracy; else only its time is measured.
        models: whose recipe has it.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Trainer], None] = lambda trainer: None
    learns: bool = True
    models: Sequence[str] = tuple(MODELS)


def use_float32(trainer: Trainer) -> None:
    """Compute all products in float32."""
    trainer.precision = torch.float32
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, Muon):
            optimizer.precision = torch.float32


def give_memory_back(_: Trainer) -> None:
    """Let malloc work as it does by default; the next trainer sets it again."""
    set_malloc(MALLOC_MMAP_MAX, MALLOC_TRIM_THRESHOLD)


def use_torch_dropout(trainer: Trainer) -> None:
    """Draw one random number for each activation."""
    for parent in list(trainer.model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Dropout):
                setattr(parent, name, nn.Dropout(layer.p))


def use_contiguous(trainer: Trainer) -> None:
    """Store feature maps one after the other, and not pixel by pixel."""
    trainer.model.to(memory_format=torch.contiguous_format)


def pool_last(trainer: Trainer) -> None:
    """Pool after batch norm and ReLU, which then see four times the values."""
    for number, block in enumerate(trainer.model.blocks):
        order = (block.conv, block.norm, block.relu, block.pool)
        trainer.model.blocks[number] = nn.Sequential(*order)


INGREDIENTS = (
    Ingredient("AdamW (Muon in its place)", MUON, models=("ffn",)),
    Ingredient("Muon (AdamW in its place)", ADAMW, models=("cnn",)),
    Ingredient("mirrored pictures", {"flip": False}),
    Ingredient("shifted pictures", {"shift": 0}),
    Ingredient("label smoothing", {"label_smoothing": 0.0}),
    Ingredient("averaged weights", {"ema_steps": 1}),
    Ingredient("bfloat16 (float32 in its place)", change=use_float32, learns=False),
    Ingredient("dropout from bytes", change=use_torch_dropout, learns=False),
    Ingredient("memory kept between steps", change=give_memory_back, learns=False),
    Ingredient("channels_last", change=use_contiguous, learns=False, models=("cnn",)),
    Ingredient("pooling first", change=pool_last, learns=False, models=("cnn",)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see fashionmnist.run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, data, trainings, table, file.

    Raises:
        UserMistake, WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    prepare_folder(arguments.out)
    dataset = load_real_data(arguments.data_dir, device)
    result: dict[str, Any] = {
        "device": describe(device),
        "versions": collect_versions(),
        "seeds": arguments.seeds,
        "epochs": EPOCHS,
    }
    print(f"Validation accuracy, {arguments.seeds} seeds each; time of a step")
    for name in MODELS:
        print(
            f"\n{name.upper()}, {EPOCHS[name]} epochs\n"
            f"{'without':<34}{'accuracy':>16}{'difference':>12}{'time':>8}"
        )
        result[name] = ablate(name, dataset, range(SEED, SEED + arguments.seeds))
    print_files([write_json(arguments.out / "ablation.json", result)])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown, malformed or out of range.
    """
    parser = Parser(
        prog="ablation.py",
        description="Measure what each ingredient of the recipes brings.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seeds",
        type=number_type(int, 1, 100),
        default=SEEDS,
        help="trainings of each line (default: %(default)s)",
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def ablate(name: str, dataset: Dataset, seeds: Sequence[int]) -> dict[str, Any]:
    """Train a model with its whole recipe and without each ingredient; print a row of each."""
    whole = Ingredient("nothing, the whole recipe")
    accuracies = validate(name, dataset, whole, seeds)
    rows = {whole.name: {"accuracy": summarize_values(accuracies), "time_ratio": 1.0}}
    print_row(whole.name, rows[whole.name])
    for ingredient in INGREDIENTS:
        if name not in ingredient.models:
            continue
        row: dict[str, Any] = {"time_ratio": compare_steps(name, dataset, ingredient)}
        if ingredient.learns:
            without = validate(name, dataset, ingredient, seeds)
            row["accuracy"] = summarize_values(without)
            row["difference"] = compare_paired(accuracies, without)
        rows[ingredient.name] = row
        print_row(ingredient.name, row)
    return rows


def make_trainer(name: str, dataset: Dataset, ingredient: Ingredient, seed: int) -> Trainer:
    """Return a trainer of the short recipe without an ingredient."""
    recipe = replace(RECIPES[name], epochs=EPOCHS[name], **ingredient.settings)
    precision = choose_precision("auto", dataset.images.device)
    trainer = Trainer(name, dataset, recipe, seed, precision)
    ingredient.change(trainer)
    return trainer


def validate(
    name: str, dataset: Dataset, ingredient: Ingredient, seeds: Sequence[int]
) -> list[float]:
    """Train without an ingredient; return the validation accuracy of each seed."""
    accuracies = []
    for seed in tqdm(seeds, ingredient.name, unit="training", leave=False, disable=None):
        trainer = make_trainer(name, dataset, ingredient, seed)
        while not trainer.finished:
            trainer.train_epoch()
        accuracies.append(trainer.history[-1]["validation_accuracy"])
    return accuracies


def compare_steps(name: str, dataset: Dataset, ingredient: Ingredient) -> float:
    """Return how many times as long a step takes without an ingredient, measured in alternation."""
    ratios = []
    for _ in range(TIMING_ROUNDS):
        without, whole = (
            time_steps(make_trainer(name, dataset, each, SEED), GROWTH_STEPS)
            for each in (ingredient, Ingredient(""))
        )
        ratios.append(without / whole)
    return statistics.median(ratios)


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    accuracy = difference = ""
    if "accuracy" in row:
        spread = row["accuracy"]["std"] or 0
        accuracy = f"{row['accuracy']['mean']:.2%} ± {100 * spread:.2f}"
    if "difference" in row:
        difference = f"{100 * row['difference']['mean']:+.2f}"
    print(f"{name:<34}{accuracy:>16}{difference:>12}{row['time_ratio']:>7.2f}x", flush=True)


if __name__ == "__main__":
    sys.exit(main())
