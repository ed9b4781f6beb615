import pytest
import torch

from experiments import distortions
from experiments.distortions import DISTORTIONS

IMAGES = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8)


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda each: each.name)
def test_neutral_level_changes_nothing_and_all_others_do(distortion):
    before = IMAGES.clone()
    for level in distortion.levels:
        distorted = distortion.apply(IMAGES, level)
        assert distorted.shape == IMAGES.shape and distorted.dtype == torch.uint8
        assert distorted.equal(distortion.apply(IMAGES, level))  # no hidden randomness
        assert distorted.equal(IMAGES) == (level == distortion.neutral)
    assert list(distortion.levels).count(distortion.neutral) == 1
    assert IMAGES.equal(before)


@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_shift_of_three_is_three_in_each_of_eight_directions(pixels):
    point = torch.zeros(16, 28, 28, dtype=torch.uint8)
    point[:, 14, 14] = 255
    moved = distortions.shift(point, pixels).nonzero()[:, 1:] - 14
    expected = {
        (down, right)
        for down in (-pixels, 0, pixels)
        for right in (-pixels, 0, pixels)
        if down or right
    }
    assert [tuple(each) for each in moved[:8].tolist()] == [tuple(e) for e in moved[8:].tolist()]
    assert {tuple(each) for each in moved.tolist()} == expected


def test_what_a_shift_uncovers_is_black():
    shifted = distortions.shift(torch.full((8, 28, 28), 200, dtype=torch.uint8), 6)
    assert {int((image == 0).sum()) for image in shifted} == {6 * 28, 2 * 6 * 28 - 36}


def test_rotation_turns_every_other_image_the_other_way():
    bar = torch.zeros(2, 28, 28, dtype=torch.uint8)
    bar[:, 13:15, 14:28] = 255  # to the right of the centre
    first, second = distortions.rotate(bar, 90).float()
    for image, rows in ((first, slice(14, 28)), (second, slice(0, 14))):
        assert image[rows, 13:15].mean() > 200
        assert image[rows, 13:15].sum() > 0.95 * image.sum()


@pytest.mark.parametrize(("factor", "side"), [(0.5, 10), (1.25, 25)])
def test_zoom_changes_the_side_of_a_square_by_its_factor(factor, side):
    square = torch.zeros(1, 28, 28, dtype=torch.uint8)
    square[:, 4:24, 4:24] = 240
    zoomed = distortions.zoom(square, factor).double()
    assert zoomed.sum().item() == pytest.approx(240 * side**2, rel=0.08)
    assert zoomed[0, 14, 14] == 240


def test_blur_keeps_the_sum_and_has_the_given_deviation():
    point = torch.zeros(1, 28, 28, dtype=torch.uint8)
    point[:, 12:16, 12:16] = 255
    blurred = distortions.blur(point, 2).double()[0]
    assert blurred.sum().item() == pytest.approx(16 * 255, rel=0.03)
    places = torch.arange(28) - 13.5
    variance = (blurred.sum(0) * places**2).sum() / blurred.sum()
    assert variance.item() == pytest.approx(2**2 + (4**2 - 1) / 12, rel=0.1)


@pytest.mark.parametrize("deviation", [8, 32])
def test_noise_has_the_given_deviation_in_grey_levels(deviation):
    grey = torch.full((50, 28, 28), 128, dtype=torch.uint8)
    noisy = distortions.add_noise(grey, deviation).double()
    assert noisy.mean().item() == pytest.approx(128, abs=1)
    assert noisy.std().item() == pytest.approx(deviation, rel=0.02)


def test_contrast_scales_grey_levels_and_keeps_black():
    levels = torch.arange(256, dtype=torch.uint8)
    lowered = distortions.lower_contrast(levels, 0.25).float()
    assert lowered[0] == 0 and (lowered - levels / 4).abs().max() <= 0.5


@pytest.mark.parametrize("side", [4, 16])
def test_occlusion_is_one_black_square_inside_each_image(side):
    holes = distortions.occlude(torch.full((2000, 28, 28), 9, dtype=torch.uint8), side) == 0
    assert (holes.sum((1, 2)) == side**2).all()
    assert (holes.any(1).sum(1) == side).all() and (holes.any(2).sum(1) == side).all()
    assert holes.any(0).all()
