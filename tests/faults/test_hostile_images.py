"""Files that are no pictures, are damaged, or want too much: used sensibly or refused in words."""

import io
import os
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

import photo
from files import UserMistake


def prepare_file(path):
    return photo.prepare(photo.read_photo(path, path.name), path.name)


def draw_square():
    image = Image.new("RGB", (60, 60), (250, 250, 250))
    ImageDraw.Draw(image).rectangle((15, 10, 45, 50), fill=(40, 90, 30))
    return image


def as_file(path, content):
    path.write_bytes(content)
    return path


def encode(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_file_is_refused_in_words(tmp_path, trial, kind, share):
    generator = np.random.default_rng(0)
    noisy = Image.fromarray(generator.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    content = encode(noisy, kind)
    path = as_file(tmp_path / "cut", content[: int(share * len(content))])
    with (
        trial("hostile pictures"),
        pytest.raises(UserMistake, match=r"cut: the file is (damaged|no picture)"),
    ):
        photo.read_photo(path, "cut")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_a_picture_or_words(tmp_path, long, trial, kind):
    generator, whole = random.Random(0), encode(draw_square(), kind)
    for _ in range(300 if long else 20):
        content = bytearray(whole)
        for _ in range(generator.randrange(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path = as_file(tmp_path / "damaged", bytes(content))
        with trial("damaged pictures"):
            try:
                assert prepare_file(path).shape == (28, 28)
            except UserMistake as mistake:
                assert "damaged" in str(mistake)


@pytest.mark.parametrize("content", [b"", b"random bytes" * 500, b"\x89PNG\r\n\x1a\n broken"])
def test_file_that_is_no_picture_is_refused(tmp_path, trial, content):
    with trial("hostile pictures"), pytest.raises(UserMistake, match=r"x\.png: the file is"):
        prepare_file(as_file(tmp_path / "x.png", content))


@pytest.mark.parametrize("size", [(1, 1), (50, 50)])
def test_picture_of_nothing_but_ground_is_refused(tmp_path, trial, size):
    Image.new("RGB", size, (7, 99, 200)).save(tmp_path / "plain.png")
    with trial("hostile pictures"), pytest.raises(UserMistake, match="nothing but its ground"):
        prepare_file(tmp_path / "plain.png")


@pytest.mark.parametrize("side", [8_000, 10_000, 15_000])
def test_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path, trial, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one message is enough
        with (
            trial("hostile pictures"),
            pytest.raises(UserMistake, match=r"pixels.*, at most 50,000,000"),
        ):
            prepare_file(tmp_path / "bomb.png")


def test_folder_pipe_and_absent_file_are_refused(tmp_path, trial):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent.png"):
        with trial("hostile pictures"), pytest.raises(UserMistake, match="no such file"):
            photo.read_photo(path, path.name)
