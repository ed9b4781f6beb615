"""Draw a stand-in for Fashion-MNIST: ten classes of garments as shaded silhouettes.

With it everything runs where neither the data nor a network is available. It is not a benchmark:
results on it say nothing about Fashion-MNIST. As there, the images are grey, 28 × 28, on a black
background, and the classes have the same order. T-shirt, pullover, coat, shirt and dress overlap on
purpose.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

TRAIN_COUNT = 12_000
TEST_COUNT = 2_000

SIZE = 28  # pixels, as in Fashion-MNIST
# Drawn at three times the size and averaged down for soft edges.
CANVAS = 3 * SIZE

COORDINATES = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5  # of the pixels, relative to the centre

# Ranges of the random placement, relative to the image size or as a factor. They are wide enough
# that a network without convolutions loses more accuracy than one with them.
SHIFT = 0.09
SCALE = (0.72, 1.05)
STRETCH = (0.85, 1.15)
TILT = 12.0  # degrees, both ways
NOISE = (4.0, 26.0)  # standard deviation in grey levels

Polygon = list[tuple[float, float]]  # (x, y) in the unit square, y downwards
Garment = list[Polygon]  # in drawing order


def draw_dataset(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw 12,000 images for training and 2,000 for testing, equally many of each class.

    Args:
        seed: The same seed gives the same images.

    Returns:
        ((images, labels), (images, labels)) for training and for testing, uint8 (N, 28, 28) and
        int64 (N,).
    """
    generator = np.random.default_rng(seed)
    train = _draw_images(TRAIN_COUNT, generator)
    test = _draw_images(TEST_COUNT, generator)
    return train, test


def _draw_images(count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    labels = generator.permutation(np.arange(count) % len(OUTLINES))
    images = np.stack([draw_garment(label, generator) for label in labels])
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw_garment(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draw an image, uint8 (28, 28), of the class with this label, 0 to 9."""
    shade = generator.uniform(90, 235)
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    place = _random_placement(generator)
    for polygon in OUTLINES[label](generator):
        tone = shade * generator.uniform(0.8, 1.1)
        draw.polygon(place(polygon), fill=int(min(tone, 255)))
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    image = np.asarray(small, dtype=np.float64) * _shading(generator)
    image += generator.normal(0, generator.uniform(*NOISE), image.shape) * (image > 0)
    _occlude(image, generator)
    return image.clip(0, 255).astype(np.uint8)


def _random_placement(generator: np.random.Generator) -> Callable[[Polygon], list[float]]:
    """Return a function that maps a polygon to coordinates x, y, x, y, ... on the canvas."""
    angle = np.deg2rad(generator.uniform(-TILT, TILT))
    scale = generator.uniform(*SCALE) * np.array([generator.uniform(*STRETCH), 1])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = 0.5 + generator.uniform(-SHIFT, SHIFT, 2)

    def place(polygon: Polygon) -> list[float]:
        points = ((np.array(polygon) - 0.5) * scale @ rotation.T + centre) * CANVAS
        return points.ravel().tolist()

    return place


def _shading(generator: np.random.Generator) -> np.ndarray:
    """Return brightness factors (28, 28): light from one side, and stripes on half the garments."""
    rows, columns = COORDINATES
    light = 1 + generator.uniform(-0.5, 0.5) * rows + generator.uniform(-0.5, 0.5) * columns
    if generator.random() < 0.5:
        angle, waves = generator.uniform(0, np.pi), generator.uniform(3, 9)
        phase = 2 * np.pi * waves * (np.cos(angle) * rows + np.sin(angle) * columns)
        light *= 1 + generator.uniform(0.05, 0.35) * np.sin(phase + generator.uniform(0, 6))
    return light


def _occlude(image: np.ndarray, generator: np.random.Generator) -> None:
    """Set a rectangle of up to 9 × 9 pixels to one grey level, in place."""
    height, width = generator.integers(0, 10, 2)
    top, left = generator.integers(0, SIZE - 9, 2)
    image[top : top + height, left : left + width] = generator.uniform(0, 200)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _mirror(polygon: Polygon) -> Polygon:
    return [(1 - x, y) for x, y in polygon]


def _top(
    generator: np.random.Generator, sleeve: tuple[float, float], hem: tuple[float, float]
) -> Garment:
    """Return two sleeves and a torso, for ranges of sleeve length and of the hem's height."""
    width, neck = generator.uniform(0.17, 0.23), generator.uniform(0.06, 0.1)
    bottom, flare = generator.uniform(*hem), generator.uniform(-0.02, 0.05)
    torso = [
        (0.5 - neck, 0.14),
        (0.5, 0.14 + generator.uniform(0.02, 0.1)),
        (0.5 + neck, 0.14),
        (0.5 + width, 0.2),
        (0.5 + width + flare, bottom),
        (0.5 - width - flare, bottom),
        (0.5 - width, 0.2),
    ]
    length, spread = generator.uniform(*sleeve), generator.uniform(0.08, 0.2)
    cuff = 0.5 + width + spread * length / 0.5
    arm = [
        (0.5 + width - 0.03, 0.18),
        (0.5 + width, 0.2),
        (cuff, 0.24 + length),
        (cuff - 0.11, 0.25 + length),
        (0.5 + width - 0.03, 0.34),
    ]
    return [arm, _mirror(arm), torso]


def _t_shirt(generator: np.random.Generator) -> Garment:
    return _top(generator, sleeve=(0.06, 0.2), hem=(0.72, 0.88))


def _trouser(generator: np.random.Generator) -> Garment:
    hip, cuff = generator.uniform(0.12, 0.19), generator.uniform(0.07, 0.13)
    gap, crotch = generator.uniform(0.0, 0.05), generator.uniform(0.3, 0.45)
    leg = [
        (0.5, 0.08),
        (0.5 + hip, 0.08),
        (0.5 + gap + cuff, 0.93),
        (0.5 + gap, 0.93),
        (0.5, crotch),
    ]
    return [leg, _mirror(leg)]


def _pullover(generator: np.random.Generator) -> Garment:
    cuff = generator.uniform(0.72, 0.86)
    band = _box(0.32, cuff - 0.04, 0.68, cuff)
    return [*_top(generator, sleeve=(0.42, 0.6), hem=(cuff - 0.02, cuff)), band]


def _dress(generator: np.random.Generator) -> Garment:
    waist, hem = generator.uniform(0.08, 0.15), generator.uniform(0.14, 0.28)
    height = generator.uniform(0.35, 0.5)
    body = [(0.38, 0.08), (0.62, 0.08), (0.5 + waist, height), (0.5 + hem, 0.94)]
    garment = [body + _mirror(body)[::-1]]
    if generator.random() < 0.4:
        arm = [(0.6, 0.1), (0.72, 0.1 + generator.uniform(0.1, 0.4)), (0.62, 0.3)]
        garment += [arm, _mirror(arm)]
    return garment


def _coat(generator: np.random.Generator) -> Garment:
    opening = 0.5 + generator.uniform(-0.03, 0.03)
    garment = _top(generator, sleeve=(0.42, 0.62), hem=(0.8, 0.95))
    lapel = [(0.42, 0.14), (0.58, 0.14), (opening, generator.uniform(0.3, 0.45))]
    return [*garment, lapel, _box(opening - 0.012, 0.3, opening + 0.012, 0.93)]


def _sandal(generator: np.random.Generator) -> Garment:
    sole = generator.uniform(0.68, 0.76)
    heel = generator.uniform(0.0, 0.18)
    garment = [[(0.08, sole), (0.92, sole - heel), (0.92, sole + 0.06), (0.08, sole + 0.06)]]
    for _ in range(generator.integers(2, 5)):
        left, width = generator.uniform(0.12, 0.75), generator.uniform(0.03, 0.07)
        rise, lean = generator.uniform(0.12, 0.36), generator.uniform(-0.12, 0.12)
        right, top = left + width, sole - rise
        garment.append([(left, sole), (left + lean, top), (right + lean, top), (right, sole)])
    return garment


def _shirt(generator: np.random.Generator) -> Garment:
    garment = _top(generator, sleeve=(0.12, 0.58), hem=(0.74, 0.92))
    collar = [(0.4, 0.1), (0.6, 0.1), (0.5, generator.uniform(0.2, 0.28))]
    return [*garment, collar, _box(0.494, 0.24, 0.51, 0.86)]


def _sneaker(generator: np.random.Generator) -> Garment:
    height, toe = generator.uniform(0.36, 0.5), generator.uniform(0.5, 0.62)
    upper = [
        (0.06, 0.68),
        (0.1, toe),
        (0.36, toe - 0.06),
        (0.6, height),
        (0.9, height),
        (0.94, 0.68),
    ]
    return [upper, _box(0.05, 0.67, 0.95, generator.uniform(0.71, 0.77))]


def _bag(generator: np.random.Generator) -> Garment:
    left, top = generator.uniform(0.08, 0.24), generator.uniform(0.32, 0.52)
    slant = generator.uniform(-0.06, 0.06)
    body = [(left + slant, top), (1 - left - slant, top), (1 - left, 0.88), (left, 0.88)]
    reach, rise = generator.uniform(0.1, 0.24), generator.uniform(0.05, 0.28)
    handle = [(0.5 - reach, top), (0.5 - reach * 0.7, top - rise), (0.5 - reach * 0.6, top)]
    strap = _box(0.5 - reach * 0.75, top - rise, 0.5 + reach * 0.75, top - rise + 0.05)
    return [handle, _mirror(handle), strap, body]


def _ankle_boot(generator: np.random.Generator) -> Garment:
    shaft, toe = generator.uniform(0.1, 0.36), generator.uniform(0.52, 0.64)
    upper = [(0.08, 0.82), (0.12, toe), (0.46, toe - 0.1), (0.5, shaft), (0.88, shaft), (0.9, 0.82)]
    heel = _box(0.66, 0.8, 0.9, generator.uniform(0.82, 0.94))
    return [upper, heel, _box(0.07, 0.8, 0.9, 0.86)]


# In the order of Fashion-MNIST's labels.
OUTLINES = (
    _t_shirt,
    _trouser,
    _pullover,
    _dress,
    _coat,
    _sandal,
    _shirt,
    _sneaker,
    _bag,
    _ankle_boot,
)
