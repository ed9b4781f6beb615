from fashion import units
from fashion.activations import run_image, survey
from fashion.data import CLASSES

import numpy as np
import pytest
import torch
from torch import nn

from cnn import CNN


class Odd(nn.Module):
    """Strides, dilation, no norm, an even kernel, and pooling that is no layer."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(3, 4, 3, dilation=2)  # called after the other
        self.first = nn.Conv2d(1, 3, (5, 4), stride=(2, 1), padding=(2, 1))

    def forward(self, images):
        maps = self.second(nn.functional.avg_pool2d(self.first(images), 3, 2))
        return maps.flatten(1)[:, :10]


def linear_cnn():
    """The CNN with layers through which every pixel has a gradient."""
    model = CNN()
    for block in model.blocks:
        block[1], block[3] = nn.AvgPool2d(2), nn.Identity()
    return model


@pytest.mark.parametrize(
    ("build", "number"), [(linear_cnn, 1), (linear_cnn, 2), (linear_cnn, 3), (Odd, 1), (Odd, 2)]
)
def test_the_receptive_field_holds_exactly_the_lines_with_a_gradient(build, number):
    model = build().eval()
    rows, columns = units.receptive_fields(model, number)
    captured = []
    blocks = [model.first, model.second] if build is Odd else model.blocks
    blocks[number - 1].register_forward_hook(lambda *parts: captured.append(parts[2]))
    for y, x in ((0, 0), (len(rows) // 2, len(columns) - 1), (len(rows) - 1, 1)):
        image = torch.randn(1, 1, 28, 28, requires_grad=True)
        model(image)
        captured.pop()[0, :, y, x].pow(2).sum().backward()
        reached = image.grad[0, 0] != 0
        assert rows[y].tolist() == reached.any(1).tolist()
        assert columns[x].tolist() == reached.any(0).tolist()


def test_selectivity_is_1_for_a_single_class_and_0_for_all():
    labels = torch.arange(10).repeat_interleave(5)
    one = (labels == 3).float()
    peaks = torch.stack([one, torch.ones(50), torch.zeros(50), one + 1, -one - 1], dim=1)
    selectivity, preferred = units.class_selectivity(peaks, labels)
    assert selectivity.tolist() == pytest.approx([1, 0, 0, 1 / 3, 0])
    assert preferred[[0, 3]].tolist() == [3, 3]


def test_at_most_two_units_of_a_class_are_chosen_the_most_selective_first():
    labels = torch.arange(10).repeat_interleave(12)
    backgrounds, preferred = [0.3, 0.1, 0.2, 0.4, 0.5], [1, 1, 1, 6, 6]
    peaks = torch.stack(
        [b + (1 - b) * (labels == c) for b, c in zip(backgrounds, preferred, strict=True)], dim=1
    )
    peaks[12:24, 1] += torch.arange(12) / 100  # the last images of class 1 are the strongest
    chosen = units.choose_units(peaks, labels)
    assert [unit.number for unit in chosen] == [1, 2, 3, 4]
    assert [unit.label for unit in chosen] == [1, 1, 6, 6]
    assert chosen[0].images == list(range(23, 14, -1))
    assert chosen[2].selectivity == pytest.approx(0.6 / 1.4)


def test_the_figure_frames_what_activates_a_unit(networks, tiny):
    cnn = networks["cnn"]
    seen = survey(cnn, tiny.test_images, 2)
    figure = units.draw(cnn, seen, 2, tiny)
    (axes,) = figure.axes
    first = units.choose_units(seen.peaks, tiny.test_labels)[0]
    index = first.images[0]
    maps = run_image(cnn, tiny.test_images[index])[0][1].output[0, first.number]
    y, x = divmod(int(maps.argmax()), maps.shape[1])
    assert seen.peaks[index, first.number] == pytest.approx(float(maps.max()), abs=1e-4)
    frames = [patch for patch in axes.patches if patch.get_linewidth() == 1.5]
    rows, columns = units.receptive_fields(cnn.model, 2)
    field = np.outer(rows[y], columns[x])
    (top, *_, bottom), (left, *_, right) = rows[y].nonzero()[:, 0], columns[x].nonzero()[:, 0]
    place = (*frames[0].get_xy(), frames[0].get_width(), frames[0].get_height())
    assert place == (left - 0.5, top - 0.5, right - left + 1, bottom - top + 1)
    image, tile = tiny.test_images[index].numpy(), np.asarray(axes.images[0].get_array())
    assert (tile[field] == image[field]).all() and tile[field].any()
    assert tile[~field] == pytest.approx((0.3 * image)[~field])
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == f"{CLASSES[tiny.test_labels[index]]}\n{maps.max():.1f}"
    note = f"unit {first.number}\nselectivity {first.selectivity:.2f}\n{CLASSES[first.label]}"
    assert note in texts and "convolution 2" in figure.get_suptitle()
