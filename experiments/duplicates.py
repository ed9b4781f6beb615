"""Ask whether near-duplicates of test images among the training images raise the accuracy.

    python -m experiments.duplicates

Finds the test images that have a near-duplicate, mirrored or not, among the training images. Trains
both networks with their quick recipes on all training images, without these near-duplicates, and
without as many other images of the same classes, which a seed chooses. Prints the accuracy on
test images with and without near-duplicates, and writes duplicates.json to the folder
outputs/duplicates. Takes 6 minutes on two CPU cores, or 10 with --seeds 5. The same command
continues after an interruption.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fashion.comparison import compare_paired, summarize_values
from fashion.data import Dataset
from fashion.options import Parser
from fashion.script import list_files, quiet, run
from fashion.style import label

import numpy as np
import torch
from torch import Tensor

from experiments.shared import percent, record, start
from fashionmnist import train
from models import MODELS

NEAR = 0.15  # distance of near-duplicates, as a share of the norm of the test image
CHUNK = 250  # test images that are compared at a time
WHOLE, WITHOUT, CONTROL = "all", "without near-duplicates", "without as many others"
PAIRS = ((WHOLE, WITHOUT), (WHOLE, CONTROL), (CONTROL, WITHOUT))


def main() -> None:
    """Find near-duplicates, train with and without them, print the table and write the file."""
    parser = Parser("Measure the effect of near-duplicates.", prog="-m experiments.duplicates")
    args, dataset = start(parser, "duplicates")
    near, neighbours = find_near(dataset.test_images, dataset.images[dataset.train])
    counts = {"test_images": int(near.sum()), "training_images": int(neighbours.sum())}
    print(
        f"{counts['test_images']:,} test images have near-duplicates among the training images, "
        f"closer than {NEAR} of their norm: {counts['training_images']:,} images",
        flush=True,
    )
    result: dict[str, Any] = {"near": NEAR, "counts": counts}
    for name in MODELS:
        print(f"\n{f'{label(name)}, trained on':<50}  near-duplicates  other test images")
        reached: dict[str, np.ndarray] = {}
        for text in (WHOLE, WITHOUT, CONTROL):
            rows = []
            for seed in range(args.seeds):
                part = reduce(dataset, neighbours, text, seed)
                with quiet():
                    trained = train(name, MODELS[name].quick, seed, part, args.out / "runs")
                    trained.score(dataset)
                correct = (trained.logits["test"].argmax(1) == dataset.test_labels.cpu()).double()
                rows.append([correct[part].mean().item() for part in (near, ~near)])
            reached[text] = np.array(rows)
            print_row(text, [summarize_values(column.tolist()) for column in reached[text].T])
        result[name] = {text: rows.T.tolist() for text, rows in reached.items()}
        result[name]["differences"] = differences = compare(reached)
        print("Differences in points, ± standard error")
        for text, pair in differences.items():
            print_row(text, pair, "+", "standard_error")
    list_files([record(args.out / "duplicates.json", dataset, args.seeds, result)])


def find_near(test: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return which test images have near-duplicates among training images, and which these are."""
    references = training.flatten(1).float()
    squares = (references**2).sum(1)
    near, neighbours = [], torch.zeros(len(training), dtype=torch.bool, device=test.device)
    for chunk in test.split(CHUNK):
        images = torch.cat([chunk, chunk.flip(2)]).flatten(1).float()
        norms = (images**2).sum(1, keepdim=True)
        distances = torch.addmm(squares, images, references.T, alpha=-2).add_(norms)  # squared
        close = distances < NEAR**2 * norms
        near.append(close.any(1).view(2, -1).any(0))
        neighbours |= close.any(0)
    return torch.cat(near).cpu(), neighbours


def reduce(dataset: Dataset, neighbours: Tensor, text: str, seed: int) -> Dataset:
    """Return the dataset with all training images, without neighbours, or without others."""
    removed = torch.zeros_like(neighbours)
    if text == WITHOUT:
        removed = neighbours
    elif text == CONTROL:
        labels, generator = dataset.labels[dataset.train], torch.Generator().manual_seed(seed)
        for kind, count in enumerate(labels[neighbours].bincount()):
            others = (~neighbours & (labels == kind)).nonzero()[:, 0]
            order = torch.randperm(len(others), generator=generator)[:count]
            removed[others[order.to(others.device)]] = True
    return replace(dataset, train=dataset.train[~removed])


def compare(reached: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    """Return differences, paired by seed, of both accuracies (seeds, 2), with standard errors."""
    result = {}
    for first, second in PAIRS:
        columns = zip(reached[first].T.tolist(), reached[second].T.tolist(), strict=True)
        pair = [compare_paired(*column) for column in columns]
        for row in pair:
            row["standard_error"] = row["std"] and row["std"] / len(row["values"]) ** 0.5
        result[f"{second} − {first}"] = pair
    return result


def print_row(text: str, pair: list[dict[str, Any]], sign: str = "", spread: str = "std") -> None:
    """Print both numbers in percent."""
    cells = (percent(summary | {"std": summary[spread]}, sign) for summary in pair)
    print(f"  {text:<48}", *(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(run(main, "; the same command continues"))
