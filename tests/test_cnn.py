import pytest
import torch
from torch import nn

from cnn import CNN
from fashion.layers import ConvBlock, Dropout


def test_three_convolutional_blocks_and_three_linear_layers():
    model = CNN()
    assert [type(block) for block in model.blocks] == [ConvBlock] * 3
    assert [type(layer) for layer in model.classifier] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU, Dropout] * 2,
        nn.Linear,
    ]


def test_feature_maps_shrink_from_28_to_14_to_6_to_3():
    maps, sizes = torch.randn(2, 1, 28, 28), []
    for block in CNN().blocks:
        maps = block(maps)
        sizes.append(tuple(maps.shape[2:]))
    assert sizes == [(14, 14), (6, 6), (3, 3)]


def test_channels_widths_and_dropout_are_arguments():
    model = CNN(channels=(4, 5, 6), widths=(20, 12), dropout=0.5, padding=(1, 1, 0))
    assert model.arguments == {
        "channels": [4, 5, 6],
        "widths": [20, 12],
        "dropout": 0.5,
        "padding": [1, 1, 0],
    }
    assert [block.conv.padding for block in model.blocks] == [(1, 1), (1, 1), (0, 0)]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert [block.conv.out_channels for block in model.blocks] == [4, 5, 6]
    linear = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [20, 12, 10]
    assert {layer.p for layer in model.classifier if isinstance(layer, Dropout)} == {0.5}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("channels", ()),
        ("channels", (8, 8)),
        ("channels", (8, 0, 8)),
        ("widths", ()),
        ("widths", (8, 8, 8)),
        ("widths", (8, 0)),
        ("padding", (1, 1)),
        ("padding", (1, 2, 1)),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
    ],
)
def test_arguments_out_of_range_are_rejected(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        CNN(**{argument: value})
