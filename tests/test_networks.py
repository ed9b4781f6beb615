"""The two architectures, and what a student may change in them."""

from fashion.data import CLASSES
from fashion.dropout import Dropout

import pytest
import torch
from torch import nn

from cnn import CNN, conv_block
from ffn import FFN
from models import MODELS


def kinds(model, *types):
    """Return the modules of these types, from input to output."""
    return [module for module in model.modules() if isinstance(module, types)]


def test_ffn_has_five_linear_layers_of_decreasing_width():
    model = FFN()
    linear = kinds(model, nn.Linear)
    assert [layer.out_features for layer in linear] == [512, 256, 128, 64, 10]
    assert linear[0].in_features == 28 * 28
    order = [type(layer).__name__ for layer in model.layers]
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert order == ["Flatten", *hidden * 4, "Linear"]
    assert all(layer.p == 0.15 for layer in kinds(model, nn.Dropout))


def test_cnn_has_three_convolutions_with_norm_and_pooling_and_three_linear_layers():
    model = CNN()
    convolutions = kinds(model, nn.Conv2d)
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
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


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_column_for_each_class(name):
    model = MODELS[name].network().eval()
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, len(CLASSES))


@pytest.mark.parametrize("name", MODELS)
def test_quick_recipe_has_no_augmentation_and_no_dropout(name):
    quick = MODELS[name].quick
    assert not quick.shift_share
    assert not quick.flip
    assert all(layer.p == 0 for layer in kinds(MODELS[name].network(**quick.model), nn.Dropout))


@pytest.mark.parametrize("widths", [(100,), (300, 300, 300), (50, 100, 200, 400, 800)])
def test_ffn_takes_any_number_and_widths_of_layers(widths):
    assert FFN(widths)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": (8,), "padding": (0,)},
        {"channels": (4, 8), "padding": (2, 2), "widths": (30,)},
        {"channels": (4, 4, 4, 4), "padding": (1, 1, 1, 1), "widths": ()},
    ],
)
def test_cnn_takes_any_number_of_blocks_and_layers(arguments):
    assert CNN(**arguments)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_building_a_network_twice_from_a_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(4)
        models.append(CNN())
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # The trial that finds the size leaves the statistics of batch norm alone.
    assert not models[0].blocks[0][2].running_mean.any()
    assert models[0].blocks.training


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
