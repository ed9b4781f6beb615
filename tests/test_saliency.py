from dataclasses import replace

from fashion import saliency
from fashion.activations import survey
from fashion.data import CLASSES, normalize

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import logsumexp

NAMES = ["ffn", "cnn"]


@pytest.fixture(scope="module")
def image(tiny):
    """An image with a black margin of four pixels at the top."""
    image = tiny.test_images[0].clone()
    image[:4] = 0
    return image


@pytest.fixture(scope="module")
def warm(networks):
    """The networks with a temperature that the maps must take into account."""
    return {name: replace(network, temperature=1.7) for name, network in networks.items()}


def log_odds_of(network, images, label):
    """Log-odds of a class, computed without the room's own functions."""
    inputs = normalize(torch.stack(images), network.mean, network.std)
    with torch.no_grad():
        logits = network.model(inputs).double().numpy() / 1.7
    return logits[:, label] - logsumexp(np.delete(logits, label, axis=1), axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_occlusion_is_the_decrease_of_the_log_odds_behind_a_square(warm, image, name):
    decrease = saliency.occlusion(warm[name], image, 3)
    assert decrease.shape == (28, 28) and np.abs(decrease).max() > 0.1
    assert decrease[:2] == pytest.approx(np.zeros((2, 28)), abs=1e-4)  # black on black
    for row, column in ((14, 14), (5, 0), (27, 10)):
        occluded = image.clone()
        occluded[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 0
        before, after = log_odds_of(warm[name], [image, occluded], 3)
        assert decrease[row, column] == pytest.approx(before - after, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_integrated_gradients_add_up_to_the_difference_from_black(warm, image, name):
    label = int(warm[name].logits(image[None]).argmax())
    contributions = saliency.integrated_gradients(warm[name], image, label)
    black, full = log_odds_of(warm[name], [torch.zeros_like(image), image], label)
    assert abs(full - black) > 0.5
    assert contributions.sum() == pytest.approx(full - black, rel=0.05)
    assert (contributions[image.numpy() == 0] == 0).all()
    assert all(weight.grad is None for weight in warm[name].model.parameters())


def test_images_are_those_nearest_to_the_confidence_for_each_case_and_class():
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    # The class, and the probability of what each network predicts.
    first = [(0, 0.82), (0, 0.81), (1, 0.7), (2, 0.9), (9, 0.8), (9, 0.8), (9, 0.5)]
    second = [(0, 0.99), (0, 0.99), (1, 0.99), (9, 0.99), (3, 0.9), (9, 0.9), (9, 0.9)]
    pair = {name: torch.zeros(7, 10) for name in NAMES}
    for name, rows in zip(NAMES, (first, second), strict=True):
        for index, (label, p) in enumerate(rows):
            pair[name][index, label] = p
    expected = {1: NAMES, 2: NAMES, 3: ["ffn"], 4: ["cnn"], 5: [], 6: []}
    assert saliency.choose_images(pair, labels) == expected
    alone = saliency.choose_images({"ffn": pair["ffn"]}, labels)
    assert list(alone.values()) == [["ffn"]] * 3 + [[]] * 2


def test_the_figure_shows_the_maps_of_each_network_method_and_image(networks, tiny, monkeypatch):
    monkeypatch.setattr(saliency, "choose_images", lambda *_: {7: ["cnn"], 9: []})
    surveys = {name: survey(network, tiny.test_images) for name, network in networks.items()}
    figure = saliency.draw(networks, surveys, tiny)
    heads, (first, *maps) = np.array(figure.axes[:10]).reshape(2, 5)
    image, true = tiny.test_images[9], CLASSES[tiny.test_labels[9]]
    assert (first.images[0].get_array() == image.numpy()).all()
    assert first.get_title() == f"test image 9: {true}\ncorrect: none"
    columns = [(method, name) for method in saliency.METHODS for name in NAMES]
    for head, axes, (method, name) in zip(heads[1:], maps, columns, strict=True):
        assert head.get_title().splitlines()[0] == f"{name.upper()}, {method}"
        probabilities = surveys[name].probabilities[9]
        guess = int(probabilities.argmax())
        root = np.asarray(axes.images[0].get_array())
        expected = saliency.METHODS[method](networks[name], image, guess)
        assert np.sign(root) * root**2 == pytest.approx(expected, abs=1e-4)
        assert axes.get_title() == f"{CLASSES[guess]} {probabilities[guess]:.0%}"


def test_maps_have_a_common_scale_in_log_odds_and_black_images_no_outline(networks, monkeypatch):
    maps = iter((np.zeros((28, 28)), np.full((28, 28), -4.0)))
    monkeypatch.setitem(saliency.METHODS, "constant", lambda *_: next(maps))
    column = Figure().subplots(2, 1)
    saliency.draw_maps(column, networks["cnn"], "constant", torch.zeros(2, 28, 28).byte())
    assert [axes.images[0].get_clim() for axes in column] == [(-2, 2), (-2, 2)]
    assert (column[1].images[0].get_array() == -2).all()
    (bar,) = column[1].child_axes
    assert [text.get_text() for text in bar.get_xticklabels()] == ["−4", "0", "4"]
    assert not column[0].collections
