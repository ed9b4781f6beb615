"""Files that are not images, are damaged or too large: used, or rejected with a message."""

import io
import os
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fashion import photo
from fashion.files import UsageError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]


def prepare_file(path):
    return photo.prepare(photo.read_photo(path, path.name), path.name)


def encode(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_file_is_rejected(tmp_path, trial, kind, share):
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    content = encode(noise, kind)
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with (
        trial("hostile images"),
        pytest.raises(UsageError, match=r"cut: the file is (damaged|not an image)"),
    ):
        photo.read_photo(tmp_path / "cut", "cut")


@pytest.mark.parametrize("kind", [*FORMATS, "AVIF", "EPS"])
def test_damaged_bytes_give_an_image_or_a_message(tmp_path, long, trial, kind):
    square = Image.new("RGB", (60, 60), (250, 250, 250))
    ImageDraw.Draw(square).rectangle((15, 10, 45, 50), fill=(40, 90, 30))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # orientation and maker
    buffer = io.BytesIO()
    square.save(buffer, kind, exif=exif)  # formats without such data ignore them
    generator, whole, path = random.Random(0), buffer.getvalue(), tmp_path / "damaged"
    for _ in range(300 if long else 20):
        content = bytearray(whole)
        for _ in range(generator.randrange(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        with trial("damaged images"):
            try:
                assert prepare_file(path).shape == (28, 28)
            except UsageError as error:
                assert str(error).startswith("damaged: ")


@pytest.mark.parametrize("content", [b"", b"random bytes" * 500, b"\x89PNG\r\n\x1a\n broken"])
def test_file_that_is_not_an_image_is_rejected(tmp_path, trial, content):
    (tmp_path / "x.png").write_bytes(content)
    with trial("hostile images"), pytest.raises(UsageError, match=r"x\.png: the file is"):
        prepare_file(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(1, 1), (50, 50)])
def test_image_of_background_only_is_rejected(tmp_path, trial, size):
    Image.new("RGB", size, (7, 99, 200)).save(tmp_path / "plain.png")
    with trial("hostile images"), pytest.raises(UsageError, match="looks like background"):
        prepare_file(tmp_path / "plain.png")


# Pillow itself refuses only the last size, and warns of the second.
@pytest.mark.parametrize("side", [8_000, 10_000, 15_000])
def test_image_with_too_many_pixels_is_rejected_before_decoding(
    tmp_path, trial, memory_limit, side
):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with (
        trial("hostile images"),
        warnings.catch_warnings(action="error"),
        memory_limit(30),
        pytest.raises(UsageError, match=r"too many pixels.*at most 50,000,000"),
    ):
        prepare_file(tmp_path / "bomb.png")


def test_folder_pipe_and_missing_file_are_rejected(tmp_path, trial):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing.png"):
        with trial("hostile images"), pytest.raises(UsageError, match="no such file"):
            photo.read_photo(path, path.name)


# Orientations that are no numbers, and data that end too early, which Pillow's parser trips over.
DAMAGED_EXIF = [
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"Exif\0\0" + bytes(range(256)),
]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("exif", DAMAGED_EXIF, ids=range(len(DAMAGED_EXIF)))
def test_damaged_exif_data_are_ignored(tmp_path, trial, kind, exif):
    image = Image.new("RGB", (60, 90), (250, 250, 250))
    ImageDraw.Draw(image).rectangle((15, 10, 45, 70), fill=(40, 90, 30))
    image.save(tmp_path / "photo", kind, exif=exif)
    with trial("hostile images"):
        assert photo.read_photo(tmp_path / "photo", "photo").size == (60, 90)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "BLP", "AVIF"])
def test_format_that_is_not_supported_is_rejected_unread(tmp_path, trial, monkeypatch, kind):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("was started"))
    image = Image.new("RGB", (60, 60), "red")
    content = encode(image.convert("P") if kind == "BLP" else image, kind)
    (tmp_path / "a.png").write_bytes(content)
    with (
        trial("hostile images"),
        pytest.raises(UsageError, match="not supported"),
    ):
        photo.read_photo(tmp_path / "a.png", "a.png")


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("P", "PNG"), ("L", "TIFF")])
def test_large_photo_takes_little_memory(tmp_path, trial, memory_limit, mode, kind):
    Image.new(mode, (8000, 6000), 128).save(tmp_path / "large", kind)
    with trial("hostile images"), memory_limit(500):
        image = photo.read_photo(tmp_path / "large", "large")
    assert image.mode == "RGB" and max(image.size) == photo.WORKING_SIZE
