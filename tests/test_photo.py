import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from fashion import photo, synthetic

TROUSERS = [(150, 100), (350, 100), (380, 650), (280, 650), (250, 250), (220, 650), (120, 650)]


def draw_trousers(garment, background, tilt=0, mode="RGB", size=(500, 700)):
    image = Image.new(mode, size, background)
    ImageDraw.Draw(image).polygon(TROUSERS, fill=garment)
    return image.rotate(tilt, fillcolor=background)


def prepare_file(path):
    return photo.prepare(photo.read_photo(path, path.name), path.name)


# Preparing


@pytest.mark.parametrize("tilt", [0, 10, -15])
@pytest.mark.parametrize(
    ("garment", "background"),
    [
        ((30, 60, 150), (255, 255, 255)),
        ((20, 20, 20), (235, 225, 200)),
        ((220, 220, 210), (0, 0, 0)),
        ((240, 120, 120), (60, 70, 60)),
        ((255, 255, 255), (200, 200, 200)),
        ((30, 30, 30), (120, 120, 120)),
    ],
)
def test_drawn_garment_becomes_light_on_black(garment, background, tilt):
    seen = photo.prepare(draw_trousers(garment, background, tilt), "trousers")
    assert seen.shape == (28, 28) and seen.dtype == np.uint8
    assert (seen[:, [0, -1]] == 0).mean() > 0.8  # background at the sides
    assert seen[0].max() > 0 and seen[-1].max() > 0  # the longest edge fills the image
    waist, crotch = seen[8, 12:15], seen[26, 13]
    assert waist.min() > 90
    if not tilt:
        assert crotch < 40 < seen[26, 9:11].min()


def test_background_is_the_median_colour_of_the_corners():
    image = Image.new("RGB", (40, 30), (200, 210, 220))
    image.putpixel((0, 0), (0, 0, 0))
    assert photo.background_colour(image) == (200, 210, 220)


def test_trim_keeps_the_garment_and_ignores_dust_and_faint_noise():
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


def test_outlines_are_sharpened_and_flat_areas_are_not():
    image = Image.new("RGB", (28, 28), (50, 50, 50))
    image.paste((150, 150, 150), (14, 0, 28, 28))
    row = np.asarray(image.filter(photo.SHARPENING))[14, :, 0]
    assert row[13] < 50 and row[14] > 150
    assert (row[:10] == 50).all() and (row[18:] == 150).all()


def test_image_is_centred_on_its_background():
    canvas = np.asarray(photo.centre(Image.new("RGB", (10, 28), "white"), (9, 8, 7)))
    assert (canvas[:, 9:19] == 255).all()
    assert (canvas[:, :9] == (9, 8, 7)).all() and (canvas[:, 19:] == (9, 8, 7)).all()


@pytest.mark.parametrize("background", [0, 40, 120, 140, 250])
def test_background_becomes_black_and_its_opposite_white(background):
    image = Image.new("RGB", (28, 28), (background,) * 3)
    image.putpixel((3, 3), (0, 0, 0) if background > 127 else (255, 255, 255))
    grey = photo.to_grey(image, (background,) * 3)
    assert grey[3, 3] == 255 and grey[10, 10] == 0


def test_enlarged_framed_and_inverted_image_is_recovered():
    generator = np.random.default_rng(0)
    differences = []
    for number in range(20):
        image = synthetic.draw_garment(number % 10, generator)
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


# Textured backgrounds


def draw_on_floor(garment, level, seed=0):
    """Trousers on a floor of wide boards with noise; level is the mean grey level of the floor."""
    generator = np.random.default_rng(seed)
    floor = level + 25 * np.sign(np.sin(np.arange(500) / 12)) + generator.normal(0, 8, (700, 500))
    image = Image.fromarray(floor.clip(0, 255).astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).polygon(TROUSERS, fill=garment)
    return image


def true_mask():
    return np.asarray(draw_trousers(255, 0, mode="L", size=(500, 700)).resize((183, 256))) > 127


@pytest.mark.parametrize(("garment", "level"), [((30, 60, 150), 180), ((235, 220, 120), 70)])
def test_garment_is_separated_from_a_textured_floor(garment, level):
    image = draw_on_floor(garment, level)
    assert not photo.is_plain(image, photo.background_colour(image))
    mask, expected = photo.segment(image.resize((183, 256), Image.Resampling.BOX)), true_mask()
    assert (mask & expected).sum() / (mask | expected).sum() > 0.9
    seen, doubt = photo.prepare_with_doubt(image, "trousers")
    assert doubt is None and seen.shape == (28, 28) and seen.dtype == np.uint8
    assert seen[8, 12:15].min() > 60 and seen[26, 13] < 40
    assert (seen[:, [0, -1]] == 0).all()
    assert (seen == photo.prepare(image, "trousers")).all()  # deterministic


def square_mask(top, bottom, left, right):
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_masked_garment_is_negated_with_its_mean_level_drawn_to_the_datasets():
    mask = square_mask(10, 90, 30, 70)
    image = Image.new("RGB", (100, 100), (235, 235, 235))
    assert set(np.unique(photo.from_mask(image, mask)[:, 10:18])) == {76}  # 20 + 0.4 (160 - 20)


def test_wide_tops_become_narrower_and_shoes_do_not():
    widths = {}
    for width in (40, 80, 90):
        mask = square_mask(10, 60, 5, 5 + width)
        seen = photo.from_mask(Image.new("RGB", (100, 100)), mask)
        widths[width] = np.flatnonzero(seen.any(axis=0)).size, np.flatnonzero(seen.any(1)).size
    assert widths[40] == (22, 28)
    assert widths[80][0] / widths[80][1] == pytest.approx((0.75 * 1.6) ** 0.5, abs=0.08)
    assert widths[90][0] == 28 and widths[90][1] == pytest.approx(28 * 50 / 90, abs=1)


@pytest.mark.parametrize(
    ("mask", "doubt"),
    [
        (square_mask(20, 80, 30, 70), None),
        (square_mask(50, 60, 50, 60), "covers 1%"),
        (square_mask(2, 98, 2, 98), "covers 92%"),
        (square_mask(3, 97, 48, 52) | square_mask(48, 52, 3, 97), "all edges"),
        (square_mask(10, 90, 20, 80) & (np.arange(100) // 5 % 2 == 0), "many pieces"),
    ],
)
def test_unusual_mask_is_doubtful(mask, doubt):
    found = photo.find_doubt(mask)
    assert found is None if doubt is None else doubt in found


# File formats


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
def test_every_image_mode_is_read(tmp_path, mode, suffix):
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
def test_transparent_background_contrasts_with_the_garment(tmp_path, garment):
    path = tmp_path / "trousers.png"
    draw_trousers((*garment, 255), (128, 128, 128, 0), mode="RGBA").save(path)
    seen = prepare_file(path)
    assert seen[0, 0] == 0 and seen[4, 10:16].min() > 150


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [draw_trousers(0, 255, mode="L"), Image.new("L", (500, 700), 128)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    assert np.abs(prepare_file(tmp_path / "a.gif") - prepare_file(tmp_path / "b.png")).max() < 5


def test_photo_is_rotated_by_its_exif_orientation(tmp_path):
    image = draw_trousers(0, 255, mode="L")
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 270 degrees
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


def test_strip_one_pixel_wide_is_accepted(tmp_path):
    strip = np.full((10_000, 1), 255, np.uint8)
    strip[3000:7000] = 0
    Image.fromarray(strip).save(tmp_path / "strip.png")
    assert prepare_file(tmp_path / "strip.png").max() > 200
