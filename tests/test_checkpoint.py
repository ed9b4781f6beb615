from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from cnn import CNN
from fashion.checkpoint import (
    SUFFIX,
    load_models,
    load_recording,
    load_state,
    load_tensors,
    load_weights,
    save_recording,
    save_tensors,
)
from fashion.data import CLASS_NAMES
from fashion.environment import collect_versions, describe_environment
from fashion.evaluation import energy, fit_temperature, predict_logits
from fashion.files import RunError, UsageError
from fashion.runs import save_weights, score
from fashion.training import Trainer
from ffn import FFN
from models import MODELS

ARGUMENTS = {
    "ffn": {"widths": [64, 48, 32, 16], "dropout": 0.125},
    "cnn": {"channels": [4, 8, 8], "widths": [32, 16], "dropout": 0.125, "padding": [1, 0, 1]},
}


@pytest.fixture(scope="module")
def trainers(tiny_dataset):
    """One trainer of each model after its only epoch."""
    trainers = {}
    for name, arguments in ARGUMENTS.items():
        network = MODELS[name]
        recipe = replace(network.recipe, model=arguments, epochs=1, batch_size=50)
        trainers[name] = Trainer(network, tiny_dataset, recipe, 3, torch.float32)
        trainers[name].train_epoch()
    return trainers


@pytest.fixture(scope="module")
def runs(trainers):
    """Their runs."""
    return {name: score(trainer, name) for name, trainer in trainers.items()}


@pytest.fixture
def folder(runs, tmp_path):
    """A folder with the weights of both models."""
    for name, run in runs.items():
        save_weights(tmp_path / f"{name}.safetensors", run)
    return tmp_path


# Weights


@pytest.mark.parametrize("name", MODELS)
def test_loaded_model_predicts_the_same_logits(folder, trainers, tiny_dataset, name):
    path = folder / f"{name}.safetensors"
    checkpoint = load_weights(path, MODELS[name])
    model, averaged = checkpoint.model, trainers[name].averaged
    assert type(model) is MODELS[name] and not model.training
    weights = averaged.state_dict()
    assert model.state_dict().keys() == load_file(path).keys() == weights.keys()
    assert all(value.equal(weights[key]) for key, value in model.state_dict().items())
    settings = tiny_dataset.test_images, checkpoint.mean, checkpoint.std
    assert predict_logits(model, *settings).equal(predict_logits(averaged, *settings))


@pytest.mark.parametrize("name", MODELS)
def test_weights_file_says_what_the_model_is_and_how_it_was_trained(
    folder, trainers, runs, tiny_dataset, name
):
    checkpoint = load_weights(folder / f"{name}.safetensors", MODELS[name])
    held_out = tiny_dataset.validation_indices
    validation = runs[name].validation_logits, tiny_dataset.labels[held_out]
    assert checkpoint.metadata == {
        "class": MODELS[name].__name__,
        "arguments": ARGUMENTS[name],
        "mean": tiny_dataset.mean,
        "std": tiny_dataset.std,
        "class_names": list(CLASS_NAMES),
        "dataset": "synthetic",
        "seed": 3,
        "recipe": asdict(trainers[name].recipe),
        "versions": collect_versions(),
        "environment": describe_environment(torch.device("cpu")),
        "validation_accuracy": trainers[name].history[-1]["validation_accuracy"],
        "temperature": fit_temperature(*validation),
        "energy_limit": energy(validation[0]).quantile(0.95).item(),
        "test_accuracy": runs[name].test.accuracy,
    }
    for key in ("mean", "std", "temperature", "energy_limit", "dataset", "seed"):
        assert getattr(checkpoint, key) == checkpoint.metadata[key]


def test_tensors_and_metadata_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "file.safetensors"
    transposed = torch.arange(6.0).view(2, 3).T
    metadata = {"text": "a", "numbers": [1, 2.5], "nested": {"none": None}}
    save_tensors(path, {"transposed": transposed}, metadata)
    tensors, read = load_tensors(path)
    assert read == metadata and tensors.keys() == {"transposed"}
    # Tensors do not depend on the file, which may be overwritten in place.
    path.write_bytes(bytes(path.stat().st_size))
    assert tensors["transposed"].equal(transposed)


def test_weights_of_another_class_are_rejected(folder):
    with pytest.raises(UsageError, match=r"cnn\.safetensors holds a model of class CNN, not FFN"):
        load_weights(folder / "cnn.safetensors", FFN)


def test_missing_weights_are_named(tmp_path):
    path = tmp_path / "cnn.safetensors"
    with pytest.raises(UsageError, match=f"^{path} does not exist$"):
        load_weights(path, CNN)


def test_folder_that_cannot_be_read_as_a_file_is_an_error(tmp_path):
    for load in (load_tensors, load_state):
        with pytest.raises(RunError, match=f"cannot read {tmp_path}: "):
            load(tmp_path)


# Several models


def paths(folder):
    return {name: folder / f"{name}.safetensors" for name in MODELS}


def test_all_models_are_loaded(folder, caplog):
    models = load_models(paths(folder), MODELS)
    assert {name: type(each.model) for name, each in models.items()} == MODELS
    assert not caplog.records


def test_missing_model_is_left_out_with_a_warning(folder, caplog):
    (folder / "ffn.safetensors").unlink()
    assert list(load_models(paths(folder), MODELS)) == ["cnn"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{folder / 'ffn.safetensors'} does not exist; ")


def test_missing_models_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"ffn\.safetensors does not exist .*cnn\.safetensors"):
        load_models(paths(tmp_path), MODELS)


def test_files_in_the_old_format_are_reported_as_such(tmp_path):
    for name in MODELS:
        (tmp_path / f"{name}.pt").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"ffn\.pt has a format that is no longer read.*cnn\.pt"):
        load_models(paths(tmp_path), MODELS)


def test_models_trained_on_different_data_are_rejected(folder, runs):
    run = replace(runs["cnn"], metadata=runs["cnn"].metadata | {"dataset": "fashion-mnist"})
    save_weights(folder / "cnn.safetensors", run)
    expected = (
        "the models were trained on different data: "
        f"{folder}/ffn.safetensors on synthetic images, not Fashion-MNIST, "
        f"{folder}/cnn.safetensors on Fashion-MNIST"
    )
    with pytest.raises(UsageError, match=expected):
        load_models(paths(folder), MODELS)


# Recordings


def test_recording_belongs_to_the_model_with_its_last_kernels(tmp_path):
    path = tmp_path / "recording.safetensors"
    model, other = CNN(), CNN()
    last = model.blocks[0].conv.weight.detach()
    save_recording(path, {0: torch.zeros_like(last), 7: last}, steps_per_epoch=7)
    recording = load_recording(path, model)
    assert (recording.steps, recording.steps_per_epoch) == ([0, 7], 7)
    assert recording.kernels.equal(torch.stack([torch.zeros_like(last), last]))
    assert load_recording(path, other) is None
    assert load_recording(tmp_path / "missing.safetensors", model) is None


@pytest.mark.parametrize("missing", ["temperature", "padding"])
def test_weights_of_an_earlier_version_are_named(tmp_path, trainers, missing):
    path = tmp_path / f"cnn{SUFFIX}"
    save_weights(path, score(trainers["cnn"], "cnn"))
    tensors, metadata = load_tensors(path)
    metadata.pop(missing, None)
    metadata["arguments"].pop(missing, None)
    save_tensors(path, tensors, metadata)
    with pytest.raises(UsageError, match="earlier version") as caught:
        load_weights(path, CNN)
    assert str(path) in str(caught.value)
