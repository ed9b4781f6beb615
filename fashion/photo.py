"""Convert a photo or drawing to an image like those of Fashion-MNIST: 28 × 28, grey, on black.

The steps resemble those by which the dataset's authors made it from shop photos: Xiao, Rasul and
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
section 2 (https://arxiv.org/abs/1708.07747). They had shop photos on white; here GrabCut first
separates the garment from any other background. Such a garment is also moved towards the dataset's
mean grey level, narrowed if it is wide, and not sharpened. Pictures of the dataset are recovered.
"""

import math
import warnings
from pathlib import Path
from typing import BinaryIO

from fashion.data import SIZE
from fashion.script import UserError

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

NEAREST, LANCZOS = Image.Resampling.NEAREST, Image.Resampling.LANCZOS
Colour = tuple[int, ...]  # red, green, blue, from 0 to 255

# Readers of other formats start other programs (EPS) or are rarely tested.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Larger pictures could fill the memory. A JPEG is reduced while it is decoded.
MAX_PIXELS, MAX_JPEG_PIXELS = 64_000_000, 200_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower
WORKING_SIZE = 1024  # pixels; larger photos are reduced first, which bounds memory and time
# From the paper: colours within 5 % of the largest possible distance from a corner's colour.
BACKGROUND_TOLERANCE = 0.05 * math.dist((0, 0, 0), (255, 255, 255))
DUST = 0.01  # share of other pixels (dust, noise) that a row or column of background may hold
PLAIN = 0.95  # share of an image's frame in the colour of its corners, if the background is plain

# Pictures of the dataset may come enlarged by any interpolation, and as JPEG.
LARGEST = 20 * SIZE  # pixels of an edge
INTERPOLATIONS = (NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, LANCZOS)
NEARLY = 0.05  # mean deviation from an enlarged picture, as a share of that from the background
GREY = 8  # largest difference between red, green and blue

# A picture is doubtful if its second largest region has this share of the largest one's area, or
# if the largest fills this share of a rectangle; of the test images, 0.3 % and 0.6 % do.
SECOND, RECTANGLE = 0.25, 0.95

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
    """Read an image file as RGB, upright; of an animation, read the first frame."""
    try:
        # Pillow warns about details that it corrects.
        with warnings.catch_warnings(action="ignore"), Image.open(source, "r", FORMATS) as image:
            limit = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
            if image.width * image.height > limit:
                size = f"{image.width} × {image.height} pixels"
                raise UserError(f"{name}: {size} are too many; save it with at most {limit:,}")
            image.draft(None, (WORKING_SIZE, WORKING_SIZE))  # decodes JPEG at a lower resolution
            return to_rgb(ImageOps.exif_transpose(image))
    except (UserError, MemoryError):
        raise
    # Pillow documents no errors for damaged files, and its messages are about format details.
    except Exception as error:
        reason = "not a picture, damaged, or of an unknown format, such as HEIC; save it as JPEG"
        of_system = getattr(error, "strerror", None)
        raise UserError(f"{name}: {of_system or reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Reduce and convert to RGB; transparent parts become white, or black on light garments."""
    if image.mode[0] in "IF":  # 16 or 32 bits; nothing states the range, so stretch it
        values = np.asarray(image, dtype=np.float32)
        levels = 255 * (values - values.min()) / (np.ptp(values) or 1)
        image = Image.fromarray(levels.astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((WORKING_SIZE, WORKING_SIZE))
    if image.mode == "RGB":
        return image
    alpha = np.asarray(image.getchannel("A"), dtype=float)
    is_light = (np.asarray(image.convert("L")) * alpha).sum() > 127.5 * alpha.sum()
    background = Image.new("RGBA", image.size, "black" if is_light else "white")
    return Image.alpha_composite(background, image).convert("RGB")


def prepare(photo: Image.Image, name: str) -> tuple[np.ndarray, str | None]:
    """Convert an RGB photo to uint8 (28, 28), a light garment on a black background.

    Also return why the garment may not have been found, or None.
    """
    background = background_colour(photo)
    other = differs(photo, background)
    frame = np.concatenate([other[0], other[-1], other[:, 0], other[:, -1]])
    too_small_to_tell = min(photo.size) < SIZE // 2
    plain = too_small_to_tell or frame.mean() < 1 - PLAIN
    trimmed = trim(photo, other) if plain else None
    candidates = [*([trimmed] if trimmed else []), photo, *complete(photo, background)]
    if original := recover(candidates):
        return to_grey(original, background_colour(original)), None
    small = photo.copy()
    small.thumbnail((MASK_SIZE, MASK_SIZE), Image.Resampling.BOX)
    if trimmed:
        image = centre(shrink(trimmed).filter(SHARPENING), background)
        return to_grey(image, background), find_doubt(differs(small, background))
    if not plain and (mask := segment(small)).any():
        doubt = f"the detected garment covers {mask.mean():.0%} of the picture"
        return from_mask(small, mask), find_doubt(mask) if 0.04 <= mask.mean() <= 0.85 else doubt
    raise UserError(f"{name}: no garment found, the whole picture looks like background")


def recover(pictures: list[Image.Image]) -> Image.Image | None:
    """Return the grey image of 28 × 28 pixels that was enlarged to one of these, if one was."""
    attempts = []
    for picture in pictures:
        square = picture.width == picture.height and SIZE <= picture.width <= LARGEST
        if not square or np.ptp(np.asarray(picture), axis=2).max() > GREY:
            continue
        grey = np.asarray(picture.convert("L"), dtype=np.float32)
        centres = resize(grey, SIZE, NEAREST)
        contrast = np.abs(grey - np.median(grey[[0, 0, -1, -1], [0, -1, 0, -1]])).mean()
        for method in INTERPOLATIONS:
            original = centres
            for _ in range(5):  # each step at least halves the error
                enlarged = resize(original, picture.width, method)
                original = original + centres - resize(enlarged, SIZE, NEAREST)
            error = np.abs(resize(original, picture.width, method) - grey).mean()
            if contrast:  # not an image of one colour
                attempts.append((float(error / contrast), original.clip(0, 255).round()))
    error, original = min(attempts, key=lambda attempt: attempt[0], default=(1.0, np.empty(0)))
    return Image.fromarray(original.astype(np.uint8)).convert("RGB") if error < NEARLY else None


def complete(photo: Image.Image, background: Colour) -> list[Image.Image]:
    """Cut off the margin and make the rest a square, as the dataset's images are.

    There, a garment touches two sides, and its middle is that of the image or half a pixel away.
    """
    box = ImageChops.difference(photo, Image.new("RGB", photo.size, background)).getbbox()
    garment = photo.crop(box)
    edge, squares = max(garment.size), []
    for half_pixel in (0, edge / SIZE / 2):
        square = Image.new("RGB", (edge, edge), background)
        left, top = (math.ceil((edge - x) / 2 + half_pixel * (x < edge)) for x in garment.size)
        square.paste(garment, (left, top))
        squares.append(square)
    return squares


def resize(pixels: np.ndarray, edge: int, method: Image.Resampling) -> np.ndarray:
    """Resize grey levels, float32, to a square."""
    return np.asarray(Image.fromarray(pixels).resize((edge, edge), method)).clip(0, 255)


def background_colour(photo: Image.Image) -> Colour:
    """Return the colour of the background: the median of the four corner pixels."""
    corners = np.asarray(photo)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(np.median(corners, axis=0).astype(int).tolist())


def differs(photo: Image.Image, background: Colour) -> np.ndarray:
    """Return which pixels, bool (height, width), have another colour than the background."""
    return np.linalg.norm(np.asarray(photo) - background, axis=2) > BACKGROUND_TOLERANCE


def segment(photo: Image.Image) -> np.ndarray:
    """Return a mask of the garment, bool (height, width), from GrabCut (Rother et al., 2004)."""
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
    areas, regions = find_regions(mask)
    mask = np.isin(regions, 1 + np.flatnonzero(areas >= SMALL * areas.max(initial=0)))
    areas, regions = find_regions(~mask)  # that at the frame is the background, others are holes
    return mask | np.isin(regions, 1 + np.flatnonzero(areas < SMALL * mask.sum()))


def find_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas of the connected regions, and the number of each pixel's, from 1 on."""
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return statistics[1:, cv2.CC_STAT_AREA], regions


def find_doubt(mask: np.ndarray) -> str | None:
    """Return why a mask may not show one garment, or None."""
    outside = find_regions(~np.pad(mask, 1))[1]
    areas, regions = find_regions((outside != outside[0, 0])[1:-1, 1:-1])  # with holes filled
    if not len(areas):  # too small for the mask
        return None
    if (areas >= SECOND * areas.max()).sum() > 1:
        return "the picture shows more than one object"
    largest = (regions == 1 + areas.argmax()).astype(np.uint8)
    _, (width, height), _ = cv2.minAreaRect(cv2.findNonZero(largest))  # between centres of pixels
    if areas.max() >= RECTANGLE * (width + 1) * (height + 1):
        return "the detected object is a rectangle, such as a frame or a sheet of paper"
    return None


def from_mask(photo: Image.Image, mask: np.ndarray) -> np.ndarray:
    """Convert the masked garment to uint8 (28, 28), negated as the dataset's authors did."""
    grey = 255 - np.asarray(photo.convert("L"), dtype=float)
    grey += (1 - LEVEL_SHARE) * (MEAN_LEVEL - grey[mask].mean())
    garment = np.where(mask, grey.clip(0, 255).round(), 0).astype(np.uint8)
    image = Image.fromarray(garment).crop(Image.fromarray(mask).getbbox())
    ratio = image.width / image.height
    if NARROW < ratio < WIDE:
        width = image.height * NARROW * (ratio / NARROW) ** EXPONENT
        image = image.resize((max(1, round(width)), image.height), LANCZOS)
    # Sharpening would make wrinkles look like patterns.
    return np.array(centre(shrink(image), 0))  # a copy, as torch warns about read-only arrays


def trim(photo: Image.Image, other: np.ndarray) -> Image.Image | None:
    """Crop the edges that show only background; return None if nothing would remain."""
    rows, columns = (np.flatnonzero(other.mean(axis=axis) > DUST) for axis in (1, 0))
    found = len(rows) and len(columns)
    return photo.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) if found else None


def shrink(image: Image.Image) -> Image.Image:
    """Resize the longest edge to 28 pixels and the other one in proportion."""
    scale = SIZE / max(image.size)
    width, height = (max(1, round(scale * edge)) for edge in image.size)
    return image.resize((width, height), LANCZOS)  # the authors' skipping loses thin lines


def centre(image: Image.Image, background: Colour | int) -> Image.Image:
    """Paste the image into the centre of 28 × 28 pixels of background."""
    canvas = Image.new(image.mode, (SIZE, SIZE), background)
    left, top = ((SIZE - edge) // 2 for edge in image.size)
    canvas.paste(image, (left, top))
    return canvas


def to_grey(image: Image.Image, background: Colour) -> np.ndarray:
    """Convert to grey, make the background black and the garment lighter than it."""
    grey = np.asarray(image.convert("L"), dtype=float)
    level = np.asarray(Image.new("RGB", (1, 1), background).convert("L"), dtype=float).item()
    if (grey - level).sum() < 0:
        grey, level = 255 - grey, 255 - level
    stretched = (grey - level) * 255 / max(255 - level, 1)
    return stretched.clip(0, 255).round().astype(np.uint8)
