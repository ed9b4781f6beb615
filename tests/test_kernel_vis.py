import sys
from dataclasses import replace
from functools import partial

from fashion import activations, checkpoint, embedding, options, saliency, units
from fashion.data import CLASSES
from fashion.recipe import Model, Recipe
from fashion.runs import Run

import pytest
from PIL import Image
from torch import nn

import kernel_vis
from models import MODELS

RECIPE = Recipe(epochs=1, batch_size=50, learning_rate=0.1)


class Strided(nn.Sequential):
    """A network with a convolution unlike those of the CNN, and no linear layer."""

    def __init__(self):
        layers = (nn.Conv2d(1, 10, 5, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(*layers)


@pytest.fixture
def start(call, trained, tiny, tmp_path, monkeypatch):
    """Run the script on the tiny dataset."""
    monkeypatch.setattr(kernel_vis, "load", lambda *_, **__: tiny)
    monkeypatch.setattr(saliency, "occlusion", lambda _, image, label: image.numpy() / 255 - label)
    for room, setting in ((activations, "KERNELS"), (units, "UNITS"), (units, "IMAGES")):
        monkeypatch.setattr(room, setting, 2)
    monkeypatch.setattr(embedding, "POINTS", 50)
    return partial(call, kernel_vis, "--out", tmp_path, "--checkpoint", trained)


def pictures(folder):
    return {path.stem for path in folder.glob("*.png")}


def test_all_figures_are_written_and_shown_on_the_page(start, tmp_path):
    status, out, err = start()
    assert (status, err) == (0, "")
    assert pictures(tmp_path) == set(kernel_vis.FIGURES)
    page = (tmp_path / "report.html").read_text()
    for name in set(kernel_vis.FIGURES) - {"ffn_weights"}:
        assert f"{name}.png" in page and f"{name}.png" in out
    with Image.open(tmp_path / "kernel_grid.png") as picture:
        assert picture.info["Source"].startswith("CNN on Fashion-MNIST sample")


def test_other_networks_get_the_figures_of_their_layers(start, tiny, tmp_path, monkeypatch):
    drawn = set()
    monkeypatch.setattr(kernel_vis, "save_figure", lambda _, path, __: drawn.add(path.stem) or path)
    monkeypatch.setitem(MODELS, "third", Model(Strided, RECIPE, RECIPE))
    this = Run("third", 0, RECIPE, Strided(), {})
    this.score(tiny)
    checkpoint.export(tmp_path / "third.safetensors", this, tiny)
    status, out, err = start("--checkpoint", tmp_path / "third.safetensors")
    assert (status, err) == (0, "")
    left_out = {"ffn_weights", "embedding"}
    assert drawn == set(kernel_vis.FIGURES) - left_out
    assert "No network has the layers of these figures: ffn_weights, embedding" in out


def test_the_default_image_is_one_that_the_cnn_recognises_with_doubt(networks, tiny, monkeypatch):
    monkeypatch.setattr(kernel_vis, "load", lambda *_, **__: tiny)
    monkeypatch.setattr(sys, "argv", ["kernel_vis.py"])
    image, caption = kernel_vis.Inputs(options.kernel_vis(), networks).image
    probabilities = networks["cnn"].probabilities(tiny.test_images)
    right = (probabilities.argmax(1) == tiny.test_labels).nonzero()[:, 0].tolist()
    index = min(right, key=lambda index: abs(float(probabilities[index].max()) - 0.6))
    assert image.equal(tiny.test_images[index])
    label = CLASSES[tiny.test_labels[index]]
    assert caption == f"{label}, test image {index} of Fashion-MNIST sample, 10,000 images"


def test_a_test_image_and_a_layer_can_be_chosen(networks, sample, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernel_vis.py", "--sample", "--image", "17", "--layer", "2"])
    inputs = kernel_vis.Inputs(options.kernel_vis(), networks)
    assert inputs.image[0].equal(sample.test_images[17]) and "image 17 of" in inputs.image[1]
    inputs.dataset = tiny = replace(sample, test_images=sample.test_images[:200])
    inputs.dataset = replace(tiny, test_labels=sample.test_labels[:200])
    for name in ("kernel_grid", "image_transform_grid", "top_activations"):
        figure = kernel_vis.FIGURES[name](inputs, inputs.suited(name))
        assert "convolution 2" in figure.get_suptitle()


def test_a_picture_can_take_the_place_of_the_test_image(start, tiny, tmp_path):
    path = tmp_path / "own.bmp"
    Image.fromarray(tiny.test_images[4].numpy()).save(path)
    status, _, err = start("--image", path, "--only", "image_transform_grid")
    assert (status, err, pictures(tmp_path)) == (0, "", {"image_transform_grid"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "300"], "--image 300: test images are numbered from 0 to 299"),
        (["--image", "-1"], "--image -1: test images"),
        (["--image", "none.png"], "none.png"),
        (["--layer", "4"], "--layer 4: this network has 3 convolutions"),
    ],
)
def test_mistakes_are_reported_before_any_figure_is_drawn(start, options, message, tmp_path):
    status, _, err = start("--only", "ffn_weights", "image_transform_grid", *options)
    assert status == 2 and message in err and not pictures(tmp_path)
    assert len(err.strip().splitlines()) == 1
