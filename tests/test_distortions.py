import pytest
import torch

from experiments import distortions
from experiments.distortions import DISTORTIONS


def grey(count, level):
    return torch.full((count, 28, 28), level, dtype=torch.uint8)


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_one_level_changes_nothing_and_all_others_do(kind):
    images = torch.randint(0, 256, (40, 28, 28)).byte()
    _, levels, apply = DISTORTIONS[kind]
    for level in levels:
        distorted = apply(images, level)
        assert distorted.shape == images.shape and distorted.dtype == torch.uint8
        assert distorted.equal(apply(images, level))  # the same in every call
        assert distorted.equal(images) == (level == (kind in ("zoom", "contrast")))


@pytest.mark.parametrize("pixels", [1, 6])
def test_shift_moves_as_far_in_each_of_eight_directions(pixels):
    point = grey(16, 0)
    point[:, 14, 14] = 255
    moved = [tuple(place[1:] - 14) for place in distortions.shift(point, pixels).nonzero().numpy()]
    steps = (-pixels, 0, pixels)
    expected = {(down, right) for down in steps for right in steps if down or right}
    assert set(moved[:8]) == set(moved[8:]) == expected


def test_rotation_turns_every_other_image_the_other_way():
    bar = grey(2, 0)
    bar[:, 13:15, 14:28] = 255  # to the right of the centre
    clockwise, other = distortions.rotate(bar, 90).double()
    assert clockwise[14:, 13:15].sum() > 0.95 * clockwise.sum() > 0.9 * bar[0].sum()
    assert other[:14, 13:15].sum() > 0.95 * other.sum() > 0.9 * bar[0].sum()


def test_zoom_changes_the_side_of_a_square_by_its_factor():
    square = grey(1, 0)
    square[:, 4:24, 4:24] = 240
    for factor, side in ((0.5, 10), (1.25, 25)):
        zoomed = distortions.zoom(square, factor).double()
        assert zoomed.sum().item() == pytest.approx(240 * side**2, rel=0.08)


def test_noise_and_contrast_are_in_grey_levels():
    noisy = distortions.add_noise(grey(50, 128), 32).double()
    assert (noisy.mean().item(), noisy.std().item()) == pytest.approx((128, 32), rel=0.02)
    levels = torch.tensor([0, 3, 100, 255], dtype=torch.uint8)
    assert distortions.lower_contrast(levels, 0.25).tolist() == [0, 1, 25, 64]


def test_occlusion_is_one_black_square_inside_each_image():
    holes = distortions.occlude(grey(2000, 9), 4) == 0
    assert (holes.sum((1, 2)) == 4**2).all() and holes.any(0).all()
    assert (holes.any(1).sum(1) == 4).all() and (holes.any(2).sum(1) == 4).all()
