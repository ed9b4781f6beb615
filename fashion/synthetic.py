"""Draw synthetic images in place of Fashion-MNIST: ten classes of garments as shaded silhouettes.

It lets everything run without the data and without an internet connection. It is not a benchmark:
results on it say nothing about Fashion-MNIST. As there, the images are grey, 28 × 28, on a black
background, and the classes have the same order. T-shirt, pullover, coat, shirt and dress resemble
each other on purpose.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

TRAIN_COUNT = 12_000
TEST_COUNT = 2_000

SIZE = 28  # pixels, as in Fashion-MNIST
CANVAS = 3 * SIZE  # drawn larger and averaged down for soft edges
COORDINATES = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5  # of the pixels, relative to the centre

# Ranges of the random variation, relative to the image size or as a factor. They are wide enough
# that a network without convolutions loses more accuracy than one with them.
SHIFT = 0.09
SCALE = (0.6, 1.05)
STRETCH = (0.75, 1.2)
TILT = np.deg2rad(12)  # both ways
WOBBLE = 0.02  # standard deviation of each corner of a polygon
TONE = (0.5, 1.1)  # of each polygon, relative to the shade of the garment
NOISE = (4.0, 26.0)  # standard deviation in grey levels

Polygon = list[tuple[float, float]]  # (x, y) in the unit square, y downwards


def draw_dataset(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw 12,000 images for training and 2,000 for testing, equally many of each class.

    Returns:
        ((images, labels), (images, labels)) for training and for testing, uint8 (N, 28, 28) and
        int64 (N,).
    """
    generator = np.random.default_rng(seed)
    train = _draw_images(TRAIN_COUNT, generator)
    return train, _draw_images(TEST_COUNT, generator)


def _draw_images(count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    labels = generator.permutation(np.arange(count) % len(GARMENTS))
    images = np.stack([draw_garment(label, generator) for label in labels])
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw_garment(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draw an image, uint8 (28, 28), of the class with this label, 0 to 9."""
    image = _draw_silhouette(GARMENTS[label], generator) * _shading(generator)
    image += generator.normal(0, generator.uniform(*NOISE), image.shape) * (image > 0)
    height, width = generator.integers(0, 10, 2)  # of a rectangle that covers a part
    top, left = generator.integers(0, SIZE - 9, 2)
    image[top : top + height, left : left + width] = generator.uniform(0, 200)
    return image.clip(0, 255).astype(np.uint8)


def _draw_silhouette(polygons: list[Polygon], generator: np.random.Generator) -> np.ndarray:
    """Draw polygons, each in its own grey level, with random place, size, angle and corners."""
    angle = generator.uniform(-TILT, TILT)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = generator.uniform(*SCALE) * np.array([generator.uniform(*STRETCH), 1])
    centre = 0.5 + generator.uniform(-SHIFT, SHIFT, 2)
    shade = generator.uniform(90, 235)
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        corners = (generator.normal(polygon, WOBBLE) - 0.5) * scale
        points = (corners @ turn + centre) * CANVAS
        tone = min(255, shade * generator.uniform(*TONE))
        draw.polygon(points.ravel().tolist(), fill=int(tone))
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)


def _shading(generator: np.random.Generator) -> np.ndarray:
    """Return brightness factors (28, 28): light from one side, and stripes on half the garments."""
    rows, columns = COORDINATES
    light = 1 + generator.uniform(-0.5, 0.5) * rows + generator.uniform(-0.5, 0.5) * columns
    if generator.random() < 0.5:
        angle, waves = generator.uniform(0, np.pi), generator.uniform(3, 9)
        phase = 2 * np.pi * waves * (np.cos(angle) * rows + np.sin(angle) * columns)
        light *= 1 + generator.uniform(0.05, 0.35) * np.sin(phase + generator.uniform(0, 6))
    return light


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _pair(right: Polygon) -> list[Polygon]:
    """Return a polygon and its mirror image."""
    return [right, [(1 - x, y) for x, y in right]]


def _top(sleeve: float, hem: float) -> list[Polygon]:
    """Return two sleeves of this length and a torso that ends at this height."""
    arm = [(0.67, 0.17), (0.7, 0.2), (0.7 + 0.3 * sleeve, 0.24 + sleeve)]
    arm += [(0.59 + 0.3 * sleeve, 0.25 + sleeve), (0.67, 0.34)]
    half = [(0.5, 0.2), (0.58, 0.14), (0.7, 0.2), (0.72, hem)]
    right, left = _pair(half)
    return [*_pair(arm), right + left[::-1]]


# In the order of Fashion-MNIST's labels.
GARMENTS = [
    # T-shirt
    _top(sleeve=0.13, hem=0.8),
    # Trouser
    _pair([(0.5, 0.08), (0.65, 0.08), (0.64, 0.93), (0.54, 0.93), (0.5, 0.35)]),
    # Pullover, with a band
    [*_top(sleeve=0.5, hem=0.78), _box(0.32, 0.75, 0.68, 0.79)],
    # Dress
    [[(0.38, 0.08), (0.62, 0.08), (0.61, 0.42), (0.7, 0.94), (0.3, 0.94), (0.39, 0.42)]],
    # Coat, open at the front
    [*_top(sleeve=0.52, hem=0.88), [(0.42, 0.14), (0.58, 0.14), (0.5, 0.9)]],
    # Sandal
    [
        [(0.08, 0.72), (0.92, 0.63), (0.92, 0.78), (0.08, 0.78)],
        *([(x, 0.72), (x + 0.05, 0.45), (x + 0.11, 0.45), (x + 0.06, 0.72)] for x in (0.15, 0.45)),
    ],
    # Shirt, with a collar and buttons
    [*_top(sleeve=0.35, hem=0.83), _box(0.494, 0.24, 0.51, 0.8)],
    # Sneaker
    [
        [(0.06, 0.68), (0.1, 0.56), (0.36, 0.5), (0.6, 0.43), (0.9, 0.43), (0.94, 0.68)],
        _box(0.05, 0.67, 0.95, 0.74),
    ],
    # Bag
    [
        *_pair([(0.67, 0.42), (0.62, 0.25), (0.6, 0.42)]),
        _box(0.37, 0.25, 0.63, 0.3),
        [(0.16, 0.42), (0.84, 0.42), (0.86, 0.88), (0.14, 0.88)],
    ],
    # Ankle boot
    [
        [(0.08, 0.82), (0.12, 0.58), (0.46, 0.48), (0.5, 0.2), (0.88, 0.2), (0.9, 0.82)],
        _box(0.07, 0.8, 0.9, 0.86),
        _box(0.66, 0.8, 0.9, 0.9),
    ],
]
