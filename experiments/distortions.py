"""Distortions of images, in levels from none to strong, for experiments.why_convolution.

Each takes images uint8 (N, 28, 28) on black and returns new ones. Random numbers are the same in
every call, so that all networks see the same images.
"""

from collections.abc import Callable, Sequence
from itertools import product

from fashion.data import SIZE

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as transforms
from torch import Tensor
from torchvision.transforms import InterpolationMode

SEED = 0
# All eight directions: (rows down, columns to the right) for a shift of one pixel.
DIRECTIONS = [step for step in product((-1, 0, 1), repeat=2) if any(step)]


def shift(images: Tensor, pixels: float) -> Tensor:
    """Shift images by this number of pixels, in eight directions by turns."""
    shifted = images.clone()
    for number, (down, right) in enumerate(DIRECTIONS):
        y, x = down * int(pixels), right * int(pixels)
        part = slice(number, None, len(DIRECTIONS))
        shifted[part] = F.pad(images[part], [x, -x, y, -y])
    return shifted


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images about their centres, every other one clockwise."""
    rotated = images.clone()
    for first, angle in enumerate((degrees, -degrees)):
        part = images[first::2, None]
        rotated[first::2] = transforms.rotate(part, -angle, InterpolationMode.BILINEAR)[:, 0]
    return rotated


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge images about their centres; factors below 1 make them smaller."""
    bilinear = InterpolationMode.BILINEAR
    return transforms.affine(images[:, None], 0, [0, 0], factor, [0, 0], bilinear)[:, 0]


def blur(images: Tensor, deviation: float) -> Tensor:
    """Blur images with a Gaussian of this standard deviation in pixels."""
    if not deviation:
        return images
    size = 2 * round(3 * deviation) + 1  # covers three standard deviations on each side
    return transforms.gaussian_blur(images[:, None], [size, size], [deviation])[:, 0]


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise of this standard deviation in grey levels, from 0 to 255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return (images + deviation * noise.to(images.device)).round().clamp(0, 255).byte()


def lower_contrast(images: Tensor, factor: float) -> Tensor:
    """Multiply grey levels by a factor from 0 to 1; the background stays black."""
    return (images * factor).round().byte()


def occlude(images: Tensor, side: float) -> Tensor:
    """Blacken a square with this side in pixels at a random place inside each image."""
    generator = torch.Generator().manual_seed(SEED)
    corners = torch.randint(SIZE - int(side) + 1, (2, len(images), 1), generator=generator)
    distances = torch.arange(SIZE) - corners
    rows, columns = ((distances >= 0) & (distances < side)).to(images.device)
    return images.masked_fill(rows[:, :, None] & columns[:, None, :], 0)


# The unit of the levels, the levels, of which one changes nothing, and the function.
DISTORTIONS: dict[str, tuple[str, Sequence[float], Callable[[Tensor, float], Tensor]]] = {
    "shift": ("pixels, in all directions", (0, 1, 2, 3, 4, 6), shift),
    "rotation": ("degrees, both ways", (0, 5, 10, 20, 30, 45), rotate),
    "zoom": ("factor", (0.6, 0.75, 0.9, 1, 1.1, 1.25, 1.5), zoom),
    "blur": ("standard deviation, pixels", (0, 0.5, 1, 1.5, 2, 3), blur),
    "noise": ("standard deviation, grey levels", (0, 8, 16, 32, 48, 64), add_noise),
    "contrast": ("factor", (1, 0.75, 0.5, 0.35, 0.25, 0.15), lower_contrast),
    "occlusion": ("side of a black square, pixels", (0, 4, 8, 12, 16), occlude),
}
