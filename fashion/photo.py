"""Convert a photo or drawing to an image like those of Fashion-MNIST: 28 × 28, grey, on black.

The steps are those by which the dataset's authors made it from shop photos: Xiao, Rasul and
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
section 2 (https://arxiv.org/abs/1708.07747).
"""

import contextlib
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from fashion.data import IMAGE_SIZE
from fashion.files import RunError, UsageError

Colour = tuple[int, ...]  # red, green, blue, from 0 to 255

# Formats that are read, by Pillow's names. Others are left out because their readers start other
# programs (EPS) or are rarely tested.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # larger images could fill the memory
WORKING_SIZE = 1024  # pixels; larger photos are reduced first, which bounds memory and time
# From the paper: colours within 5 % of the largest possible distance from a corner's colour.
BACKGROUND_TOLERANCE = 0.05 * math.dist((0, 0, 0), (255, 255, 255))
DUST = 0.01  # share of other pixels (dust, noise) that a row or column of background may hold
# The radius in pixels is the paper's, which gives no strength: with this one, enlarged validation
# images are classified best. Differences of fewer grey levels are texture or noise, not outlines.
SHARPENING = ImageFilter.UnsharpMask(radius=1, percent=60, threshold=4)


def read_photo(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read an image file as RGB, upright; of an animation, read the first frame.

    Transparent parts become white, or black if the visible parts are light. Errors call the file
    by `name`.

    Raises:
        UsageError: If the file does not exist, is not an image, is damaged or too large.
        RunError: If the file cannot be read.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UsageError(f"{name}: no such file")
    limit = f"at most {MAX_PIXELS:,} are supported"
    try:
        # Pillow warns about details it corrects, and about sizes that are rejected here anyway.
        with warnings.catch_warnings(action="ignore"), Image.open(source, "r", FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} × {image.height}"
                raise UsageError(f"{name}: too many pixels ({size}), {limit}")
            # A JPEG can be decoded at a fraction of its size; other formats ignore this.
            image.draft(None, (WORKING_SIZE, WORKING_SIZE))
            reduced = _reduce(image)
            with contextlib.suppress(Exception):  # Pillow documents no errors for damaged EXIF data
                reduced = ImageOps.exif_transpose(reduced)
            return _to_rgb(reduced)
    except UsageError:
        raise
    except PermissionError as error:
        raise RunError(f"cannot read {name}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name}: too many pixels, {limit}") from error
    # Pillow documents no errors for damaged files, and its messages are about format details.
    except Exception as error:
        kind = "not an image" if isinstance(error, UnidentifiedImageError) else "damaged"
        formats = ", ".join(FORMATS)
        raise UsageError(f"{name}: the file is {kind}, or not one of {formats}") from error


def _reduce(image: Image.Image) -> Image.Image:
    """Return the image with at most WORKING_SIZE pixels per edge."""
    # The pixels of palettes and of 16 bits cannot be averaged.
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    image.thumbnail((WORKING_SIZE, WORKING_SIZE))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel."""
    if image.mode[0] in "IF":  # 16 or 32 bits; nothing states the range, so stretch it
        values = np.asarray(image, dtype=float)
        low, high = values.min(), values.max()
        image = Image.fromarray(((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), dtype=float)
    grey = np.asarray(image.convert("RGB").convert("L"), dtype=float)
    is_light = (grey * alpha).sum() > 127.5 * alpha.sum()
    background = Image.new("RGBA", image.size, "black" if is_light else "white")
    return Image.alpha_composite(background, image).convert("RGB")


def prepare(photo: Image.Image, name: str) -> np.ndarray:
    """Convert an RGB photo to uint8 (28, 28), a light garment on a black background.

    Raises:
        UsageError: If nothing in the photo differs from its background. It calls the file `name`.
    """
    background = background_colour(photo)
    image = trim(photo, background)
    if image is None:
        raise UsageError(f"{name}: the image shows nothing but its background")
    return to_grey(centre(shrink(image).filter(SHARPENING), background), background)


def background_colour(photo: Image.Image) -> Colour:
    """Return the colour of the background: the median of the four corner pixels."""
    corners = np.asarray(photo)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(np.median(corners, axis=0).astype(int).tolist())


def trim(photo: Image.Image, background: Colour) -> Image.Image | None:
    """Crop the edges that show only background; return None if nothing would remain."""
    distance = np.linalg.norm(np.asarray(photo) - background, axis=2)
    differs = distance > BACKGROUND_TOLERANCE
    rows, columns = (np.flatnonzero(differs.mean(axis=axis) > DUST) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    return photo.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def shrink(image: Image.Image) -> Image.Image:
    """Resize the longest edge to 28 pixels and the other one in proportion.

    The authors skip rows and columns, which loses thin lines; here they are averaged (Lanczos).
    """
    scale = IMAGE_SIZE / max(image.size)
    width, height = (max(1, round(scale * edge)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def centre(image: Image.Image, background: Colour) -> Image.Image:
    """Paste the image into the centre of 28 × 28 pixels of background."""
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    left, top = ((IMAGE_SIZE - edge) // 2 for edge in image.size)
    canvas.paste(image, (left, top))
    return canvas


def to_grey(image: Image.Image, background: Colour) -> np.ndarray:
    """Convert to grey, make the background black and the garment lighter than it.

    The authors always invert, because shop photos have a white background. Here, garments that are
    darker than their background are inverted.
    """
    grey = np.asarray(image.convert("L"), dtype=float)
    level = np.asarray(Image.new("RGB", (1, 1), background).convert("L"), dtype=float).item()
    if (grey - level).sum() < 0:
        grey, level = 255 - grey, 255 - level
    stretched = (grey - level) * 255 / max(255 - level, 1)
    return stretched.clip(0, 255).round().astype(np.uint8)
