"""Weights as files: what is saved is loaded, and every mistake is explained."""

import json
import os
import shutil
from dataclasses import replace

from fashion import checkpoint
from fashion.evaluation import energy
from fashion.script import UserError

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_loaded_network_predicts_like_the_trained_one(name, networks, finished, tiny):
    network, run = networks[name], finished[name][0]
    logits = network.logits(tiny.test_images) * network.temperature
    assert torch.allclose(logits, run.logits["test"], atol=1e-4)
    assert (network.name, network.seed, network.dataset) == (name, 0, tiny.title)
    assert (network.mean, network.std) == (tiny.mean, tiny.std)
    assert not network.model.training
    probabilities = network.probabilities(tiny.test_images)
    assert torch.allclose(probabilities, network.logits(tiny.test_images).softmax(1))
    excess = network.excess_energy(tiny.images[tiny.validation])
    assert (excess > 0).float().mean() == pytest.approx(0.05, abs=0.01)


def test_half_precision_halves_the_file_and_keeps_the_predictions(finished, tiny, path):
    run, size = finished["ffn"][0], path.stat().st_size
    checkpoint.export(path, run, tiny, torch.float16)
    assert path.stat().st_size < 0.55 * size
    network = checkpoint.load(path, MODELS)
    assert torch.allclose(
        network.logits(tiny.test_images) * network.temperature, run.logits["test"], atol=0.05
    )


def test_shipped_networks_load_and_are_accurate(sample):
    for name in MODELS:
        network = checkpoint.load(checkpoint.PRETRAINED / f"{name}.safetensors", MODELS)
        assert network.dataset == "Fashion-MNIST"
        correct = network.logits(sample.test_images).argmax(1) == sample.test_labels
        assert correct.float().mean() > {"ffn": 0.90, "cnn": 0.925}.get(name, 0.8)


def rewrite(path, **changes):
    """Change the metadata of a file."""
    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    changed = {key: json.dumps(value) for key, value in changes.items()}
    save_file(weights, path, {k: v for k, v in (metadata | changed).items() if v != "null"})


@pytest.fixture
def path(trained, tmp_path):
    """A file that a test may change."""
    return shutil.copyfile(trained / "ffn.safetensors", tmp_path / "ffn.safetensors")


CHANGES = [
    ({"recipe": {"model": {"widths": [100, 50]}}}, "does not fit the network in ffn.*edited since"),
    ({"recipe": {"model": {"depth": 3}}}, "does not fit the network in ffn"),  # no such argument
    ({"name": "rnn"}, "holds a network that models.py does not list"),
    ({"class": "FFN"}, "was written by an earlier version of this project"),
    ({"temperature": None}, "does not fit"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_metadata_that_does_not_fit_is_explained(path, change, message):
    rewrite(path, **change)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path, MODELS)


def test_damaged_file_is_an_error(path):
    for content in (b"", b"no weights", b"\xff" * 100, path.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path, MODELS)


def test_folder_without_networks_is_explained(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="neither a file nor a folder with one of ffn.safe"):
            checkpoint.load_networks(path, MODELS)


@pytest.fixture
def outputs(tmp_path, monkeypatch, trained):
    """An output folder with networks that were trained on the sample."""
    monkeypatch.setattr(checkpoint, "OUTPUTS", tmp_path)
    for file in trained.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_network_in_the_output_folder_is_used_unless_the_shipped_one_is_better(
    outputs, capsys, monkeypatch
):
    rewrite(outputs / "cnn.safetensors", dataset="Fashion-MNIST")
    networks = checkpoint.load_networks(None, MODELS)
    assert networks["cnn"].path == outputs / "cnn.safetensors"
    reason = f"{outputs}/ffn.safetensors was trained on Fashion-MNIST sample, 10,000 images"
    assert f"{reason}; using the shipped network instead" in capsys.readouterr().out
    (outputs / "cnn.safetensors").write_bytes(b"")
    damaged = checkpoint.load_networks(None, MODELS)
    assert "is damaged" in capsys.readouterr().out
    for network in (networks["ffn"], *damaged.values()):
        assert network.path == checkpoint.PRETRAINED / f"{network.name}.safetensors"
    monkeypatch.setattr(checkpoint, "PRETRAINED", outputs / "empty")
    ffn = {"ffn": MODELS["ffn"]}
    assert checkpoint.load_networks(None, ffn)["ffn"].path == outputs / "ffn.safetensors"


def test_temperature_and_limit_come_from_the_validation_images(finished, tiny, tmp_path):
    run = finished["ffn"][0]
    other = replace(tiny, test_labels=tiny.test_labels.flip(0))
    values = []
    for dataset in (tiny, other):
        checkpoint.export(tmp_path / "ffn.safetensors", run, dataset)
        network = checkpoint.load(tmp_path / "ffn.safetensors", MODELS)
        values.append((network.temperature, network.energy_limit))
    assert values[0] == values[1]
    expected = energy(run.logits["validation"]).quantile(0.95)
    assert values[0][1] == pytest.approx(expected.item())


def test_folder_whose_name_is_no_text_is_no_obstacle(trained, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(trained, folder)
    assert checkpoint.load(folder / "ffn.safetensors", MODELS).name == "ffn"
