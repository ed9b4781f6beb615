import io

from fashion import photo
from fashion.script import UserError

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

TROUSERS = [(150, 100), (350, 100), (380, 650), (280, 650), (250, 250), (220, 650), (120, 650)]
NEAREST, BILINEAR, BICUBIC, LANCZOS = photo.INTERPOLATIONS


def draw_trousers(garment, background, mode="RGB"):
    image = Image.new(mode, (500, 700), background)
    ImageDraw.Draw(image).polygon(TROUSERS, fill=garment)
    return image


def prepare_file(path):
    return photo.prepare(photo.read_photo(path, path.name), path.name)[0]


# Pictures of the dataset


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("factor", "method"), [(1, NEAREST), (2, BICUBIC), (3, LANCZOS), (5, BILINEAR), (10, NEAREST)]
)
def test_pictures_of_the_dataset_are_recovered(tiny, factor, method, negative):
    # The last margin has the colour of the background, and a width of its own on each side.
    for frame, colour in ((0, 0), (3 * factor, 255), ((9, 50, 31, 4), 0)):
        for image in tiny.test_images[:2].numpy():
            large = Image.fromarray(image).resize([28 * factor] * 2, method)
            framed = ImageOps.expand(large, frame, colour)
            picture = ImageOps.invert(framed) if negative else framed
            seen, doubt = photo.prepare(picture.convert("RGB"), "image")
            error = np.abs(seen.astype(int) - image).mean()
            assert doubt is None and error <= (0 if method == NEAREST else 2.5)


def test_other_pictures_are_not_taken_for_the_datasets(tiny):
    image = Image.fromarray(tiny.test_images[0].numpy())
    large = image.resize((560, 560), BICUBIC)
    texture = np.where(np.asarray(large) > 60, 128 + 99 * np.sin(np.arange(560)), 0)
    detailed = Image.fromarray(texture.astype(np.uint8)).convert("RGB")
    coloured = Image.merge("RGB", [large, large, Image.new("L", large.size)])
    shrunk = ImageOps.expand(large, 300).resize((560, 560)).convert("RGB")
    assert [photo.recover([each]) for each in (detailed, coloured, shrunk)] == [None] * 3


# Plain backgrounds


@pytest.mark.parametrize(
    ("garment", "background"),
    [
        ((30, 60, 150), (255, 255, 255)),
        ((220, 220, 210), (0, 0, 0)),
        ((240, 120, 120), (60, 70, 60)),
        ((30, 30, 30), (120, 120, 120)),
    ],
)
def test_drawn_garment_becomes_light_on_black(garment, background):
    seen, doubt = photo.prepare(draw_trousers(garment, background), "trousers")
    assert doubt is None and seen.shape == (28, 28) and seen.dtype == np.uint8
    assert (seen[:, [0, -1]] == 0).all()
    assert seen[0].max() > 0 and seen[-1].max() > 0  # the longest edge fills the image
    assert seen[8, 12:15].min() > 90 and seen[26, 13] < 40 < seen[26, 9:11].min()


@pytest.mark.parametrize(
    ("shapes", "doubt"),
    [
        ([("polygon", TROUSERS)], None),
        ([("ellipse", (20, 200, 230, 500)), ("ellipse", (270, 200, 480, 500))], "more than one"),
        ([("ellipse", (20, 200, 230, 500)), ("ellipse", (400, 200, 430, 230))], None),
        ([("rectangle", (50, 50, 450, 650))], "rectangle"),
        ([("polygon", [(250, 50), (450, 250), (250, 450), (50, 250)])], "rectangle"),
    ],
)
@pytest.mark.parametrize("width", [0, 25])
def test_doubts_about_plain_backgrounds(shapes, doubt, width):
    image = Image.new("RGB", (500, 700), "white")
    for name, place in shapes:  # filled, or only its outline
        fill = None if width else "brown"
        getattr(ImageDraw.Draw(image), name)(place, fill=fill, outline="brown", width=width or 1)
    _, found = photo.prepare(image, "picture")
    assert found is None if doubt is None else doubt in found


# Other backgrounds


@pytest.mark.parametrize(("garment", "level"), [((30, 60, 150), 180), ((235, 220, 120), 70)])
def test_garment_is_separated_from_a_floor(garment, level):
    noise = np.random.default_rng(0).normal(0, 8, (256, 183))
    floor = level + 25 * np.sign(np.sin(np.arange(183) / 4.4)) + noise
    image = Image.fromarray(floor.clip(0, 255).astype(np.uint8)).convert("RGB")
    true = draw_trousers(255, 0, mode="L").resize(image.size)
    image.paste(garment, mask=true)
    mask, true = photo.segment(image), np.asarray(true) > 127
    assert (mask & true).sum() / (mask | true).sum() > 0.9
    seen, doubt = photo.prepare(image, "trousers")
    assert doubt is None and seen.flags.writeable  # torch warns about arrays that are not
    assert seen[8, 12:15].min() > 60 and seen[26, 13] < 40 and (seen[:, [0, -1]] == 0).all()
    assert (seen == photo.prepare(image, "trousers")[0]).all()  # deterministic


def square_mask(top, bottom, left, right):
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_masked_garment_is_negated_and_moved_to_the_datasets_level():
    image = Image.new("RGB", (100, 100), (235, 235, 235))
    seen = photo.from_mask(image, square_mask(10, 90, 30, 70))
    assert set(np.unique(seen[:, 10:18])) == {76}  # 20 + 0.4 (160 - 20)


@pytest.mark.parametrize(
    ("width", "expected"), [(40, (22, 28)), (80, (28, 25)), (90, (28, 16))]
)  # the ratio 1.6 becomes 0.75 (1.6 / 0.75) ** 0.5 = 1.095
def test_wide_tops_become_narrower_and_shoes_do_not(width, expected):
    seen = photo.from_mask(Image.new("RGB", (100, 100)), square_mask(10, 60, 5, 5 + width))
    assert (seen.any(axis=0).sum(), seen.any(axis=1).sum()) == expected


# Files


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("L", "png"), ("RGB", "jpg"), ("RGB", "webp"), ("P", "png"), ("1", "png"), ("LA", "png")),
        *(("CMYK", "jpg"), ("CMYK", "tiff"), ("I;16", "png"), ("I", "tiff"), ("F", "tiff")),
    ],
)
def test_every_image_mode_is_read(tmp_path, mode, suffix):
    path = tmp_path / f"trousers.{suffix}"
    image = draw_trousers(40, 250, mode="L")
    if kind := {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode):
        image = Image.fromarray(np.asarray(image).astype(kind) * 256)
    else:
        image = image.convert("RGB").convert(mode)
    assert image.mode == mode
    image.save(path)
    seen = prepare_file(path)
    assert seen[4, 10:16].min() > 150 and seen[26, 13] < 60


@pytest.mark.parametrize("garment", [(30, 30, 30), (230, 230, 230)])
def test_transparent_background_contrasts_with_the_garment(tmp_path, garment):
    draw_trousers((*garment, 255), (128, 128, 128, 0), mode="RGBA").save(tmp_path / "a.png")
    seen = prepare_file(tmp_path / "a.png")
    assert seen[0, 0] == 0 and seen[4, 10:16].min() > 150


def test_animations_rotated_photos_and_streams_are_read(tmp_path):
    image = draw_trousers(0, 255, mode="L")
    image.save(tmp_path / "a.png")
    expected = prepare_file(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 270 degrees
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    assert (prepare_file(tmp_path / "lying.png") == expected).all()
    image.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (500, 700), 128)])
    assert np.abs(prepare_file(tmp_path / "a.gif").astype(int) - expected).max() < 5
    stream = io.BytesIO((tmp_path / "a.png").read_bytes())
    assert (photo.prepare(photo.read_photo(stream, "stream"), "stream")[0] == expected).all()


def test_large_files_are_reduced_and_larger_ones_rejected(tmp_path, monkeypatch):
    for name in ("a.jpg", "a.png"):
        Image.new("L", (2_000, 1_500), 255).save(tmp_path / name)
        assert photo.read_photo(tmp_path / name, name).size == (1024, 768)
    monkeypatch.setattr(photo, "MAX_PIXELS", 2_999_999)
    with pytest.raises(UserError, match="2000 × 1500 pixels are too many; save it with at most"):
        photo.read_photo(tmp_path / name, name)
