"""Train both networks for accuracy rather than speed: with teachers, and for many epochs.

    python -m experiments.record

Trains three deeper networks, the teachers, on images of which half are partly covered by another
image. The mean of what they predict for 72 such versions of each training image is a table, from
which both networks learn. Writes the same files as fashionmnist.py to the folder outputs/record.
Finished teachers, the table and finished runs are kept there and not repeated. Without a GPU, five
seeds would take about three days.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fashionmnist
from fashion import cli
from fashion.checkpoint import SUFFIX, load_tensors, save_tensors
from fashion.data import CLASS_COUNT, IMAGE_SIZE, Dataset, augment, schedule_views, view_count
from fashion.environment import autocast
from fashion.evaluation import predict_logits
from fashion.files import RunError, UsageError, lock_folder, prepare_folder
from fashion.layers import KERNEL_SIZE, Network
from fashion.recipe import Recipe
from fashion.training import Trainer
from models import MODELS

TEACHER_FOLDER = "teachers"
TEACHERS = 3
MIXTURE_SEED = 20170828
MIXED_SHARE = 0.5  # of the pictures; 0.8 was no better in short trainings
ROUNDS = 4  # pictures of each view of an image, each mixed with another image
PREDICTED_AT_ONCE = 5_000  # pictures, to limit the memory

# Teachers and students train on the same pictures.
SHOWN: dict[str, Any] = {
    "shift": 1,
    "shifted": 1.0,
    "flip": True,
    "label_smoothing": 0.0,
}
TEACHER_RECIPE = replace(MODELS["cnn"].recipe, epochs=40, model={}, **SHOWN)
# Chosen for accuracy alone, on validation images.
BEST_RECIPES: dict[str, Recipe] = {
    # More dropout was no better.
    "ffn": replace(
        MODELS["ffn"].recipe,
        model={"widths": (1024, 512, 256, 128), "dropout": 0.1},
        epochs=300,
        **SHOWN,
    ),
    "cnn": replace(MODELS["cnn"].recipe, model={"channels": (128, 256, 512)}, epochs=80, **SHOWN),
}


class ResidualConv(nn.Module):
    """A convolution with batch norm and ReLU, added to its input (He et al., arXiv:1512.03385).

    Args:
        channels: Number of feature maps, which stays the same, as does their size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = conv_layers(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps of the same shape (N, C, S, S)."""
        return maps + self.layers(maps)


class Teacher(Network):
    """Residual convolutions at three resolutions, 28, 14 and 7 pixels, and one linear layer.

    Args:
        channels: Feature maps at each resolution.
        depth: Residual convolutions at each resolution.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256), depth: int = 2) -> None:
        super().__init__()
        self.arguments = {"channels": list(channels), "depth": depth}
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([1, *channels]):
            residual = [ResidualConv(outputs) for _ in range(depth)]
            layers += [conv_layers(inputs, outputs), *residual, nn.MaxPool2d(2)]
        layers[-1] = nn.AdaptiveAvgPool2d(1)  # the mean of each map, in place of the last pooling
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1], CLASS_COUNT))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 1, 28, 28) to logits (N, 10)."""
        return self.layers(images)


def conv_layers(inputs: int, outputs: int) -> nn.Sequential:
    """Return a convolution that keeps the size of its feature maps, batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, KERNEL_SIZE, padding="same", bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


@dataclass(frozen=True)
class Mixture:
    """The box that another image covers in each picture (CutMix, Yun et al., arXiv:1905.04899).

    An image has several pictures: each of its views, see data.augment, in ROUNDS mixtures.

    Attributes:
        partners: Indices of the other images, int32 (images, pictures).
        boxes: Their first row, first column, last row + 1 and last column + 1, uint8
            (images, pictures, 4). The box is empty in pictures that are not mixed.
    """

    partners: Tensor
    boxes: Tensor

    def mix_labels(self, labels: Tensor) -> Tensor:
        """Return the share of each class in the area of each picture.

        Args:
            labels: Classes of all images, int64 (images,).

        Returns:
            float16 (images, pictures, 10).
        """
        top, left, bottom, right = self.boxes.int().unbind(2)
        covered = ((bottom - top) * (right - left) / IMAGE_SIZE**2)[..., None]
        one_hot = F.one_hot(labels, CLASS_COUNT).float()
        return (one_hot[:, None] * (1 - covered) + one_hot[self.partners] * covered).half()

    def to(self, device: torch.device) -> "Mixture":
        """Return this mixture on a device."""
        return Mixture(self.partners.to(device), self.boxes.to(device))


def cover(images: Tensor, others: Tensor, boxes: Tensor) -> Tensor:
    """Cover the boxes, uint8 (N, 4), in images (N, 28, 28) with those of others (N, 28, 28)."""
    top, left, bottom, right = boxes.T[..., None]
    pixels = torch.arange(IMAGE_SIZE, device=images.device)
    rows, columns = (top <= pixels) & (pixels < bottom), (left <= pixels) & (pixels < right)
    return torch.where(rows[:, :, None] & columns[:, None, :], others, images)


def draw_mixture(count: int, indices: Tensor, pictures: int) -> Mixture:
    """Draw the mixtures of this many pictures of `count` images, on the CPU.

    The other images are among the training images, with these indices.
    """
    generator = torch.Generator().manual_seed(MIXTURE_SEED)
    partners = indices[torch.randint(len(indices), (count, pictures), generator=generator)]
    # The area is uniformly distributed, apart from what lies outside of the image.
    sides = IMAGE_SIZE * torch.rand(count, pictures, 1, generator=generator).sqrt()
    sides *= torch.rand(count, pictures, 1, generator=generator) < MIXED_SHARE
    centres = IMAGE_SIZE * torch.rand(count, pictures, 2, generator=generator)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 2)
    return Mixture(partners.int(), boxes.round().clamp(0, IMAGE_SIZE).byte())


class MixTrainer(Trainer):
    """Trains on mixed pictures, with the class probabilities of a table as targets.

    The probabilities are those of the picture that is shown, as Beyer et al. recommend
    (arXiv:2106.05237). An image shows all its pictures before it repeats one.

    Args:
        arguments: Those of Trainer. The recipe has the settings SHOWN.
        mixture: How to mix the images.
        table: Targets, float16 (images, pictures, 10).
    """

    def __init__(self, *arguments: Any, mixture: Mixture, table: Tensor) -> None:
        super().__init__(*arguments)
        content = table.cpu().numpy().tobytes()
        self.fingerprint = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.mixture, self.table = mixture.to(self.device), table.to(self.device)
        images, self._view_count, _ = table.shape
        self._first_views, self._view_steps = schedule_views(
            images, self._view_count, self.generator
        )

    def show(self, indices: Tensor) -> Tensor:
        """Return this epoch's pictures of the images, and look up their targets."""
        numbers = self.choose_views(indices)
        self._targets = self.table[indices, numbers].float()
        return self.draw(indices, numbers)

    def draw(self, indices: Tensor, numbers: Tensor) -> Tensor:
        """Return pictures, uint8 (N, 28, 28), by their images and their numbers, both (N,)."""
        recipe = self.recipe
        views = numbers % view_count(recipe.shift, recipe.flip)
        images, others = (
            augment(self.padded, chosen, views, recipe.shifted, recipe.flip, self.generator)
            for chosen in (indices, self.mixture.partners[indices, numbers])
        )
        return cover(images, others, self.mixture.boxes[indices, numbers])

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (N, 10) and the targets of the last batch."""
        return F.cross_entropy(logits, self._targets)

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine every weight, with the table's fingerprint."""
        return super().identity() | {"targets": self.fingerprint}

    def metadata(self) -> dict[str, Any]:
        """Return what Trainer.metadata does, with the table's fingerprint."""
        return super().metadata() | {"targets": self.fingerprint}


def teach(
    arguments: argparse.Namespace, dataset: Dataset, mixture: Mixture, precision: torch.dtype
) -> Tensor:
    """Do what is missing: train the teachers, and make the table of their predictions.

    Args:
        arguments: The command line.
        dataset: On the device to train on.
        mixture: How to mix the images.
        precision: Data type of matrix products.

    Returns:
        The table, see predict_pictures.

    Raises:
        UsageError: If a saved teacher or table has other settings or is damaged.
        RunError: If a file cannot be read or written.
    """
    labels = mixture.mix_labels(dataset.labels.cpu())
    folder = arguments.out / TEACHER_FOLDER
    prepare_folder(folder)
    trainers = [
        MixTrainer(Teacher, dataset, TEACHER_RECIPE, seed, precision, mixture=mixture, table=labels)
        for seed in range(TEACHERS)
    ]
    with lock_folder(folder, wait=True):  # one of several processes does it for all
        paths = [folder / f"teacher{trainer.seed}{SUFFIX}" for trainer in trainers]
        if not all(path.exists() for path in paths):
            cli.check_previous_results(arguments, map(state_path, paths))
        for trainer, path in zip(trainers, paths, strict=True):
            if not path.exists():
                train_teacher(trainer, path, arguments)
            weights = load_stage(path, trainer.identity(), trainer.averaged.state_dict())
            trainer.averaged.load_state_dict(weights)
        path = folder / f"predictions{SUFFIX}"
        identity = {"teachers": [trainer.identity() for trainer in trainers]}
        if not path.exists():
            table = predict_pictures(trainers)
            save_tensors(path, {"probabilities": table}, {"identity": identity})
        return load_stage(path, identity, {"probabilities": labels})["probabilities"]


def train_teacher(trainer: Trainer, path: Path, arguments: argparse.Namespace) -> None:
    """Train one teacher and save its weights."""
    fashionmnist.train(trainer, "teacher", state_path(path), arguments)
    figures = {"history": trainer.history, "train_seconds": trainer.train_seconds}
    save_tensors(path, trainer.averaged.state_dict(), figures | {"identity": trainer.identity()})
    state_path(path).unlink(missing_ok=True)


def predict_pictures(trainers: Sequence[MixTrainer]) -> Tensor:
    """Return the mean of what the trainers' averaged weights predict for all pictures.

    Returns:
        Class probabilities, float16 (images, pictures, 10); zero where images are not trained on.
    """
    first = trainers[0]
    dataset, table = first.dataset, torch.zeros_like(first.table)
    for number in cli.progress_bar(range(table.shape[1]), "predictions"):
        for indices in dataset.train_indices.split(PREDICTED_AT_ONCE):
            images = first.draw(indices, torch.full_like(indices, number))
            with autocast(first.device, first.precision):
                probabilities = [
                    predict_logits(each.averaged, images, dataset.mean, dataset.std).softmax(1)
                    for each in trainers
                ]
            table[indices, number] = torch.stack(probabilities).mean(0).half()
    return table


def load_stage(
    path: Path, identity: dict[str, Any], expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Read tensors that an earlier stage saved.

    Args:
        path: The file.
        identity: The settings that determine the tensors.
        expected: Tensors with the same names, shapes and data types.

    Raises:
        UsageError: If the file is damaged or of other settings.
        RunError: If it cannot be read.
    """

    def describe(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    tensors, metadata = load_tensors(path)
    advice = "remove it, or choose another folder with --out"
    if metadata.get("identity") != identity:
        raise UsageError(f"{path} was made with other settings or data: {advice}")
    finite = all(tensor.isfinite().all() for tensor in tensors.values())
    if describe(tensors) != describe(expected) or not finite:
        raise UsageError(f"{path} is damaged: {advice}")
    return tensors


def state_path(path: Path) -> Path:
    """Return the path of the state from which to resume the training of a teacher."""
    return path.with_suffix(".resume.pt")


def main(arguments: argparse.Namespace) -> None:
    """Train the teachers, then all models with all seeds, and write results and pictures."""
    if arguments.summary:
        fashionmnist.main(arguments)
        return
    device, precision = fashionmnist.prepare_device(arguments)
    # On a GPU, choose the fastest algorithm for each convolution, which pays in long trainings.
    torch.backends.cudnn.benchmark = not arguments.deterministic
    dataset = cli.load_data(arguments).to(device)
    pictures = ROUNDS * view_count(TEACHER_RECIPE.shift, TEACHER_RECIPE.flip)
    mixture = draw_mixture(len(dataset.images), dataset.train_indices.cpu(), pictures)
    with cli.advise("choose another folder with --out", RunError):
        table = teach(arguments, dataset, mixture, precision)

    def make_trainer(network: type[Network], *settings: Any) -> Trainer:
        return MixTrainer(network, *settings, mixture=mixture, table=table)

    fashionmnist.main(arguments, make_trainer)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.record",
        "Train the networks for accuracy, with teachers and more epochs.",
    )
    out = cli.OUTPUT_FOLDER / "record"
    arguments = fashionmnist.parse_options(parser, BEST_RECIPES, argv, out)
    arguments.series = True  # these trainings are long: keep each of them
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
