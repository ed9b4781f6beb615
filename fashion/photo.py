"""Convert a photo or drawing to an image like those of Fashion-MNIST: 28 × 28, grey, on black.

The steps resemble those by which the dataset's authors made it from shop photos: Xiao, Rasul and
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
section 2 (https://arxiv.org/abs/1708.07747). They had shop photos on white; here GrabCut first
separates the garment from any other background. Such a garment is also moved towards the dataset's
mean grey level, narrowed if it is wide, and not sharpened.
"""

import contextlib
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
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
PLAIN = 0.95  # share of an image's frame in the colour of its corners, if the background is plain

# The following settings were chosen on photos that people took of their own clothes.
MASK_SIZE = 256  # pixels of the longest edge of the image that GrabCut segments
FRAME = 0.02  # width of the frame that is certainly background, as a share of the shorter edge
ELLIPSE = 0.9  # axes of the ellipse that is probably garment, as a share of the edges
ITERATIONS = 5  # of GrabCut
SMALL = 0.1  # of the mask's area: holes up to it are filled, regions below it removed
# Garments of the dataset have a mean grey level of about 160; darker and lighter ones keep a share
# of their distance from it.
MEAN_LEVEL, LEVEL_SHARE = 160, 0.6
# On a floor, sleeves lie spread out; in the dataset they hang down, and tops are taller than wide.
# A ratio r of width to height above NARROW therefore becomes NARROW * (r / NARROW) ** EXPONENT.
# From WIDE on it is kept, because only shoes are that wide.
NARROW, EXPONENT, WIDE = 0.75, 0.5, 1.7

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
        raise UsageError(
            f"{name}: the file is {kind}, or its format is not supported ({formats})"
        ) from error


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
    return prepare_with_doubt(photo, name)[0]


def prepare_with_doubt(photo: Image.Image, name: str) -> tuple[np.ndarray, str | None]:
    """Return the result of prepare, and why the garment may not have been found, or None.

    Raises:
        UsageError: As prepare.
    """
    background = background_colour(photo)
    if is_plain(photo, background):
        image = trim(photo, background)
        if image is not None:
            sharp = shrink(image).filter(SHARPENING)
            return to_grey(centre(sharp, background), background), None
    else:
        scale = min(1, MASK_SIZE / max(photo.size))
        width, height = (max(1, round(scale * edge)) for edge in photo.size)
        small = photo.resize((width, height), Image.Resampling.BOX)
        mask = segment(small)
        if mask.any():
            return from_mask(small, mask), find_doubt(mask)
    raise UsageError(f"{name}: no garment found, the whole picture looks like background")


def background_colour(photo: Image.Image) -> Colour:
    """Return the colour of the background: the median of the four corner pixels."""
    corners = np.asarray(photo)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(np.median(corners, axis=0).astype(int).tolist())


def differs(photo: Image.Image, background: Colour) -> np.ndarray:
    """Return which pixels, bool (height, width), have another colour than the background."""
    return np.linalg.norm(np.asarray(photo) - background, axis=2) > BACKGROUND_TOLERANCE


def is_plain(photo: Image.Image, background: Colour) -> bool:
    """Return whether the outermost pixels have one colour, or the image is too small to tell."""
    other = differs(photo, background)
    frame = np.concatenate([other[0], other[-1], other[:, 0], other[:, -1]])
    return min(photo.size) < IMAGE_SIZE // 2 or frame.mean() < 1 - PLAIN


def segment(photo: Image.Image) -> np.ndarray:
    """Return a mask of the garment, bool (height, width), or one of False if none is found.

    GrabCut (Rother, Kolmogorov and Blake, 2004) models the colours of garment and background as
    Gaussian mixtures, from a first guess: the frame is background, an ellipse is garment.
    """
    height, width = photo.height, photo.width
    labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    axes = (round(ELLIPSE * width / 2), round(ELLIPSE * height / 2))
    cv2.ellipse(labels, (width // 2, height // 2), axes, 0, 0, 360, cv2.GC_PR_FGD, -1)
    frame = max(1, round(FRAME * min(height, width)))
    labels[:frame] = labels[-frame:] = labels[:, :frame] = labels[:, -frame:] = cv2.GC_BGD
    # Distances of Lab resemble differences that people see.
    colours = cv2.cvtColor(np.asarray(photo), cv2.COLOR_RGB2LAB)
    models = np.zeros((1, 65)), np.zeros((1, 65))  # as GrabCut requires
    cv2.setRNGSeed(0)  # GrabCut starts from random clusters
    cv2.grabCut(colours, labels, (0, 0, 0, 0), *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask = labels == cv2.GC_PR_FGD
    areas, regions = _regions(mask)
    mask = np.isin(regions, 1 + np.flatnonzero(areas >= SMALL * areas.max(initial=0)))
    areas, regions = _regions(~mask)  # the frame's region is the background, the others are holes
    return mask | np.isin(regions, 1 + np.flatnonzero(areas < SMALL * mask.sum()))


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas of the connected regions, and the number of each pixel's, from 1 on."""
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return statistics[1:, cv2.CC_STAT_AREA], regions


def find_doubt(mask: np.ndarray) -> str | None:
    """Return what is unusual about a garment's mask, or None."""
    share = mask.mean()
    if not 0.04 <= share <= 0.85:
        return f"the detected garment covers {share:.0%} of the picture"
    if len(_regions(mask)[0]) > 3:
        return "the detected garment is in many pieces"
    edge = round(2 * FRAME * min(mask.shape)) + 1
    if all(each.any() for each in (mask[:edge], mask[-edge:], mask[:, :edge], mask[:, -edge:])):
        return "the detected garment reaches all edges of the picture"
    return None


def from_mask(photo: Image.Image, mask: np.ndarray) -> np.ndarray:
    """Convert the masked garment to uint8 (28, 28), negated as the dataset's authors did."""
    grey = 255 - np.asarray(photo.convert("L"), dtype=float)
    grey += (1 - LEVEL_SHARE) * (MEAN_LEVEL - grey[mask].mean())
    garment = np.where(mask, grey.clip(0, 255).round(), 0).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    image = Image.fromarray(garment[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    ratio = image.width / image.height
    if NARROW < ratio < WIDE:
        # Only proportions matter here: shrink sets the size.
        width = image.height * NARROW * (ratio / NARROW) ** EXPONENT
        image = image.resize((max(1, round(width)), image.height), Image.Resampling.LANCZOS)
    # Sharpening would make wrinkles look like patterns.
    return np.asarray(centre(shrink(image).convert("RGB"), (0, 0, 0)))[..., 0]


def trim(photo: Image.Image, background: Colour) -> Image.Image | None:
    """Crop the edges that show only background; return None if nothing would remain."""
    other = differs(photo, background)
    rows, columns = (np.flatnonzero(other.mean(axis=axis) > DUST) for axis in (1, 0))
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
    darker than their plain background are inverted.
    """
    grey = np.asarray(image.convert("L"), dtype=float)
    level = np.asarray(Image.new("RGB", (1, 1), background).convert("L"), dtype=float).item()
    if (grey - level).sum() < 0:
        grey, level = 255 - grey, 255 - level
    stretched = (grey - level) * 255 / max(255 - level, 1)
    return stretched.clip(0, 255).round().astype(np.uint8)
