import json

from fashion.data import CLASSES
from fashion.prediction import Report

import pytest
import torch
from PIL import Image
from scipy.stats import norm

from experiments import photos


def photo(kind, predicted, probability, excess):
    """Return a photo for which a network "cnn" predicts a class."""
    probabilities = torch.full((10,), (1 - probability) / 9)
    probabilities[CLASSES.index(predicted)] = probability
    image = Image.new("RGB", (1, 1))
    return kind, Report(
        "", image, torch.zeros(28, 28), None, {"cnn": probabilities}, {"cnn": excess}
    )


PHOTOS = [
    photo("longsleeve", "Shirt", 0.9, -2.0),
    photo("longsleeve", "Coat", 0.5, 1.0),
    photo("shoes", "Sandal", 0.7, 0.5),
    photo("shirt", "T-shirt/top", 0.8, -1.0),
    ("shirt", None),  # no garment found
]


def test_each_kind_counts_its_classes_and_photos_without_a_garment_as_errors():
    assert [photos.is_correct(each, "cnn") for each in PHOTOS] == [True, False, True, False, False]
    counts = photos.count([True, False, True, False, False])
    assert photos.text(counts) == "2 of 5 (40 %; 12 to 77 %)"
    assert (counts["correct"], counts["photos"]) == (2, 5)
    z, n, p = norm.ppf(0.975), 5, 2 / 5  # Wilson's interval
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    assert counts["ci95"] == pytest.approx(expected)


def test_reliability_of_photos_with_a_garment():
    measured = photos.measure(PHOTOS, "cnn")
    assert measured["accuracy"] == 0.5
    assert measured["mean confidence"] == pytest.approx((0.9 + 0.5 + 0.7 + 0.8) / 4)
    expected = (0.1 + 0.5 + 0.3 + 0.8) / 4
    assert measured["expected calibration error"] == pytest.approx(expected)
    # Of the pairs of a correct (0.9, 0.7) and an incorrect one (0.5, 0.8), three are in order.
    assert measured["AUROC of the confidence"] == 3 / 4
    assert measured["AUROC of the energy"] == 3 / 4  # -2 and 0.5 against 1 and -1
    for key in ("correct if unlike", "correct if familiar"):
        assert (measured[key]["correct"], measured[key]["photos"]) == (1, 2)
    assert photos.measure(PHOTOS[:1], "cnn")["AUROC of the energy"] is None
    assert photos.measure(PHOTOS[:1], "cnn")["correct if unlike"]["ci95"] == [0, 1]


def test_script_counts_the_photos_of_each_folder(tiny, trained, tmp_path, call):
    trousers = tiny.test_images[tiny.test_labels == 1][:3]
    for number, image in enumerate(trousers):
        path = tmp_path / "photos" / "pants" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    path.with_name("damaged.png").write_bytes(b"")
    arguments = (tmp_path / "photos", "--checkpoints", trained, "--out", tmp_path)
    status, output, _ = call(photos, *arguments)
    assert status == 0
    result = json.loads((tmp_path / "photos" / "photos.json").read_text())
    networks = photos.load_networks(trained, photos.MODELS)
    for name, network in networks.items():
        correct = int((network.probabilities(trousers).argmax(1) == 1).sum())
        counts = result["correct"]["pants"][name]
        assert (counts["correct"], counts["photos"]) == (correct, 4)
        assert result["all"]["accuracy"][name] == correct / 3
        assert f" {correct} of 4 ({25 * correct} %; " in output
    assert call(photos, tmp_path)[0] == 2
