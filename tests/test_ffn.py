from itertools import pairwise

import pytest
import torch
from torch import nn

from ffn import FFN
from layers import Dropout


def kinds(model, kind):
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def test_logits_have_ten_columns():
    assert FFN()(torch.randn(3, 1, 28, 28)).shape == (3, 10)


def test_five_linear_layers_of_strictly_decreasing_width_end_in_ten():
    widths = [layer.out_features for layer in kinds(FFN(), nn.Linear)]
    assert len(widths) == 5 and widths[-1] == 10
    assert all(a > b for a, b in pairwise(widths))


def test_batch_norm_relu_dropout_after_each_layer_but_the_last():
    layers = list(FFN().layers)
    assert [type(layer) for layer in layers] == [
        nn.Flatten,
        *[nn.Linear, nn.BatchNorm1d, nn.ReLU, Dropout] * 4,
        nn.Linear,
    ]


def test_widths_and_dropout_are_arguments():
    model = FFN(widths=(40, 30, 20, 15), dropout=0.5)
    assert [layer.out_features for layer in kinds(model, nn.Linear)] == [40, 30, 20, 15, 10]
    assert {layer.p for layer in kinds(model, nn.Dropout)} == {0.5}


@pytest.mark.parametrize("shape", [(28, 28), (3, 28, 28), (3, 784), (3, 3, 28, 28), (3, 1, 32, 32)])
def test_wrong_shape_is_named_with_the_wanted_one(shape):
    with pytest.raises(ValueError, match=r"wanted .*\(N, 1, 28, 28\), got") as caught:
        FFN()(torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("widths", [(), (64, 32, 16), (64, 64, 32, 16), (64, 32, 16, 10)])
def test_widths_that_do_not_decrease_are_refused(widths):
    with pytest.raises(ValueError, match="decreasing"):
        FFN(widths=widths)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_outside_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match="dropout"):
        FFN(dropout=dropout)
