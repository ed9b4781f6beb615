from fashion import architecture
from fashion.activations import run
from fashion.comparison import count_multiply_accumulates

import pytest
import torch
from torch import nn

from cnn import CNN
from ffn import FFN


def test_parameters_and_multiply_accumulates_by_hand():
    layers = (nn.Conv2d(1, 4, 3, stride=2), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.GELU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 6 * 6, 10)).eval()
    first, last = run(model, torch.zeros(1, 1, 28, 28))[0]
    assert architecture.costs(first) == (4 * 9 + 4 + 2 * 4, 13 * 13 * 4 * 9)
    assert architecture.costs(last) == (1440 + 10, 1440)


def test_networks_are_drawn_to_scale_side_by_side():
    softmax = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # no convolution, one layer
    models = {"ffn": FFN(), "cnn": CNN(), "third": softmax}
    figure = architecture.draw(models)
    for number, (name, model) in enumerate(models.items()):
        boxes, parameters, products = figure.axes[3 * number : 3 * number + 3]
        blocks = run(model, torch.zeros(1, 1, 28, 28))[0]
        assert boxes.get_title() == name.upper()
        counts = [bar.get_width() for bar in parameters.patches]
        assert sum(counts) == sum(p.numel() for p in model.parameters())
        assert counts == [architecture.costs(block)[0] for block in blocks]
        macs = count_multiply_accumulates(model)
        assert sum(bar.get_width() for bar in products.patches) == macs
        assert products.get_title() == f"{macs:,}\nmultiply-accumulates"
        assert [text.get_text() for text in parameters.texts] == [f"{n:,}" for n in counts]
    for part in range(3):  # a common scale
        assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes[part::3]}) == 1


def test_boxes_have_the_shapes_of_the_layers():
    boxes = architecture.draw({"cnn": CNN()}).axes[0]
    assert [text.get_text() for text in boxes.texts] == [
        "1 × 28 × 28",
        "32 × 28 × 28 → 32 × 14 × 14",
        "64 × 12 × 12 → 64 × 6 × 6",
        "128 × 6 × 6 → 128 × 3 × 3",
        "256",
        "128",
        "10",
    ]
    sizes = [(box.get_width(), box.get_height()) for box in boxes.patches]
    pixel = sizes[0][1] / 28
    sides = [(1, 28), (32, 28), (32, 14), (64, 12), (64, 6), (128, 6), (128, 3)]
    expected = [*sides, (256, 1), (128, 1), (10, 1)]
    assert sizes == [(width, pytest.approx(pixel * height)) for width, height in expected]
    names = [" ".join(text.get_text().split()) for text in boxes.get_yticklabels()]
    assert names[0] == "input" and names[4] == "linear layer, 256 units → ReLU"
