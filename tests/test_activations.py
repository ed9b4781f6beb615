from fashion import activations
from fashion.data import CLASSES

import numpy as np
import pytest
import torch
from torch import nn

RELU = "ReLU (negative values become 0)"
REST = f"largest of 2 × 2 → batch normalization → {RELU}"
CNN_STEPS = [
    *(f"3 × 3 convolution, {k} kernels → {REST}" for k in (32, 64, 128)),
    *(f"linear layer, {k} units → {RELU}" for k in (256, 128)),
    "linear layer, 10 units",
]


def in_words(blocks):
    return [" → ".join(block.steps) for block in blocks]


@pytest.fixture
def odd():
    """A network with other layers than the CNN, one of which works in place."""
    first = nn.Conv2d(1, 3, (5, 4), stride=2, padding=1)
    layers = (first, nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 11 * 12, 10)).eval()


def test_blocks_are_found_by_type_in_the_order_of_their_calls(networks, odd):
    inputs = torch.randn(2, 1, 28, 28)
    blocks, logits = activations.run(networks["cnn"].model, inputs)
    assert in_words(blocks) == CNN_STEPS
    with torch.no_grad():
        assert logits.equal(networks["cnn"].model(inputs))
    sides = [block.output.shape[-1] for block in blocks]
    assert sides == [14, 6, 3, 256, 128, 10]
    blocks, _ = activations.run(odd, inputs)
    assert in_words(blocks) == [
        f"5 × 4 convolution, stride 2 × 2, 3 kernels → {RELU}",
        "3 × 3 convolution, 4 kernels → GELU",
        "linear layer, 10 units",
    ]
    assert activations.find_convolutions(odd) == [odd[0], odd[2]]
    assert (blocks[0].response < 0).any()
    assert blocks[0].output.equal(blocks[0].response.relu())
    steps = in_words(activations.run(networks["ffn"].model, inputs)[0])
    assert steps[0] == f"linear layer, 512 units → batch normalization → {RELU}"
    assert activations.find_convolutions(networks["ffn"].model) == []


def test_poolings_are_described_in_words():
    assert activations.describe(nn.MaxPool2d(3, 2)) == "largest of 3 × 3, stride 2 × 2"
    assert activations.describe(nn.AvgPool2d((2, 4))) == "mean of 2 × 4"


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
    assert "frame" not in figure.get_supxlabel()  # the second convolution adds no border
    first = activations.draw_maps(cnn, image, "a shoe", 1)
    black = (0 - tiny.mean) / tiny.std
    assert f"Black is {black:.2f}" in first.get_supxlabel() and "frame" in first.get_supxlabel()
    assert left.get_position().width < 0.3 * right.get_position().width


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 2, (5, 4), stride=(2, 1), padding=(2, 1)),
        nn.Conv2d(1, 2, (5, 3), dilation=(1, 2), padding="same", bias=False),
    ],
)
def test_a_patch_and_a_kernel_give_the_largest_value_within_the_image(layer):
    image = torch.randn(1, 1, 28, 28)
    (block,), _ = activations.run(layer.requires_grad_(False), image)
    patch, (top, left, bottom, right), (y, x) = activations.find_patch(block, 1)
    response, (down, across) = block.response[0, 1], layer.dilation
    expected = image[0, 0, top : bottom + 1 : down, left : right + 1 : across]
    assert patch.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    bias = 0 if layer.bias is None else float(layer.bias[1])
    product = (patch * layer.weight[1, 0]).sum() + bias
    assert float(product) == pytest.approx(float(response[y, x]), abs=1e-5)
    inner = response[2:-2, 2:-2]  # their patches lie within the image
    assert response[y, x] >= inner.max() and top >= 0 and left >= 0 and max(bottom, right) < 28


def test_the_example_shows_the_numbers_of_one_convolution(networks, tiny):
    cnn, image = networks["cnn"], tiny.test_images[3]
    figure = activations.draw_progression(cnn, image, "a shoe")
    picture, pixels, weights, response = figure.axes[:4]
    block = activations.run_image(cnn, image)[0][0]
    kernel = int(block.output[0].std((1, 2), correction=0).argmax())
    patch, (top, left, bottom, right), (y, x) = activations.find_patch(block, kernel)
    assert (bottom - top, right - left) == (2, 2)
    expected = (patch, cnn.model.blocks[0][0].weight[kernel, 0].detach())
    for axes, values in zip((pixels, weights), expected, strict=True):
        assert (axes.images[0].get_array() == values.numpy()).all()
        shown = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
        assert {place: float(text) for place, text in shown.items()} == pytest.approx(
            {place: float(value) for place, value in np.ndenumerate(values.numpy())}, abs=0.00501
        )
    assert (response.images[0].get_array() == block.response[0, kernel].numpy()).all()
    frames = [axes.patches[0].get_bbox().bounds for axes in (picture, response)]
    assert frames == [(left - 0.5, top - 0.5, 3, 3), (x - 0.5, y - 0.5, 1, 1)]
    value = float(block.response[0, kernel, y, x])
    assert f"= {value:.2f}, one value of map {kernel}" in response.get_title()
    assert float((expected[0] * expected[1]).sum()) == pytest.approx(value, abs=1e-5)


def test_a_network_that_begins_with_a_linear_layer_has_no_example(networks, tiny):
    figure = activations.draw_progression(networks["ffn"], tiny.test_images[3], "a shoe")
    assert len(figure.axes) == 1 + 5 + 4  # image, rows and colour bars
    assert "linear layer, 512 units" in figure.axes[1].get_title()


def test_the_progression_ends_with_the_probabilities(networks, tiny):
    cnn, image = networks["cnn"], tiny.test_images[3]
    figure = activations.draw_progression(cnn, image, "a shoe")
    first, *rows, last = [figure.axes[0], *figure.axes[4:10]]
    blocks, probabilities = activations.run_image(cnn, image)
    assert (first.images[0].get_array() == image.numpy()).all()
    for axes, block, steps in zip(rows, blocks, CNN_STEPS, strict=False):
        assert axes.get_title().startswith(f"↓  {steps}\n")
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
    assert last.get_title().startswith(f"↓  {CNN_STEPS[-1]} → softmax")
    guess = f"{CLASSES[probabilities.argmax()]} {probabilities.max():.0%}"
    assert guess in figure.get_suptitle()
