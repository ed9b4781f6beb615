"""Load Fashion-MNIST or synthetic images; split, normalize and augment the images."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import FashionMNIST

from fashion import synthetic
from fashion.download import NETWORK_TIMEOUT, NoSourceError, has_files, load_fashion_mnist

logger = logging.getLogger(__name__)

IMAGE_SIZE = 28  # pixels
CLASS_NAMES = tuple(FashionMNIST.classes)
CLASS_COUNT = len(CLASS_NAMES)

FASHION_MNIST = "fashion-mnist"
SYNTHETIC = "synthetic"
TITLES = {FASHION_MNIST: "Fashion-MNIST", SYNTHETIC: "synthetic images, not Fashion-MNIST"}

# A twelfth of the images of each class, chosen at random, is for validation: 500 of 6,000.
VALIDATION_SHARE = 1 / 12
# The split and the synthetic images have their own seeds, so that they are the same in all runs.
SPLIT_SEED = 20170828
SYNTHETIC_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 (N, 28, 28) with a black (0) background, labels as int64 (N,) from 0 to 9.

    `images` and `labels` are the whole training file, which the indices split. `mean` and `std`
    are those of the training part's pixels after division by 255.
    """

    name: str  # FASHION_MNIST or SYNTHETIC
    images: Tensor
    labels: Tensor
    train_indices: Tensor
    validation_indices: Tensor
    test_images: Tensor  # to evaluate on once, after training
    test_labels: Tensor
    mean: float
    std: float

    def to(self, device: torch.device) -> "Dataset":
        """Return the dataset with all its tensors on the device."""
        tensors: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    @property
    def title(self) -> str:
        """What figures and tables call the dataset."""
        return TITLES[self.name]


def load_dataset(
    choice: str,
    data_dir: Path,
    mirror: str | None = None,
    timeout: float = NETWORK_TIMEOUT,
    limit: int | None = None,
) -> Dataset:
    """Load Fashion-MNIST from disk or the network, or draw synthetic images.

    Args:
        choice: "fashion-mnist", "synthetic" or "auto": Fashion-MNIST, or synthetic images (with
            a warning in the log) if none of its files is on disk and it cannot be downloaded.
        data_dir: Folder in which FashionMNIST/raw holds, or will hold, the four files.
        mirror: Address to try before torchvision's.
        timeout: Seconds to wait for the network.
        limit: Number of training images to use; None for all.

    Raises:
        RunError: If Fashion-MNIST is required or partly on disk, but cannot be completed.
    """
    if choice != SYNTHETIC:
        try:
            name, (train, test) = FASHION_MNIST, load_fashion_mnist(data_dir, mirror, timeout)
        except NoSourceError as error:
            if choice == FASHION_MNIST or has_files(data_dir):
                raise
            logger.warning("%s\nContinuing with the %s", error, TITLES[SYNTHETIC])
            choice = SYNTHETIC
    if choice == SYNTHETIC:
        name, (train, test) = SYNTHETIC, synthetic.draw_dataset(SYNTHETIC_SEED)
    train_indices, validation_indices = split_indices(train[1])
    train_indices = train_indices[:limit]
    statistics = pixel_statistics(train[0][train_indices])
    return Dataset(name, *train, train_indices, validation_indices, *test, *statistics)


def split_indices(labels: Tensor, share: float = VALIDATION_SHARE) -> tuple[Tensor, Tensor]:
    """Split labels, int64 (N,), into a training part and a balanced one for validation.

    Args:
        labels: Labels from 0 to 9.
        share: Size of the validation part, in (0, 1). A larger one contains the smaller ones.

    Returns:
        The indices of both parts, int64, in ascending order. Equal labels are always split in the
        same way.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    per_class = round(len(labels) * share / CLASS_COUNT)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(CLASS_COUNT):
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[:per_class]]] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of uint8 images (N, 28, 28) after division by 255."""
    # Counting the 256 values is exact and needs no float copy of the images.
    counts = torch.bincount(images.flatten(), minlength=256).cpu().double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Map uint8 images (N, 28, 28) to float32 (N, 1, 28, 28) with mean 0 and deviation 1."""
    return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)


def pad(images: Tensor, shift: int) -> Tensor:
    """Add a black border of `shift` pixels to uint8 images (N, 28, 28), for augment."""
    return F.pad(images, (shift, shift, shift, shift))


def view_count(shift: int, flip: bool) -> int:
    """Return how many views of an image shifts by up to `shift` pixels and mirroring make."""
    return (2 * shift + 1) ** 2 * (2 if flip else 1)


def schedule_views(count: int, views: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the order in which each image goes through its views.

    In epoch e, an image is shown as view (first + e * step) % views. The steps have no divisor in
    common with the number of views, so that an image repeats no view before it has shown all.

    Args:
        count: Number of images.
        views: Number of views of an image, see view_count.
        generator: On the device of the result.

    Returns:
        The first views and the steps, both int64 (count,).
    """
    device = generator.device
    steps = [step for step in range(1, views + 1) if math.gcd(step, views) == 1]
    first = torch.randint(views, (count,), generator=generator, device=device)
    chosen = torch.randint(len(steps), (count,), generator=generator, device=device)
    return first, torch.tensor(steps, device=device)[chosen]


def augment(
    padded: Tensor,
    indices: Tensor,
    views: Tensor,
    shifted: float,
    flip: bool,
    generator: torch.Generator,
) -> Tensor:
    """Crop a batch from padded images, as the view of each that shifts and mirrors it.

    Args:
        padded: uint8 (M, 28 + 2 * shift, 28 + 2 * shift), see pad.
        indices: Which images, int64 (N,).
        views: The view of each, int64 (N,), see view_count. If `flip` is set, images are mirrored
            in odd views, which an image shows in every other epoch (Jordan, arXiv:2404.00498).
        shifted: Share of the images that are shifted, in [0, 1]; the others are chosen at random.
        flip: Whether the views include mirror images.
        generator: On the same device.

    Returns:
        uint8 (N, 28, 28).
    """
    # A view of every possible crop: indexing it copies whole rows, not single pixels.
    crops = padded.unfold(1, IMAGE_SIZE, 1).unfold(2, IMAGE_SIZE, 1)
    side = crops.shape[1]
    places = views // 2 if flip else views
    if shifted < 1:
        draws = torch.rand(len(indices), generator=generator, device=indices.device)
        places = places.masked_fill(draws >= shifted, side**2 // 2)  # the centre
    images = crops[indices, places // side, places % side]
    if flip:
        images = torch.where((views % 2 == 1)[:, None, None], images.flip(2), images)
    return images
