import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

import photo

TROUSERS = [(150, 100), (350, 100), (380, 650), (280, 650), (250, 250), (220, 650), (120, 650)]


def draw_trousers(garment, ground, tilt=0, mode="RGB", size=(500, 700)):
    image = Image.new(mode, size, ground)
    ImageDraw.Draw(image).polygon(TROUSERS, fill=garment)
    return image.rotate(tilt, fillcolor=ground)


def prepare_file(path):
    return photo.prepare(photo.read_photo(path, path.name), path.name)


# From photo to 28 × 28


@pytest.mark.parametrize("tilt", [0, 10, -15])
@pytest.mark.parametrize(
    ("garment", "ground"),
    [
        ((30, 60, 150), (255, 255, 255)),
        ((20, 20, 20), (235, 225, 200)),
        ((220, 220, 210), (0, 0, 0)),
        ((240, 120, 120), (60, 70, 60)),
    ],
)
def test_drawn_garment_becomes_light_on_black(garment, ground, tilt):
    seen = photo.prepare(draw_trousers(garment, ground, tilt), "trousers")
    assert seen.shape == (28, 28) and seen.dtype == np.uint8
    assert (seen[:, [0, -1]] == 0).mean() > 0.8  # ground at the sides
    assert seen[0].max() > 0 and seen[-1].max() > 0  # the longest edge fills the picture
    waist, crotch = seen[8, 12:15], seen[26, 13]
    assert waist.min() > 90
    if not tilt:
        assert crotch < 40 < seen[26, 9:11].min()


def test_ground_is_the_colour_of_most_corners():
    image = Image.new("RGB", (40, 30), (200, 210, 220))
    image.putpixel((0, 0), (0, 0, 0))
    assert photo.ground_colour(image) == (200, 210, 220)


def test_trim_leaves_the_garment_and_forgives_dust_and_faint_noise():
    generator = np.random.default_rng(0)
    pixels = 250 + generator.integers(-4, 5, (300, 200, 3))
    pixels[100:220, 50:150] = 90
    pixels[5, 5] = 0
    trimmed = photo.trim(Image.fromarray(pixels.astype(np.uint8)), (250, 250, 250))
    assert trimmed.size == (100, 120)


@pytest.mark.parametrize(
    ("size", "expected"), [((280, 140), (28, 14)), ((3, 9), (9, 28)), ((1, 10_000), (1, 28))]
)
def test_longest_edge_becomes_28(size, expected):
    assert photo.shrink(Image.new("RGB", size)).size == expected


def test_outlines_are_sharpened_and_areas_are_not():
    image = Image.new("RGB", (28, 28), (50, 50, 50))
    image.paste((150, 150, 150), (14, 0, 28, 28))
    row = np.asarray(photo.sharpen(image))[14, :, 0]
    assert row[13] < 50 and row[14] > 150
    assert (row[:10] == 50).all() and (row[18:] == 150).all()


def test_image_stands_in_the_centre_of_its_ground():
    canvas = np.asarray(photo.centre(Image.new("RGB", (10, 28), "white"), (9, 8, 7)))
    assert (canvas[:, 9:19] == 255).all()
    assert (canvas[:, :9] == (9, 8, 7)).all() and (canvas[:, 19:] == (9, 8, 7)).all()


@pytest.mark.parametrize("ground", [0, 40, 120, 140, 250])
def test_ground_becomes_black_and_what_differs_most_from_it_white(ground):
    image = Image.new("RGB", (28, 28), (ground,) * 3)
    image.putpixel((3, 3), (0, 0, 0) if ground > 127 else (255, 255, 255))
    grey = photo.to_grey(image, (ground,) * 3)
    assert grey[3, 3] == 255 and grey[10, 10] == 0


def test_enlarged_framed_and_inverted_image_comes_back(tiny_dataset):
    differences = []
    for image in tiny_dataset.test_images[:20].numpy():
        rows, columns = (np.flatnonzero(image.max(axis=axis) > 25) for axis in (1, 0))
        garment = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        large = ImageOps.expand(garment.resize([9 * edge for edge in garment.size], 0), 50, 0)
        seen = photo.prepare(ImageOps.invert(large).convert("RGB"), "image")
        scale = 28 / max(garment.size)
        size = [max(1, round(scale * edge)) for edge in garment.size]
        expected = np.zeros((28, 28))
        left, top = ((28 - edge) // 2 for edge in size)
        resized = garment.resize(size, Image.Resampling.BICUBIC)
        expected[top : top + size[1], left : left + size[0]] = np.asarray(resized)
        differences.append(np.abs(seen - expected).mean())
    assert np.mean(differences) < 20


# Kinds of files


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("P", "png"),
        ("1", "png"),
        ("LA", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tiff"),
        ("I;16", "png"),
        ("I", "tiff"),
        ("F", "tiff"),
    ],
)
def test_every_kind_of_pixel_is_read(tmp_path, mode, suffix):
    path = tmp_path / f"trousers.{suffix}"
    image = draw_trousers(40, 250, mode="L")
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(np.asarray(image).astype(kind) * 256)
        assert image.mode == mode
    else:
        image = image.convert("RGB").convert(mode)
    image.save(path)
    seen = prepare_file(path)
    assert seen[4, 10:16].min() > 150 and seen[26, 13] < 60


@pytest.mark.parametrize("garment", [(30, 30, 30), (230, 230, 230)])
def test_transparent_ground_becomes_what_differs_from_the_garment(tmp_path, garment):
    path = tmp_path / "trousers.png"
    draw_trousers((*garment, 255), (128, 128, 128, 0), mode="RGBA").save(path)
    seen = prepare_file(path)
    assert seen[0, 0] == 0 and seen[4, 10:16].min() > 150


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [draw_trousers(0, 255, mode="L"), Image.new("L", (500, 700), 128)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    assert np.abs(prepare_file(tmp_path / "a.gif") - prepare_file(tmp_path / "b.png")).max() < 5


def test_picture_is_turned_upright(tmp_path):
    image = draw_trousers(0, 255, mode="L")
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned by 270 degrees
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    upright, lying = (prepare_file(tmp_path / f"{name}.png") for name in ("upright", "lying"))
    assert (upright == lying).all()


def test_stream_is_read_like_a_file(tmp_path):
    draw_trousers((0, 0, 0), (255, 255, 255)).save(tmp_path / "a.png")
    stream = io.BytesIO((tmp_path / "a.png").read_bytes())
    assert (
        photo.read_photo(stream, "stream").tobytes()
        == photo.read_photo(tmp_path / "a.png", "file").tobytes()
    )


def test_strip_of_one_pixel_is_used(tmp_path):
    strip = np.full((10_000, 1), 255, np.uint8)
    strip[3000:7000] = 0
    Image.fromarray(strip).save(tmp_path / "strip.png")
    assert prepare_file(tmp_path / "strip.png").max() > 200
