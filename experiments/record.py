"""Train both networks for accuracy rather than speed: longer recipes, and teachers for the FFN.

    python -m experiments.record

Trains five deeper networks, each without one fifth of the images, and keeps what each of them
predicts for all views of the images that it has not seen. The FFN learns these predictions, the CNN
learns the labels. Writes the same files as fashionmnist.py to the folder outputs/record. Finished
teachers and runs are kept there and not repeated.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fashionmnist
from cnn import CNN
from fashion import cli
from fashion.checkpoint import SUFFIX, load_tensors, save_tensors
from fashion.data import CLASS_COUNT, Dataset, augment, pad, view_count
from fashion.evaluation import predict_logits
from fashion.files import UsageError, lock_folder, prepare_folder
from fashion.layers import KERNEL_SIZE, Network
from fashion.recipe import Recipe
from fashion.training import Trainer
from models import MODELS

TAUGHT_MODEL = "ffn"
TEACHER_FOLDER = "teachers"
FOLDS = 5
FOLD_SEED = 20170828  # which images each teacher leaves out
UNCHANGED = 8  # the view without shift and mirroring, see data.augment

# Label smoothing would make the teachers' probabilities less confident than they are accurate.
TEACHER_RECIPE = replace(MODELS["cnn"].recipe, label_smoothing=0.0)
# Chosen for accuracy alone, on training images held out from the networks.
BEST_RECIPES: dict[str, Recipe] = {
    # The teachers' predictions for shifted images are useful, and hard enough to learn that little
    # dropout is needed.
    "ffn": replace(
        MODELS["ffn"].recipe,
        model={"widths": (1024, 512, 256, 128), "dropout": 0.1},
        epochs=180,
        label_smoothing=0.0,
        shifted=1.0,
    ),
    # More kernels raise the accuracy but also overfit; cutout reduces overfitting.
    "cnn": replace(
        MODELS["cnn"].recipe,
        model={"channels": (64, 128, 256)},
        epochs=40,
        cutout=7,
    ),
}


class ResidualConv(nn.Module):
    """A convolution with batch norm and ReLU, added to its input (He et al., arXiv:1512.03385).

    Args:
        channels: Number of feature maps, which stays the same, as does their size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, KERNEL_SIZE, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps of the same shape (N, C, S, S)."""
        return maps + self.relu(self.norm(self.conv(maps)))


class Teacher(CNN):
    """The CNN with two residual convolutions after each of its three blocks."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        layers: list[nn.Module] = []
        for block, channels in zip(self.blocks, self.arguments["channels"], strict=True):
            layers += [block, ResidualConv(channels), ResidualConv(channels)]
        self.blocks = nn.Sequential(*layers)


def fold_numbers(count: int) -> Tensor:
    """Return the fold, from 0 to FOLDS - 1, that each of `count` images belongs to."""
    generator = torch.Generator().manual_seed(FOLD_SEED)
    return torch.randperm(count, generator=generator) % FOLDS


def predict_views(trainer: Trainer, indices: Tensor) -> Tensor:
    """Return the logits, float32 (N, views, 10), of all views of the images with these indices.

    The weights are those that the trainer has averaged.
    """
    dataset, recipe = trainer.dataset, trainer.recipe
    padded = pad(dataset.images, recipe.shift)
    views = []
    for view in range(view_count(recipe.shift, recipe.flip)):
        chosen = torch.full_like(indices, view)
        images = augment(padded, indices, chosen, 1.0, recipe.flip, trainer.generator)
        views.append(predict_logits(trainer.averaged, images, dataset.mean, dataset.std))
    return torch.stack(views, 1)


def teach(arguments: argparse.Namespace, dataset: Dataset, precision: torch.dtype) -> Tensor:
    """Train the teachers that are missing, and return the predictions of all of them.

    Args:
        arguments: The command line.
        dataset: On the device to train on.
        precision: Data type of matrix products.

    Returns:
        Logits, float16 (images, views, 10), for each view of each image those of the teacher that
        has not seen the image. The views are those of data.augment.

    Raises:
        UsageError: If a saved teacher has other settings or is damaged.
        RunError: If a file cannot be read or written.
    """
    labels, chosen = dataset.labels, dataset.train_indices
    folds = fold_numbers(len(labels)).to(labels.device)
    views = view_count(TEACHER_RECIPE.shift, TEACHER_RECIPE.flip)
    table = torch.empty(len(labels), views, CLASS_COUNT, dtype=torch.float16, device=labels.device)
    folder = arguments.out / TEACHER_FOLDER
    prepare_folder(folder)
    with lock_folder(folder, wait=True):  # one of several processes trains for all
        paths = [folder / f"teacher{fold}{SUFFIX}" for fold in range(FOLDS)]
        if not all(path.exists() for path in paths):
            cli.check_previous_results(arguments, map(state_path, paths))
        for fold, path in enumerate(paths):
            part = replace(dataset, train_indices=chosen[folds[chosen] != fold])
            trainer = Trainer(Teacher, part, TEACHER_RECIPE, fold, precision)
            unseen = (folds == fold).nonzero().squeeze(1)
            if not path.exists():
                train_teacher(trainer, unseen, path, arguments)
            table[unseen] = load_logits(path, trainer, (len(unseen), views)).to(table.device)
    return table


def train_teacher(
    trainer: Trainer, unseen: Tensor, path: Path, arguments: argparse.Namespace
) -> None:
    """Train one teacher and save its predictions for all views of the unseen images."""
    fashionmnist.train(trainer, "teacher", state_path(path), arguments)
    logits = predict_views(trainer, unseen)
    correct = logits[:, UNCHANGED].argmax(1) == trainer.dataset.labels[unseen]
    accuracy = correct.float().mean().item()
    print(f"It classifies {accuracy:.2%} of the {len(unseen):,} images left out correctly.")
    figures = {"accuracy": accuracy, "train_seconds": trainer.train_seconds}
    save_tensors(path, {"logits": logits.half()}, figures | {"identity": trainer.identity()})
    state_path(path).unlink(missing_ok=True)


def load_logits(path: Path, trainer: Trainer, shape: tuple[int, int]) -> Tensor:
    """Return what a teacher predicts, float16 (images, views, 10), from the file.

    Raises:
        UsageError: If the file is damaged or not from such a trainer.
        RunError: If it cannot be read.
    """
    tensors, metadata = load_tensors(path)
    logits = tensors.get("logits")
    if metadata.get("identity") != trainer.identity() or logits is None:
        raise UsageError(f"{path} holds the predictions of a teacher with other settings")
    if logits.shape != (*shape, CLASS_COUNT) or not logits.isfinite().all():
        raise UsageError(f"{path} is damaged; remove it to train this teacher again")
    return logits.half()


def state_path(path: Path) -> Path:
    """Return the path of the state from which to resume the training of a teacher."""
    return path.with_suffix(".resume.pt")


class Student(Trainer):
    """Trains a model on the teachers' probabilities (Hinton et al., arXiv:1503.02531).

    The probabilities are those for the view that the model is shown, as Beyer et al. recommend
    (arXiv:2106.05237). The labels do not affect the weights.

    Args:
        arguments: Those of Trainer. The recipe shifts all images and smooths no labels.
        table: Probabilities, float16 (images, views, 10), on the device of the dataset.
        fingerprint: Distinguishes the table from others.
    """

    def __init__(self, *arguments: Any, table: Tensor, fingerprint: str) -> None:
        super().__init__(*arguments)
        self.table, self.fingerprint = table, fingerprint

    def choose_views(self, indices: Tensor) -> Tensor:
        """Return what Trainer.choose_views does, and look up what to learn from these views."""
        views = super().choose_views(indices)
        self._targets = self.table[indices, views].float()
        return views

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (N, 10) and the targets of the last batch."""
        return F.cross_entropy(logits, self._targets)

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine every weight, with the table's fingerprint."""
        return super().identity() | {"teacher": self.fingerprint}

    def metadata(self) -> dict[str, Any]:
        """Return what Trainer.metadata does, with the table's fingerprint."""
        return super().metadata() | {"teacher": self.fingerprint}


def main(arguments: argparse.Namespace) -> None:
    """Train the teachers, then all models with all seeds, and write results and pictures."""
    if arguments.summary or TAUGHT_MODEL not in arguments.models:
        fashionmnist.main(arguments, teacher=None)
        return
    device, precision = fashionmnist.prepare_device(arguments)
    dataset = cli.load_data(arguments).to(device)
    with cli.advise("choose another folder with --out"):
        logits = teach(arguments, dataset, precision)
    # Of the logits as saved: processors differ in the last bits of the probabilities.
    fingerprint = hashlib.md5(logits.cpu().numpy().tobytes(), usedforsecurity=False).hexdigest()
    table = logits.float().softmax(2).half()

    def make_trainer(network: type[Network], *settings: Any) -> Trainer:
        if network is MODELS[TAUGHT_MODEL]:
            return Student(network, *settings, table=table, fingerprint=fingerprint)
        return Trainer(network, *settings)

    fashionmnist.main(arguments, make_trainer, teacher=fingerprint)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.record",
        "Train the networks for accuracy, with more epochs and teachers.",
    )
    out = cli.OUTPUT_FOLDER / "record"
    arguments = fashionmnist.parse_options(parser, BEST_RECIPES, argv, out)
    arguments.series = True  # these trainings are long: keep each of them
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
