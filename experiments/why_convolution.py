"""Ask why the CNN beats the FFN: robustness, locality, number of images, and size.

    python -m experiments.why_convolution

Trains both networks with their quick recipes, whole and changed in one respect, and writes
why_convolution.json and two pictures to the folder outputs/why_convolution. No blocks are frozen,
because other tasks may need them longer. Finished trainings and their predictions are saved in its
subfolder runs and not repeated. Takes about 25 minutes on two CPU cores.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.distortions import DISTORTIONS
from experiments.timing import add_options, load_data
from experiments.why_plots import draw_causes, draw_robustness
from fashion import cli
from fashion.checkpoint import load_tensors, save_tensors
from fashion.comparison import compare_paired, count_multiply_accumulates, summarize_values
from fashion.data import IMAGE_SIZE, Dataset, pixel_statistics
from fashion.environment import choose_precision, collect_versions, describe_device
from fashion.evaluation import predict_logits
from fashion.files import UsageError, lock_folder, prepare_folder, write_json
from fashion.layers import count_parameters
from fashion.plots import save_figure
from fashion.runs import Run, find_run, run_path, save_run, score
from fashion.training import Trainer
from models import MODELS, STYLES

SEEDS = 3
PERMUTATION_SEED = 0
TRAINING_SIZES = (500, 1_500, 5_000, 15_000)  # images, beside all of them
QUICK_IMAGES = 5_000  # with --quick


@dataclass(frozen=True)
class Variant:
    """One network and what it is trained on.

    Attributes:
        model: Name of the network.
        change: What distinguishes the variant; empty for the network as it is.
        arguments: Arguments of the network that differ from those of its quick recipe.
        permuted: Whether the pixels of all images are permuted, always in the same way.
        images: Number of training images; None for all.
    """

    model: str
    change: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False
    images: int | None = None

    @property
    def name(self) -> str:
        """What its files start with."""
        return f"{self.model}-{self.change}" if self.change else self.model


WHOLE = {name: Variant(name) for name in ("ffn", "cnn")}
PERMUTED = {name: Variant(name, "permuted", permuted=True) for name in WHOLE}
REDUCED = {
    (name, images): Variant(name, f"{images}-images", images=images)
    for name in WHOLE
    for images in TRAINING_SIZES
}
# As many parameters or as many multiply-accumulates as the other network.
RESIZED = (
    Variant("ffn", "parameters-of-cnn", {"widths": (406, 192, 96, 48)}),
    Variant("ffn", "operations-of-cnn", {"widths": (3072, 1024, 256, 64)}),
    Variant("cnn", "operations-of-ffn", {"channels": (8, 18, 36)}),
)


def main(arguments: argparse.Namespace) -> None:
    """Train all variants, measure, print a summary and write the files."""
    dataset = load_data(arguments)
    if arguments.quick:
        dataset = replace(dataset, train_indices=dataset.train_indices[:QUICK_IMAGES])
    sizes = [size for size in TRAINING_SIZES if size < len(dataset.train_indices)]
    variants = [*WHOLE.values(), *PERMUTED.values(), *RESIZED]
    variants += [REDUCED[name, size] for name in WHOLE for size in sizes]
    folder, seeds = arguments.out / "runs", range(arguments.seeds)
    prepare_folder(folder)
    with lock_folder(folder):
        runs = {
            variant.name: [train(variant, dataset, seed, folder) for seed in seeds]
            for variant in cli.progress_bar(variants, "networks", unit="network")
        }
        predictions = {
            name: [predict_distorted(run, dataset, folder) for run in runs[name]] for name in WHOLE
        }
    result: dict[str, Any] = {
        "device": describe_device(dataset.images.device),
        "versions": collect_versions(),
        "seeds": list(seeds),
        "training_images": len(dataset.train_indices),
        "robustness": measure_robustness(predictions, dataset),
        "locality": compare_locality(runs),
        "data": compare_sizes(runs, [*sizes, len(dataset.train_indices)]),
        "size": {each.name: describe(runs[each.name]) for each in (*WHOLE.values(), *RESIZED)},
    }
    print_summary(result)
    files = [write_json(arguments.out / "why_convolution.json", result)]
    permuted = permute(dataset.test_images)
    figures = {
        "robustness": draw_robustness(result["robustness"], dataset, STYLES),
        "why_convolution": draw_causes(result, dataset, permuted, STYLES),
    }
    for name, figure in figures.items():
        files.append(arguments.out / f"{name}.png")
        save_figure(figure, files[-1])
    cli.print_files(files)


def permute(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, 28, 28) whose pixels have changed places, in each image in the same way."""
    generator = torch.Generator().manual_seed(PERMUTATION_SEED)
    order = torch.randperm(IMAGE_SIZE**2, generator=generator).to(images.device)
    return images.flatten(1)[:, order].view_as(images)


def change_dataset(dataset: Dataset, variant: Variant, seed: int) -> Dataset:
    """Return the dataset that a variant is trained and tested on.

    A seed chooses the images of a reduced training part, so that the spread over seeds includes
    their choice. They are repeated, so that all trainings have the same number of steps.
    """
    if variant.images:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset.train_indices), generator=generator)
        chosen = dataset.train_indices[order[: variant.images].to(dataset.images.device)]
        mean, std = pixel_statistics(dataset.images[chosen])
        count = len(dataset.train_indices)
        repeated = chosen.repeat(math.ceil(count / len(chosen)))[:count]
        dataset = replace(dataset, train_indices=repeated, mean=mean, std=std)
    if variant.permuted:
        dataset = replace(
            dataset, images=permute(dataset.images), test_images=permute(dataset.test_images)
        )
    return dataset


def make_trainer(variant: Variant, dataset: Dataset, seed: int) -> Trainer:
    """Return the trainer of a variant."""
    network = MODELS[variant.model]
    changed = change_dataset(dataset, variant, seed)
    recipe = network.quick_recipe
    recipe = recipe.change(freeze=[], model=variant.arguments)
    return Trainer(network, changed, recipe, seed, choose_precision("auto", changed.images.device))


def train(variant: Variant, dataset: Dataset, seed: int, folder: Path) -> Run:
    """Return the saved run of a variant, or train, score and save it."""
    trainer = make_trainer(variant, dataset, seed)
    with cli.advise("choose another --out, or remove this run's files", UsageError):
        run = find_run(folder, variant.name, trainer)
    if not run:
        while not trainer.finished:
            trainer.train_epoch()
        run = score(trainer, variant.name)
        save_run(folder, run)
        accuracy, seconds = run.test.accuracy, run.train_seconds
        print(f"{variant.name}, seed {seed}: {accuracy:.2%}, {seconds:.0f} s", flush=True)
    return run


def predict_distorted(run: Run, dataset: Dataset, folder: Path) -> dict[str, torch.Tensor]:
    """Return the classes that a network predicts for distorted test images, and save them.

    Returns:
        For each distortion uint8 (levels, 10000).
    """
    path = run_path(folder, run.name, run.seed, ".distorted.safetensors")
    levels = {each.name: list(each.levels) for each in DISTORTIONS}
    identity = run.identity | {"levels": levels, "tested_at": run.tested_at}
    if path.exists():
        saved, metadata = load_tensors(path)
        if metadata == identity:
            return saved
    model = run.build_model().to(dataset.images.device)
    model.load_state_dict(run.weights)
    predictions = {}
    for each in cli.progress_bar(DISTORTIONS, f"{run.name}, distorted", unit="distortion"):
        classes = [
            predict_logits(
                model, each.apply(dataset.test_images, level), dataset.mean, dataset.std
            ).argmax(1)
            for level in each.levels
        ]
        predictions[each.name] = torch.stack(classes).to("cpu", torch.uint8)
    save_tensors(path, predictions, identity)
    return predictions


def measure_robustness(
    predictions: Mapping[str, Sequence[Mapping[str, torch.Tensor]]], dataset: Dataset
) -> dict[str, Any]:
    """Return the accuracy of each model for each level of each distortion, over seeds."""
    labels = dataset.test_labels.cpu()
    robustness: dict[str, Any] = {}
    for each in DISTORTIONS:
        measured = robustness[each.name] = {"levels": list(each.levels)}
        for name, seeds in predictions.items():
            correct = torch.stack([seed[each.name] == labels for seed in seeds])
            by_level = correct.float().mean(2).T.tolist()
            measured[name] = [summarize_values(values) for values in by_level]
    return robustness


def accuracies(runs: Iterable[Run]) -> list[float]:
    """Return the test accuracy of each run."""
    return [run.test.accuracy for run in runs]


def compare_locality(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return accuracies on original and permuted images, and the lead of the CNN on each."""
    values = {
        name: (accuracies(runs[name]), accuracies(runs[PERMUTED[name].name])) for name in WHOLE
    }
    result: dict[str, Any] = {
        name: {
            "original": summarize_values(original),
            "permuted": summarize_values(permuted),
            "difference": compare_paired(original, permuted),
        }
        for name, (original, permuted) in values.items()
    }
    for number, images in enumerate(("original", "permuted")):
        result[f"lead_{images}"] = compare_paired(values["ffn"][number], values["cnn"][number])
    return result


def compare_sizes(runs: Mapping[str, Sequence[Run]], sizes: Sequence[int]) -> dict[str, Any]:
    """Return the accuracy for each number of training images, and how many more the FFN needs.

    Args:
        runs: The runs of each variant.
        sizes: Numbers of training images, ascending; the last is that of all images.
    """
    values = {}
    for name in WHOLE:
        by_size = [runs[REDUCED[name, size].name] for size in sizes[:-1]] + [runs[name]]
        values[name] = np.array([accuracies(each) for each in by_size])
    result: dict[str, Any] = {"images": list(sizes), "factor": []}
    for name, table in values.items():
        result[name] = [summarize_values(row) for row in table]
    for size, row in zip(sizes, values["ffn"], strict=True):
        needed = [
            images_needed(sizes, curve, accuracy)
            for curve, accuracy in zip(values["cnn"].T, row, strict=True)
        ]
        factors = [size / each for each in needed if each is not None]
        result["factor"].append(summarize_values(factors) if len(factors) == len(needed) else None)
    return result


def images_needed(sizes: Sequence[int], curve: Sequence[float], accuracy: float) -> float | None:
    """Return the number of training images with which a learning curve reaches an accuracy.

    Interpolates between the measured numbers, linearly in the logarithm.

    Args:
        sizes: Numbers of training images, ascending.
        curve: The accuracy with each of them.
        accuracy: What to reach.

    Returns:
        The number, or None if it lies below the first or above the last.
    """
    above = [value >= accuracy for value in curve]
    first = above.index(True) if any(above) else 0
    if not first:
        return None
    pair = slice(first - 1, first + 1)
    return float(np.exp(np.interp(accuracy, curve[pair], np.log(sizes[pair]))))


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the size of a network and its accuracy over seeds."""
    model = runs[0].build_model()
    return {
        "arguments": runs[0].metadata["arguments"],
        "parameters": count_parameters(model),
        "multiply_accumulates": count_multiply_accumulates(model),
        "accuracy": summarize_values(accuracies(runs)),
    }


def print_summary(result: Mapping[str, Any]) -> None:
    """Print the accuracies and what follows from them."""

    def text(summary: Mapping[str, Any]) -> str:
        spread = f" ± {100 * summary['std']:.2f}" if summary["std"] is not None else ""
        return f"{summary['mean']:7.2%}{spread}"

    locality, data = result["locality"], result["data"]
    print(f"\nTest accuracy over {len(result['seeds'])} seeds\n{'':<34}{'FFN':>16}{'CNN':>16}")
    for images in ("original", "permuted"):
        pair = [text(locality[name][images]) for name in WHOLE]
        print(f"{f'{images} images':<34}{pair[0]:>16}{pair[1]:>16}")
    for number, size in enumerate(data["images"]):
        pair = [text(data[name][number]) for name in WHOLE]
        factor = data["factor"][number]
        note = f"   the FFN needs {factor['mean']:.1f} times as many as the CNN" if factor else ""
        print(f"{f'{size:,} training images':<34}{pair[0]:>16}{pair[1]:>16}{note}")
    for each in DISTORTIONS:
        measured = result["robustness"][each.name]
        level = each.levels[-1]
        pair = [text(measured[name][-1]) for name in WHOLE]
        print(f"{f'{each.name} {level:g}':<34}{pair[0]:>16}{pair[1]:>16}")
    for name, size in result["size"].items():
        print(
            f"{name:<26}{size['parameters']:>12,} parameters "
            f"{size['multiply_accumulates'] / 1e6:6.2f} M multiply-accumulates "
            f"{text(size['accuracy'])}"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser("-m experiments.why_convolution", "Ask why the CNN beats the FFN.")
    parser.add_argument(
        "--seeds",
        type=cli.number_type(int, 1, 100),
        metavar="N",
        help=f"training runs of each network (default: {SEEDS}, with --quick 1)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"train on {QUICK_IMAGES:,} images; writes to the subfolder quick of the output "
        "folder",
    )
    add_options(parser)
    parser.set_defaults(out=cli.OUTPUT_FOLDER / "why_convolution")
    arguments = parser.parse_args(argv)
    arguments.seeds = arguments.seeds or (1 if arguments.quick else SEEDS)
    if arguments.quick:
        arguments.out /= "quick"
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
