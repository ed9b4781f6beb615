from dataclasses import replace

from fashion import saliency
from fashion.activations import survey
from fashion.data import CLASSES, normalize
from fashion.kernels import make_untrained

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import logsumexp
from scipy.stats import spearmanr

from models import MODELS

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


@pytest.fixture
def bright():
    """A stand-in for a network: the probability of class 3 is the share of a bright first row."""

    class Bright:
        @staticmethod
        def probabilities(images):
            share = (images[:, 0] > 0).double().mean(1)
            return share[:, None] * (torch.arange(10) == 3)

    return Bright()


def test_deletion_is_the_mean_probability_while_pixels_become_black(bright, monkeypatch):
    monkeypatch.setattr(saliency, "STEPS", 3)  # none, half and all of the pixels are black
    image = torch.zeros(28, 28).byte()
    image[:2] = 100  # as many pixels in the first row, on which the probability depends
    support = np.zeros((28, 28))
    support[0], support[9] = 1, 2  # the tenth row is black anyway
    assert saliency.deletion(bright, image, 3, support) == pytest.approx((1 + 0 + 0) / 3)
    assert saliency.deletion(bright, image, 3, -support) == pytest.approx((1 + 1 + 0) / 3)
    assert saliency.deletion(bright, image, 4, support) == 0


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


def test_the_figure_explains_the_predictions_beside_maps_of_the_untrained(
    networks, tiny, monkeypatch
):
    surveys = {name: survey(network, tiny.test_images) for name, network in networks.items()}
    guesses = torch.stack([surveys[name].probabilities.argmax(1) for name in NAMES])
    index = int((guesses != tiny.test_labels).all(0).nonzero()[-1])  # both networks are wrong
    monkeypatch.setattr(saliency, "choose_images", lambda *_: {7: ["cnn"], index: []})
    figure = saliency.draw(networks, surveys, tiny, MODELS)
    heads, (first, *maps) = np.array(figure.axes[:10]).reshape(2, 5)
    image, true = tiny.test_images[index], CLASSES[tiny.test_labels[index]]
    assert (first.images[0].get_array() == image.numpy()).all()
    assert first.get_title() == f"test image {index}: {true}\ncorrect: none"
    for number, name in enumerate(NAMES):
        network, guess = networks[name], int(guesses[number, index])
        model = make_untrained(network, MODELS)
        drawn = []
        pair = maps[2 * number : 2 * number + 2]
        for axes, shown in zip(pair, (network, replace(network, model=model)), strict=True):
            root = np.asarray(axes.images[0].get_array())
            drawn.append(np.sign(root) * root**2)
            expected = saliency.occlusion(shown, image, guess)
            assert drawn[-1] == pytest.approx(expected, abs=1e-4)
        p = surveys[name].probabilities[index, guess]
        seen = image.numpy() > 0
        r = spearmanr(drawn[0][seen], drawn[1][seen]).statistic
        titles = [axes.get_title() for axes in maps[2 * number : 2 * number + 2]]
        assert titles == [f"{CLASSES[guess]} {p:.0%}", f"correlation {r:.2f}"]
        titles = [axes.get_title().splitlines()[0] for axes in heads[1 + 2 * number :][:2]]
        assert titles == [name.upper(), f"{name.upper()}, untrained"]
        assert f"% for the {name.upper()} (" in " ".join(figure.get_supxlabel().split())


def test_maps_have_a_common_scale_in_log_odds_and_black_images_no_outline(networks, monkeypatch):
    maps = iter((np.zeros((28, 28)), np.full((28, 28), -4.0)))
    monkeypatch.setattr(saliency, "occlusion", lambda *_: next(maps))
    column = Figure().subplots(2, 1)
    saliency.draw_maps(column, networks["cnn"], torch.zeros(2, 28, 28).byte())
    assert [axes.images[0].get_clim() for axes in column] == [(-2, 2), (-2, 2)]
    assert (column[1].images[0].get_array() == -2).all()
    (bar,) = column[1].child_axes
    assert [text.get_text() for text in bar.get_xticklabels()] == ["−4", "0", "4"]
    assert not column[0].collections
