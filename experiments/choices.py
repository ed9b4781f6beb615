"""Train with settings that differ from those of the recipes, and compare the accuracies.

    python -m experiments.choices

Trains on 45,000 of the 60,000 training images and scores the other 15,000, three times as many as
fashionmnist.py's validation images; the test images are not used. Prints a table for each recipe,
and updates choices.json in the folder outputs after each row. Takes 100 minutes on two CPU cores.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.timing import SEED, add_options, load_data
from fashion import cli
from fashion.comparison import summarize_values
from fashion.data import Dataset, pixel_statistics, split_indices
from fashion.environment import choose_precision, collect_versions, describe_device
from fashion.files import write_json
from fashion.layers import Network
from fashion.recipe import Recipe
from fashion.training import Trainer
from models import MODELS

HELD_OUT_SHARE = 1 / 4
SEEDS = {"quick_recipe": 3, "recipe": 1}  # a full run takes minutes

# Settings that differ from each recipe.
CHANGES: dict[str, dict[str, Sequence[dict[str, Any]]]] = {
    "quick_recipe": {
        "ffn": (
            {"learning_rate": 0.0015},
            {"learning_rate": 0.004},
            {"batch_size": 512, "learning_rate": 0.004},
            {"optimizer": "muon", "learning_rate": 0.02},
            {"model": {"dropout": 0.05}},
            {"epochs": 3},
            {"epochs": 5},
        ),
        "cnn": (
            {"freeze": [0.25, 0.6]},
            {"freeze": []},
            {"freeze": [], "learning_rate": 0.02},
            {"learning_rate": 0.02},
            {"batch_size": 384},
            {"label_smoothing": 0.0},
            {"model": {"dropout": 0.1}},
        ),
    },
    "recipe": {
        "ffn": (
            {"learning_rate": 0.02},
            {"learning_rate": 0.04},
            {"learning_rate": 0.06},
            {"model": {"dropout": 0.1}},
            {"model": {"dropout": 0.2}},
            {"batch_size": 1024, "epochs": 36},
            {"optimizer": "adamw", "learning_rate": 0.004, "batch_size": 1024, "epochs": 60},
        ),
        "cnn": (
            {"epochs": 20},
            {"model": {"dropout": 0.15}},
            {"batch_size": 256, "learning_rate": 0.01},
            {"learning_rate": 0.01},
            {"learning_rate": 0.02},
            {"shift": 2},
        ),
    },
}


def main(arguments: argparse.Namespace) -> None:
    """Train with each recipe and with each change, print the tables and write the file."""
    dataset = hold_out(load_data(arguments))
    path = arguments.out / "choices.json"
    result: dict[str, Any] = {
        "device": describe_device(dataset.images.device),
        "versions": collect_versions(),
        "seeds": SEEDS,
    }
    print(
        f"Trained on {len(dataset.train_indices):,} images, scored on "
        f"{len(dataset.validation_indices):,}; seconds: training time, including evaluation"
    )
    for kind, changes in CHANGES.items():
        for name in changes:
            recipe = getattr(MODELS[name], kind)
            print(
                f"\n{name.upper()}, {describe(kind)}, seeds: {SEEDS[kind]}\n"
                f"{'change':<66}{'accuracy':>16}{'loss':>8}{'seconds':>9}"
            )
            rows = result.setdefault(name, {}).setdefault(kind, {})
            for settings in ({}, *changes[name]):
                title = describe_change(settings)
                rows[title] = measure(MODELS[name], dataset, recipe.change(**settings), SEEDS[kind])
                print_row(title, rows[title])
                write_json(path, result)
    cli.print_files([path])


def hold_out(dataset: Dataset) -> Dataset:
    """Return a dataset with more images for validation and fewer to train on."""
    train, held_out = split_indices(dataset.labels.cpu(), HELD_OUT_SHARE)
    mean, std = pixel_statistics(dataset.images[train])
    changed = replace(dataset, train_indices=train, validation_indices=held_out, mean=mean, std=std)
    return changed.to(dataset.images.device)


def measure(
    network: type[Network], dataset: Dataset, recipe: Recipe, seeds: int
) -> dict[str, dict[str, Any]]:
    """Train once for each seed and summarize accuracy, loss and seconds."""
    precision = choose_precision("auto", dataset.images.device)
    values: dict[str, list[float]] = {"accuracy": [], "loss": [], "seconds": []}
    for seed in range(SEED, SEED + seeds):
        trainer = Trainer(network, dataset, recipe, seed, precision)
        while not trainer.finished:
            trainer.train_epoch()
        values["accuracy"].append(trainer.history[-1]["validation_accuracy"])
        values["loss"].append(trainer.history[-1]["validation_loss"])
        values["seconds"].append(trainer.train_seconds)
    return {key: summarize_values(each) for key, each in values.items()}


def describe(kind: str) -> str:
    """Return the name of an attribute in words."""
    return kind.replace("_", " ")


def describe_change(settings: dict[str, Any]) -> str:
    """Return settings as one line, with the network's arguments among the others."""
    flat = {**settings, **settings.get("model", {})}
    flat.pop("model", None)
    words = (f"{describe(key)} {value}" for key, value in flat.items())
    return ", ".join(words) or "none"


def print_row(title: str, row: dict[str, dict[str, Any]]) -> None:
    """Print one row of a table."""
    accuracy, deviation = row["accuracy"]["mean"], row["accuracy"]["std"]
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    print(
        f"{title:<66}{f'{accuracy:.2%}{spread}':>16}{row['loss']['mean']:>8.3f}"
        f"{row['seconds']['mean']:>9.1f}",
        flush=True,
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown or malformed.
    """
    parser = cli.Parser(
        "-m experiments.choices", "Compare the recipes with others that differ in a few settings."
    )
    add_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
