from itertools import pairwise

import pytest
from torch import nn

from fashion.layers import Dropout
from ffn import FFN


def widths(model):
    return [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_five_linear_layers_of_strictly_decreasing_width_end_in_ten():
    assert len(widths(FFN())) == 5 and widths(FFN())[-1] == 10
    assert all(a > b for a, b in pairwise(widths(FFN())))


def test_batch_norm_relu_and_dropout_follow_each_layer_but_the_last():
    assert [type(layer) for layer in FFN().layers] == [
        nn.Flatten,
        *[nn.Linear, nn.BatchNorm1d, nn.ReLU, Dropout] * 4,
        nn.Linear,
    ]


def test_widths_and_dropout_are_arguments():
    model = FFN(widths=(40, 30, 20, 15), dropout=0.5)
    assert model.arguments == {"widths": [40, 30, 20, 15], "dropout": 0.5}
    assert widths(model) == [40, 30, 20, 15, 10]
    assert {layer.p for layer in model.modules() if isinstance(layer, Dropout)} == {0.5}


@pytest.mark.parametrize("values", [(), (64, 32, 16), (64, 64, 32, 16), (64, 32, 16, 10)])
def test_widths_that_do_not_decrease_are_rejected(values):
    with pytest.raises(ValueError, match="widths must be 4 strictly decreasing numbers above 10"):
        FFN(widths=values)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range_is_rejected(dropout):
    with pytest.raises(ValueError, match="dropout"):
        FFN(dropout=dropout)
