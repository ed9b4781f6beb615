"""A third network is one class with its recipe and one row in the table of models."""

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text
from torch import Tensor, nn

import fashionmnist
import kernel_vis
import models
from fashion import cli, explain, plots, synthetic
from fashion.data import CLASS_COUNT, CLASS_NAMES, IMAGE_SIZE
from fashion.layers import Network
from fashion.recipe import Recipe


class Tiny(Network):
    """One hidden layer."""

    recipe = Recipe(
        epochs=2,
        batch_size=50,
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.01,
        warmup=0.1,
        label_smoothing=0.0,
        shift=0,
        shifted=0.0,
        flip=False,
        ema_steps=1,
    )

    quick_recipe = replace(recipe, epochs=1)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.arguments = {"width": width}
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(IMAGE_SIZE**2, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, CLASS_COUNT),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of both scripts with three models, their figures by file name, and the output."""
    out = tmp_path_factory.mktemp("three")
    figures = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", Tiny)
        patch.setitem(models.STYLES, "tiny", plots.assign_styles(models.MODELS)["tiny"])
        patch.setattr(synthetic, "TRAIN_COUNT", 600)
        patch.setattr(synthetic, "TEST_COUNT", 200)
        for steps in ("early_exaggeration_iter", "n_iter"):
            patch.setitem(explain.EMBEDDING, steps, 10)
        for module in (plots, kernel_vis):
            patch.setattr(module, "save_figure", lambda fig, path: figures.update({path.name: fig}))
        training = ["--dataset", "synthetic", "--epochs", "2", "--runs", "2", "--out", str(out)]
        assert cli.run(fashionmnist.parse_arguments, fashionmnist.main, training) == 0
        pictures = ["--only", "saliency", "embedding", "--checkpoint", str(out / "cnn.safetensors")]
        pictures += ["--out", str(out)]
        assert cli.run(kernel_vis.parse_arguments, kernel_vis.main, pictures) == 0
    return out, figures


def texts(figure):
    """Return all texts of a figure, legends included."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_it_is_trained_and_written_like_the_others(results):
    out, figures = results
    assert (out / "tiny.safetensors").exists()
    assert {path.name for path in (out / "runs").glob("tiny-seed*.json")} == {
        "tiny-seed0.json",
        "tiny-seed1.json",
    }
    for kind in ("loss", "correct", "incorrect", "confusion"):
        assert any("TINY" in text for text in texts(figures[f"tiny_{kind}.png"]))


def test_it_is_in_every_statistic(results):
    out, _ = results
    metrics = json.loads((out / "metrics.json").read_text())
    comparison = json.loads((out / "comparison.json").read_text())
    assert list(metrics["models"]) == list(comparison["models"]) == ["ffn", "cnn", "tiny"]
    assert metrics["settings"]["models"]["tiny"] == {"width": 16}
    parameters = (784 + 1) * 16 + 2 * 16 + (16 + 1) * 10
    assert comparison["models"]["tiny"]["parameters"] == parameters
    assert comparison["models"]["tiny"]["multiply_accumulates"] == 784 * 16 + 16 * 10
    assert set(comparison["models"]["tiny"]["by_class"]) == set(CLASS_NAMES)
    pairs = [difference["of"] for difference in comparison["differences"]]
    assert pairs == ["cnn - ffn", "tiny - ffn", "tiny - cnn"]
    values = [comparison["models"][name]["test_accuracy"]["values"] for name in ("ffn", "tiny")]
    differences = comparison["differences"][1]["test_accuracy"]["values"]
    assert differences == pytest.approx(np.subtract(*reversed(values)).tolist())


@pytest.mark.parametrize(
    "name", ["comparison", "calibration", "learning_curves", "embedding", "saliency"]
)
def test_it_is_in_every_picture_of_several_models(results, name):
    shown = texts(results[1][f"{name}.png"])
    for model in ("FFN", "CNN", "TINY"):
        assert any(model in text for text in shown), model
