"""Distortions of images, in levels from none to strong.

Each distortion takes uint8 images (N, 28, 28) with a black background and a level, and returns new
ones. What is random is the same in every call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torchvision.transforms.v2.functional as transforms
from torch import Tensor
from torchvision.transforms import InterpolationMode

from fashion.data import IMAGE_SIZE, pad

SEED = 0
# All eight directions: (rows down, columns to the right) for a shift of one pixel.
DIRECTIONS = [step for step in product((-1, 0, 1), repeat=2) if any(step)]


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion.

    Attributes:
        name: Its name.
        unit: What the levels count, for the label of an axis.
        levels: Levels to measure. Exactly one of them changes nothing.
        neutral: The level that changes nothing.
        apply: Distorts images (N, 28, 28) to a level.
    """

    name: str
    unit: str
    levels: Sequence[float]
    neutral: float
    apply: Callable[[Tensor, float], Tensor]


def shift(images: Tensor, pixels: float) -> Tensor:
    """Shift images by this number of pixels, each in one of eight directions, in turn."""
    distance = int(pixels)
    padded = pad(images, distance)
    shifted = torch.empty_like(images)
    for number, (down, right) in enumerate(DIRECTIONS):
        top, left = distance * (1 - down), distance * (1 - right)
        part = slice(number, None, len(DIRECTIONS))
        shifted[part] = padded[part, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return shifted


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images about their centres, every other one clockwise."""
    rotated = images.clone()
    for first, angle in enumerate((degrees, -degrees)):
        rotated[first::2] = _transform(images[first::2], angle=angle)
    return rotated


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge images about their centres by a factor above 0; those below 1 make them smaller."""
    return _transform(images, factor=factor)


def _transform(images: Tensor, angle: float = 0.0, factor: float = 1.0) -> Tensor:
    """Rotate by degrees and enlarge, with bilinear interpolation."""
    moved = transforms.affine(
        images.unsqueeze(1), angle, [0, 0], factor, [0.0, 0.0], InterpolationMode.BILINEAR
    )
    return moved.squeeze(1)


def blur(images: Tensor, deviation: float) -> Tensor:
    """Blur images with a Gaussian of this standard deviation in pixels; 0 changes nothing."""
    if not deviation:
        return images.clone()
    size = 2 * round(3 * deviation) + 1  # covers three standard deviations on each side
    return transforms.gaussian_blur(images.unsqueeze(1), [size, size], [deviation]).squeeze(1)


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise of this standard deviation in grey levels, from 0 to 255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return (images + deviation * noise.to(images.device)).round().clamp(0, 255).to(torch.uint8)


def lower_contrast(images: Tensor, factor: float) -> Tensor:
    """Multiply grey levels by a factor from 0 to 1; the background stays black."""
    return (images * factor).round().to(torch.uint8)


def occlude(images: Tensor, side: float) -> Tensor:
    """Blacken a square with sides of this many pixels at a random place inside each image."""
    size = int(side)
    generator = torch.Generator().manual_seed(SEED)
    corners = torch.randint(IMAGE_SIZE - size + 1, (2, len(images), 1), generator=generator)
    distances = torch.arange(IMAGE_SIZE) - corners
    rows, columns = ((distances >= 0) & (distances < size)).to(images.device)
    return images.masked_fill(rows[:, :, None] & columns[:, None, :], 0)


DISTORTIONS = (
    Distortion("shift", "pixels, in all directions", (0, 1, 2, 3, 4, 6), 0, shift),
    Distortion("rotation", "degrees, both ways", (0, 5, 10, 20, 30, 45), 0, rotate),
    Distortion("zoom", "factor", (0.6, 0.75, 0.9, 1, 1.1, 1.25, 1.5), 1, zoom),
    Distortion("blur", "standard deviation, pixels", (0, 0.5, 1, 1.5, 2, 3), 0, blur),
    Distortion("noise", "standard deviation, grey levels", (0, 8, 16, 32, 48, 64), 0, add_noise),
    Distortion("contrast", "factor", (1, 0.75, 0.5, 0.35, 0.25, 0.15), 1, lower_contrast),
    Distortion("occlusion", "side of a black square, pixels", (0, 4, 8, 12, 16), 0, occlude),
)
