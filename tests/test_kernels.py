from dataclasses import replace

from fashion import kernels
from fashion.activations import find_convolutions, find_layers

import numpy as np
import pytest
import torch

from fashionmnist import train
from models import MODELS


def before_training(name, tiny):
    """The network as the training builds it, before its first step."""
    return train(name, replace(MODELS[name].recipe, epochs=0), 0, tiny).model


@pytest.mark.parametrize("name", MODELS)
def test_the_untrained_network_is_the_one_that_the_training_began_with(networks, tiny, name):
    expected = before_training(name, tiny).state_dict()
    state = torch.get_rng_state()
    untrained = kernels.make_untrained(networks[name], MODELS)
    assert torch.get_rng_state().equal(state) and not untrained.training
    assert all(value.equal(expected[key]) for key, value in untrained.state_dict().items())
    first, trained = (find_layers(each)[0] for each in (untrained, networks[name].model))
    assert not first.weight.equal(trained.weight)


def weights_drawn(axes):
    return np.stack([tile.get_array() for tile in axes.images])


def test_kernels_are_drawn_by_norm_before_and_after_training_on_own_scales(networks, tiny):
    cnn = networks["cnn"]
    figure = kernels.draw_kernels(cnn, MODELS, 1)
    left, right = figure.axes[:2]
    after = cnn.model.blocks[0][0].weight[:, 0].detach()
    before = before_training("cnn", tiny).blocks[0][0].weight[:, 0].detach()
    order = np.argsort(-after.flatten(1).norm(dim=1).numpy(), kind="stable")
    for axes, weights in ((left, before), (right, after)):
        assert (weights_drawn(axes) == weights[order].numpy()).all()
        assert [text.get_text() for text in axes.texts] == [str(number) for number in order]
        low, high = axes.images[-1].get_clim()
        assert -low == high == pytest.approx(np.percentile(weights.abs().numpy(), 98))
    ratio = float((after**2).mean().sqrt() / (before**2).mean().sqrt())
    assert f"{ratio:.1f} times as large after" in figure.get_supxlabel()
    assert "before" in left.get_title() and "after" in right.get_title()
    assert "32 of 32" in figure.get_suptitle() and "slices" not in figure.get_suptitle()


def test_deeper_kernels_are_drawn_as_their_largest_slices(networks):
    cnn = networks["cnn"]
    model = kernels.make_untrained(cnn, MODELS)
    with torch.no_grad():
        find_convolutions(model)[2].weight[5, 17] = -9
    figure = kernels.draw_kernels(replace(cnn, model=model), MODELS, 3)
    left, right = figure.axes[:2]
    assert right.texts[0].get_text() == "5" and len(right.images) == 64
    assert (right.images[0].get_array() == -9).all()
    before = find_convolutions(kernels.make_untrained(cnn, MODELS))[2].weight[5, 17]
    assert (left.images[0].get_array() == before.detach().numpy()).all()
    assert "64 of 128" in figure.get_suptitle() and "64 slices" in figure.get_suptitle()


def test_weights_of_a_linear_layer_are_drawn_as_images(networks):
    ffn = networks["ffn"]
    figure = kernels.draw_weights(ffn, MODELS)
    right = figure.axes[1]
    unit = int(right.texts[3].get_text())
    weights = find_layers(ffn.model)[0].weight[unit].detach().numpy()
    assert (right.images[3].get_array() == weights.reshape(28, 28)).all()
    assert "64 of 512 units" in figure.get_suptitle()
