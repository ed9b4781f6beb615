"""Fashion-MNIST as tensors, and the views of its images that the networks train on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fashion.download import UnavailableError, load_files
from fashion.recipe import Recipe
from fashion.script import printable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIZE = 28  # pixels
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD_OUT = 1 / 12  # of each class, for validation: 500 of 6,000 images
SPLIT_SEED = 20170828  # one split for all runs, whatever their seed
TITLE = "Fashion-MNIST"
SAMPLE = Path(__file__).parents[1] / "sample"  # 12,000 real images, for use without the dataset


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, 28, 28) on black, labels int64 (N,), and pixel statistics after / 255."""

    title: str  # what figures and tables call it
    images: Tensor  # of the training file, which `train` and `validation` index
    labels: Tensor
    train: Tensor
    validation: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float  # of the pixels of the training part
    std: float

    def to(self, device: torch.device) -> "Dataset":
        """Return the dataset with its tensors on the device."""
        tensors: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of all images and labels, and of how they are split."""
        digest = hashlib.sha256()
        for value in vars(self).values():
            if isinstance(value, Tensor):
                digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()


def load(folder: Path, limit: int | None = None, sample: bool = False) -> Dataset:
    """Load Fashion-MNIST from the folder or the network, or the sample if neither has it.

    Args:
        folder: The folder to search, and to download to.
        limit: Number of training images to use; None for all.
        sample: Use the sample in any case.
    """
    if not sample:
        try:
            return load_full(folder, limit)
        except UnavailableError as error:
            print(
                f"{printable(str(error))}\n"
                "The sample of 12,000 images that comes with the project is used instead."
            )
    return load_sample(limit)


def load_full(folder: Path, limit: int | None = None) -> Dataset:
    """Load all of Fashion-MNIST."""
    arrays: list[Tensor] = []
    for content in load_files(folder):
        start = 4 + 4 * content[3]  # the header states the number of dimensions and their sizes
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start)
        arrays.append(data.view(-1, SIZE, SIZE) if content[3] == 3 else data.long())
    return split(TITLE, arrays, limit)


def load_sample(limit: int | None = None) -> Dataset:
    """Load the part of Fashion-MNIST that comes with the project: 10,000 and 2,000 images."""
    arrays: list[Tensor] = []
    for name in ("train", "test"):
        with Image.open(SAMPLE / f"{name}.png") as picture:
            arrays += read_tiles(np.asarray(picture))
    return split(f"{TITLE} sample, 10,000 images", arrays, limit)


def read_tiles(picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the images (N, 28, 28) and labels (N,) of tiles in ten bands, one for each class."""
    rows, columns = (edge // SIZE for edge in picture.shape)
    tiles = picture.reshape(rows, SIZE, columns, SIZE).swapaxes(1, 2).reshape(-1, SIZE, SIZE)
    labels = torch.arange(len(CLASSES)).repeat_interleave(len(tiles) // len(CLASSES))
    return torch.from_numpy(tiles.copy()), labels


def split(title: str, arrays: Sequence[Tensor], limit: int | None) -> Dataset:
    """Hold out the same share of each class at random, and keep at most `limit` images to train on.

    The arrays are training images and labels, test images and labels. The split depends on the
    labels only, not on the seed of a training.
    """
    images, labels, test_images, test_labels = arrays
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(CLASSES)):
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[: round(HELD_OUT * len(members))]]] = True
    train, validation = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    if limit and limit < len(train):
        # At random, since the sample is sorted by class.
        train = train[torch.randperm(len(train), generator=generator)[:limit]]
        title += f", {limit:,} to train on"
    mean, std = pixel_statistics(images[train])
    return Dataset(title, images, labels, train, validation, test_images, test_labels, mean, std)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of uint8 images after division by 255."""
    # Counting the 256 values is exact and needs no float copy of the images.
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Map uint8 (N, 28, 28) to float32 (N, 1, 28, 28) with mean 0 and deviation 1."""
    return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)


class Views:
    """Augmentation: the images, shifted by up to recipe.max_shift pixels and mirrored.

    From epoch to epoch, each image goes through its shifts in turn and is mirrored every other
    time, as in Jordan, arXiv:2404.00498. The number of shifts is odd, so that with a shift of 1,
    18 epochs show all 9 shifts, mirrored and not.
    """

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        self.recipe, self.side = recipe, 2 * recipe.max_shift + 1
        # A view on every crop: indexing it copies whole rows, not single pixels.
        self.crops = F.pad(images, [recipe.max_shift] * 4).unfold(1, SIZE, 1).unfold(2, SIZE, 1)
        # The view of each image in the first epoch.
        self.first = torch.randint(1000, (len(images),)).to(images.device)

    def show(self, indices: Tensor, epoch: int) -> Tensor:
        """Return the images with these indices as uint8 (N, 28, 28)."""
        view = self.first[indices] + epoch
        place = view % self.side**2
        if self.recipe.shift_share < 1:  # leave some in the centre
            still = torch.rand(len(indices), device=indices.device) >= self.recipe.shift_share
            place = place.masked_fill(still, self.side**2 // 2)
        images = self.crops[indices, place // self.side, place % self.side]
        if not self.recipe.flip:
            return images
        return torch.where((view % 2 == 1)[:, None, None], images.flip(2), images)
