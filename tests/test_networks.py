"""The two architectures, and what a student may change in them."""

from fashion.data import CLASSES
from fashion.dropout import Dropout

import pytest
import torch
from torch import nn

from cnn import CNN, conv_block
from ffn import FFN


def kinds(model, *types):
    """Return the modules of these types, from input to output."""
    return [module for module in model.modules() if isinstance(module, types)]


def test_ffn_has_five_linear_layers_of_decreasing_width():
    model = FFN()
    assert [layer.out_features for layer in kinds(model, nn.Linear)] == [512, 256, 128, 64, 10]
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert [type(each).__name__ for each in model.layers] == ["Flatten", *hidden * 4, "Linear"]
    assert all(layer.p == 0.15 for layer in kinds(model, nn.Dropout))


def test_cnn_has_three_convolutions_with_norm_and_pooling_and_three_linear_layers():
    model = CNN()
    assert [layer.out_channels for layer in kinds(model, nn.Conv2d)] == [32, 64, 128]
    assert len(kinds(model, nn.BatchNorm2d)) == len(kinds(model, nn.MaxPool2d)) == 3
    assert [layer.in_features for layer in kinds(model, nn.Linear)] == [128 * 3 * 3, 256, 128]
    assert len(kinds(model, nn.Dropout)) == 2


def test_pooling_before_norm_and_relu_equals_the_usual_order():
    block = conv_block(3, 5, 1).eval()
    conv, pool, norm, relu = block
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(0.1, 2)  # a negative factor would turn the largest into the smallest
    maps = torch.randn(2, 3, 8, 8)
    assert torch.allclose(block(maps), pool(relu(norm(conv(maps)))), atol=1e-6)


def test_networks_take_any_number_of_blocks_and_layers():
    deep = CNN((4, 4, 4, 4), (1, 1, 1, 1), ())
    for network in (FFN((100,)), FFN((50, 100, 200, 400)), CNN((8,), (0,), (30,)), deep):
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, len(CLASSES))


def test_the_trial_that_finds_the_size_leaves_batch_norm_alone():
    model = CNN()
    assert not model.blocks[0][2].running_mean.any() and model.blocks.training


def test_dropout_keeps_the_mean_and_drops_the_share():
    layer = Dropout(0.25)
    activations = torch.ones(1000, 1001)
    dropped = layer(activations)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.002)
    assert dropped.mean() == pytest.approx(1, abs=0.003)
    # Decisions of neighbours are independent of each other.
    both = ((dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)).float().mean()
    assert both == pytest.approx(0.25**2, abs=0.002)
    assert torch.equal(layer.eval()(activations), activations)


def test_dropout_lets_gradients_through_where_it_lets_activations_through():
    activations = torch.ones(50, 50, requires_grad=True)
    dropped = Dropout(0.5)(activations)
    dropped.sum().backward()
    assert torch.equal(activations.grad, dropped.detach())
