import pytest
import torch
from torch import nn

from cnn import CNN
from layers import Dropout


def kinds(model, kind):
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def test_logits_have_ten_columns():
    assert CNN()(torch.randn(3, 1, 28, 28)).shape == (3, 10)


def test_three_convolutions_with_batch_norm_and_pooling_then_three_linear_layers():
    model = CNN()
    for block in model.blocks:
        assert {type(layer) for layer in block} == {
            nn.Conv2d,
            nn.BatchNorm2d,
            nn.ReLU,
            nn.MaxPool2d,
        }
    assert len(model.blocks) == 3
    assert [type(layer) for layer in model.classifier] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU, Dropout] * 2,
        nn.Linear,
    ]


def test_maps_shrink_from_28_to_14_to_7_to_3():
    maps, sizes = torch.randn(2, 1, 28, 28), []
    for block in CNN().blocks:
        maps = block(maps)
        sizes.append(tuple(maps.shape[2:]))
    assert sizes == [(14, 14), (7, 7), (3, 3)]


def test_widths_and_dropout_are_arguments():
    model = CNN(channels=(4, 5, 6), widths=(20, 12), dropout=0.5)
    assert [layer.out_channels for layer in kinds(model, nn.Conv2d)] == [4, 5, 6]
    assert [layer.out_features for layer in kinds(model, nn.Linear)] == [20, 12, 10]
    assert {layer.p for layer in kinds(model, nn.Dropout)} == {0.5}


@pytest.mark.parametrize("shape", [(28, 28), (3, 28, 28), (3, 784), (3, 3, 28, 28), (3, 1, 32, 32)])
def test_wrong_shape_is_named_with_the_wanted_one(shape):
    with pytest.raises(ValueError, match=r"wanted .*\(N, 1, 28, 28\), got") as caught:
        CNN()(torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("channels", ()),
        ("channels", (8, 8)),
        ("channels", (8, 0, 8)),
        ("widths", ()),
        ("widths", (8, 8, 8)),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        CNN(**{argument: value})
