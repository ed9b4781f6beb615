"""Bring a photo or drawing to what the networks know: 28 × 28 grey pixels, light on black.

The steps are those by which the dataset's authors made it from shop photos: Xiao, Rasul and
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
section 2 (https://arxiv.org/abs/1708.07747).
"""

import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from data import IMAGE_SIZE
from files import UserMistake, WorldFault

Colour = tuple[int, int, int]  # red, green, blue, from 0 to 255

# A picture of more pixels than this has no business here, and could fill the memory.
MAX_PIXELS = 50_000_000
# The authors': colours within 5 % of the largest possible distance from a corner's are ground.
GROUND_TOLERANCE = 0.05
# An edge row or column is ground even with so large a share of other pixels: dust, noise.
DUST = 0.01
SHARPEN_RADIUS = 1.0  # the authors', in pixels
# They name no strength; with this one, enlarged validation images are recognised best again.
SHARPEN_PERCENT = 60
SHARPEN_THRESHOLD = 4  # grey levels; weaker differences are no outlines, which are what to sharpen
LIGHT = 127.5  # grey level above which a ground is light, half way between black and white


def read_photo(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read a picture as RGB, upright; of an animation its first frame.

    Transparent parts become white, or black if what is not transparent is light itself.

    Args:
        source: a file's path, or a stream of its content.
        name: what an error calls it.

    Raises:
        UserMistake: when there is no such file, or it is no picture, damaged or too large.
        WorldFault: when it cannot be read.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UserMistake(f"{name}: there is no such file")
    try:
        # Pillow warns of what it mends, and of sizes that are refused here anyway.
        with warnings.catch_warnings(action="ignore"), Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserMistake(
                    f"{name}: {image.width} × {image.height} pixels are too many, at most "
                    f"{MAX_PIXELS:,} are read"
                )
            return _to_rgb(ImageOps.exif_transpose(image))
    except PermissionError as error:
        raise WorldFault(f"cannot read {name}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise UserMistake(f"{name}: too many pixels, at most {MAX_PIXELS:,} are read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow says of a broken file what its format's reader happens to stumble over.
        kind = "is no picture" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UserMistake(f"{name}: the file {kind}, or none that Pillow reads") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring every kind of pixel to RGB of 8 bits."""
    if image.mode[0] in "IF":  # 16 or 32 bits, whose range nothing states: black to white it is
        values = np.asarray(image, dtype=float)
        low, high = values.min(), values.max()
        image = Image.fromarray(np.uint8((values - low) * (255 / ((high - low) or 1))))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), dtype=float)
    grey = np.asarray(image.convert("RGB").convert("L"), dtype=float)
    light = (grey * alpha).sum() > LIGHT * alpha.sum()
    ground = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def prepare(photo: Image.Image, name: str) -> np.ndarray:
    """Bring a photo to what the networks know, step by step as the dataset's authors did.

    Args:
        photo: RGB, of any size.
        name: what an error calls it.

    Returns:
        uint8 (28, 28), a light garment on black ground.

    Raises:
        UserMistake: when nothing on it differs from its ground.
    """
    ground = ground_colour(photo)
    image = trim(photo, ground)
    if image is None:
        raise UserMistake(f"{name}: the picture shows nothing but its ground")
    image = centre(sharpen(shrink(image)), ground)
    return to_grey(image, ground)


def ground_colour(photo: Image.Image) -> Colour:
    """Return the ground's colour: the median of the four corner pixels."""
    corners = np.asarray(photo)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(int(value) for value in np.median(corners, axis=0))


def trim(photo: Image.Image, ground: Colour) -> Image.Image | None:
    """Cut off the edges that show nothing but ground; None where that is all there is."""
    distance = np.linalg.norm(np.asarray(photo) - ground, axis=2)
    differs = distance > GROUND_TOLERANCE * math.sqrt(3) * 255
    rows, columns = (np.flatnonzero(differs.mean(axis=axis) > DUST) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    return photo.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def shrink(image: Image.Image) -> Image.Image:
    """Bring the longest edge to 28 pixels, the other one in proportion.

    The authors skip rows and columns, which loses thin lines; here they are averaged (Lanczos).
    """
    scale = IMAGE_SIZE / max(image.size)
    width, height = (max(1, round(scale * edge)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def sharpen(image: Image.Image) -> Image.Image:
    """Sharpen outlines with a Gaussian of radius 1."""
    return image.filter(ImageFilter.UnsharpMask(SHARPEN_RADIUS, SHARPEN_PERCENT, SHARPEN_THRESHOLD))


def centre(image: Image.Image, ground: Colour) -> Image.Image:
    """Put the image into the centre of 28 × 28 pixels of ground."""
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), ground)
    left, top = ((IMAGE_SIZE - edge) // 2 for edge in image.size)
    canvas.paste(image, (left, top))
    return canvas


def to_grey(image: Image.Image, ground: Colour) -> np.ndarray:
    """Make the image grey, negate it where the ground is light, and make the ground black.

    Shops photograph on white, so the authors always negate, and their ground is black then.
    """
    grey = np.asarray(image.convert("L"), dtype=float)
    level = float(Image.new("RGB", (1, 1), ground).convert("L").getpixel((0, 0)))
    if level > LIGHT:
        grey, level = 255 - grey, 255 - level
    return np.uint8(np.clip((grey - level) * 255 / (255 - level), 0, 255).round())
