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
from torch import nn

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


def test_energy_limit_is_exceeded_by_a_twentieth_of_the_validation_images(networks, tiny):
    excess = networks["cnn"].excess_energy(tiny.images[tiny.validation])
    assert (excess > 0).float().mean() == pytest.approx(0.05, abs=0.01)


def test_half_precision_halves_the_file_and_keeps_the_predictions(finished, tiny, tmp_path):
    run = finished["ffn"][0]
    sizes = []
    for dtype in (torch.float32, torch.float16):
        checkpoint.export(tmp_path / "ffn.safetensors", run, tiny, dtype)
        sizes.append((tmp_path / "ffn.safetensors").stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]
    network = checkpoint.load(tmp_path / "ffn.safetensors", MODELS)
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


CHANGES = {
    "other widths": (
        {"recipe": {"model": {"widths": [100, 50]}}},
        "does not fit the network in ffn",
    ),
    "unknown argument": ({"recipe": {"model": {"depth": 3}}}, "does not fit the network in ffn"),
    "other network": ({"name": "rnn"}, "holds a network that models.py does not list"),
    "old format": ({"class": "FFN"}, "was written by an earlier version of this project"),
    "missing number": ({"temperature": None}, "does not fit"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_metadata_that_does_not_fit_is_explained(path, change):
    settings, message = CHANGES[change]
    rewrite(path, **settings)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path, MODELS)


def test_edited_network_is_explained_and_not_called_damaged(trained):
    class Edited(nn.Module):
        def __init__(self, **arguments):
            super().__init__()
            self.layer = nn.Linear(784, 10)

    models = MODELS | {"ffn": replace_network(MODELS["ffn"], Edited)}
    with pytest.raises(UserError, match="does not fit the network.*edited since"):
        checkpoint.load(trained / "ffn.safetensors", models)


def replace_network(model, network):
    return model._replace(network=network)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100])
def test_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "ffn.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "ffn.safetensors", MODELS)


def test_truncated_file_is_an_error(path):
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, MODELS)


def test_given_folder_or_file_is_used_as_it_is(trained, capsys):
    assert list(checkpoint.load_networks(trained, MODELS)) == list(MODELS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Networks:", *(f"  {trained / name}.safetensors" for name in MODELS)]
    assert list(checkpoint.load_networks(trained / "cnn.safetensors", MODELS)) == ["cnn"]


@pytest.mark.parametrize("name", ["", "missing"])
def test_folder_without_networks_is_explained(tmp_path, name):
    with pytest.raises(
        UserError, match="is neither a file nor a folder with one of ffn.safetensors"
    ):
        checkpoint.load_networks(tmp_path / name, MODELS)


@pytest.fixture
def outputs(tmp_path, monkeypatch, trained):
    """An output folder with networks that were trained on the sample."""
    monkeypatch.setattr(checkpoint, "OUTPUTS", tmp_path)
    for file in trained.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_network_of_the_sample_never_wins_silently(outputs, capsys):
    rewrite(outputs / "cnn.safetensors", dataset="Fashion-MNIST")
    networks = checkpoint.load_networks(None, MODELS)
    assert networks["ffn"].path == checkpoint.PRETRAINED / "ffn.safetensors"
    assert networks["cnn"].path == outputs / "cnn.safetensors"
    title = "Fashion-MNIST sample, 10,000 images"
    expected = (
        f"{outputs}/ffn.safetensors was trained on {title}; using the shipped network instead"
    )
    assert expected in capsys.readouterr().out


def test_unusable_network_in_the_output_folder_is_passed_over_with_the_reason(outputs, capsys):
    (outputs / "ffn.safetensors").write_bytes(b"")
    networks = checkpoint.load_networks(None, MODELS)
    assert networks["ffn"].path == checkpoint.PRETRAINED / "ffn.safetensors"
    assert "is damaged" in capsys.readouterr().out


def test_network_that_is_not_shipped_is_taken_from_the_output_folder(
    outputs, monkeypatch, tmp_path
):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "empty")
    networks = checkpoint.load_networks(None, MODELS)
    assert networks["ffn"].path == outputs / "ffn.safetensors"


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
