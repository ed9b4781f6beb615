from fashion import activations
from fashion.data import CLASSES

import numpy as np
import pytest
import torch
from torch import nn

CNN_TITLES = [
    *(f"3 × 3 convolution, {k} kernels; then MaxPool2d, BatchNorm2d, ReLU" for k in (32, 64, 128)),
    *("linear layer, 256 units; then ReLU", "linear layer, 128 units; then ReLU"),
    "linear layer, 10 units",
]


@pytest.fixture
def odd():
    """A network with other layers than the CNN, one of which works in place."""
    first = nn.Conv2d(1, 3, (5, 4), stride=2, padding=1)
    layers = (first, nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 11 * 12, 10)).eval()


def test_blocks_are_found_by_type_in_the_order_of_their_calls(networks, odd):
    inputs = torch.randn(2, 1, 28, 28)
    blocks, logits = activations.run(networks["cnn"].model, inputs)
    assert [block.title for block in blocks] == CNN_TITLES
    with torch.no_grad():
        assert logits.equal(networks["cnn"].model(inputs))
    sides = [block.output.shape[-1] for block in blocks]
    assert sides == [14, 6, 3, 256, 128, 10]
    blocks, _ = activations.run(odd, inputs)
    assert [block.title for block in blocks] == [
        "5 × 4 convolution, 3 kernels; then ReLU",
        "3 × 3 convolution, 4 kernels; then GELU",
        "linear layer, 10 units",
    ]
    assert activations.find_convolutions(odd) == [odd[0], odd[2]]
    assert (blocks[0].response < 0).any()
    assert blocks[0].output.equal(blocks[0].response.relu())
    titles = [block.title for block in activations.run(networks["ffn"].model, inputs)[0]]
    assert titles[0] == "linear layer, 512 units; then BatchNorm1d, ReLU"
    assert activations.find_convolutions(networks["ffn"].model) == []


def test_a_survey_agrees_with_the_networks_image_by_image(networks, tiny):
    cnn, images = networks["cnn"], tiny.test_images
    seen = activations.survey(cnn, images, 2)
    assert seen.probabilities.numpy() == pytest.approx(cnn.probabilities(images).numpy(), abs=1e-5)
    with torch.no_grad():
        logits = cnn.model.classifier[-1](seen.features)
    assert logits.argmax(1).equal(seen.probabilities.argmax(1))
    for index in (0, 299):
        maps = activations.run_image(cnn, images[index])[0][1].output[0].flatten(1)
        assert seen.peaks[index].tolist() == pytest.approx(maps.amax(1).tolist(), abs=1e-4)
        values = maps.gather(1, seen.places[index][:, None])[:, 0]
        assert values.tolist() == pytest.approx(maps.amax(1).tolist(), abs=1e-4)
    assert activations.survey(cnn, images[:2]).peaks.shape == (2, 128)
    assert activations.survey(networks["ffn"], images[:2], 2).peaks.shape == (2, 0)


def test_feature_maps_are_drawn_beside_the_image_in_the_order_of_the_kernels(networks, tiny):
    cnn, image = networks["cnn"], tiny.test_images[3]
    figure = activations.draw_maps(cnn, image, "a shoe", 2)
    left, right = figure.axes[:2]
    assert (left.images[0].get_array() == image.numpy()).all()
    norms = cnn.model.blocks[1][0].weight.detach().flatten(1).norm(dim=1)
    assert [text.get_text() for text in right.texts] == [
        str(int(n)) for n in norms.argsort().flip(0)
    ]
    unit = int(right.texts[9].get_text())
    response = activations.run_image(cnn, image)[0][1].response[0, unit]
    assert (right.images[9].get_array() == response.numpy()).all()
    assert "convolution 2" in figure.get_suptitle() and "a shoe" in figure.get_suptitle()


def test_the_progression_ends_with_the_probabilities(networks, tiny):
    cnn, image = networks["cnn"], tiny.test_images[3]
    figure = activations.draw_progression(cnn, image, "a shoe")
    first, *rows, last = figure.axes[:7]
    blocks, probabilities = activations.run_image(cnn, image)
    assert (first.images[0].get_array() == image.numpy()).all()
    for axes, block, title in zip(rows, blocks, CNN_TITLES, strict=False):
        assert axes.get_title().startswith(title)
        output = block.output[0].numpy()
        if output.ndim == 1:
            assert (axes.images[0].get_array() == output[None]).all()
            continue
        chosen = [int(text.get_text()) for text in axes.texts]
        assert chosen == np.argsort(-output.std((1, 2)), kind="stable")[:8].tolist()
        for tile, number in zip(axes.images, chosen, strict=True):
            assert (tile.get_array() == output[number]).all()
            assert tile.get_clim() == (0, pytest.approx(output[chosen].max()))
    assert [bar.get_height() for bar in last.patches] == pytest.approx(probabilities.tolist())
    assert [tick.get_text() for tick in last.get_xticklabels()] == list(CLASSES)
    guess = f"{CLASSES[probabilities.argmax()]} {probabilities.max():.0%}"
    assert guess in figure.get_suptitle()
