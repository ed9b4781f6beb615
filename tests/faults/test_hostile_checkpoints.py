"""Damaged and hostile weights, recordings, resume files and runs: used as they are, or rejected.

A rejected file is named in a UsageError, never costs much memory, and never runs code.
"""

import json
import os
import pickle
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnn import CNN
from fashion import synthetic
from fashion.checkpoint import (
    load_recording,
    load_state,
    load_tensors,
    load_weights,
    save_state,
    save_tensors,
)
from fashion.data import SYNTHETIC, load_dataset
from fashion.files import UsageError
from fashion.runs import find_run, save_run, score
from fashion.training import Trainer

MODEL = {"channels": [4, 6, 8], "widths": [16, 12], "dropout": 0.1, "padding": [1, 0, 1]}
WEIGHT = "blocks.0.conv.weight"


def make_trainer(dataset):
    recipe = replace(CNN.recipe, model=MODEL, epochs=1, batch_size=100)
    return Trainer(CNN, dataset, recipe, 0, torch.float32)


@pytest.fixture(scope="module")
def trainer():
    """A finished training of a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TRAIN_COUNT", 240)
        patch.setattr(synthetic, "TEST_COUNT", 60)
        trainer = make_trainer(load_dataset(SYNTHETIC, Path()))
    trainer.train_epoch()
    return trainer


@pytest.fixture
def content(trainer):
    """The weights and the metadata of a checkpoint, to be changed."""
    return dict(trainer.averaged.state_dict()), dict(score(trainer, "cnn").metadata)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cnn.safetensors"


@pytest.fixture
def reject(trial, memory_limit):
    """reject(load, path): check that loading a file raises a UsageError that names it."""

    def check(load, path, *arguments):
        name = path.name.replace(".", r"\.")
        raises = pytest.raises(UsageError, match=name)
        with trial("hostile checkpoints"), memory_limit(50), raises:
            load(path, *arguments)

    return check


def mutate(content, generator):
    """Overwrite bytes at random, cut out, repeat or zero a piece, or cut off the end."""
    content = bytearray(content)
    start, length = generator.randrange(len(content)), generator.randrange(1, 2000)
    kind = generator.randrange(5)
    if kind == 0:
        for _ in range(generator.randrange(1, 50)):
            content[generator.randrange(len(content))] = generator.randrange(256)
    elif kind == 1:
        del content[start : start + length]
    elif kind == 2:
        content[start:start] = content[start : start + length]
    elif kind == 3:
        content[start : start + length] = bytes(len(content[start : start + length]))
    else:
        del content[start:]
    return bytes(content)


DEEP_LIST, DEEP_OBJECT, LONG_NUMBER = "[" * 100_000, '{"a":' * 100_000, f"1{'0' * 5000}"
JSON_TEXTS = [
    *("", "text", DEEP_LIST, DEEP_OBJECT, "null", "true", "[]", "{}", '"cnn"', '"\\ud800"'),
    *("0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", f"1{'0' * 400}", LONG_NUMBER),
    *('{"channels": [4, 6, 8]}', "[1, 2, 3]", '["a"]', "[[[]]]", '"fashion-mnist"'),
]
HEADER_VALUES = [
    *("", "F32", "F64", "I64", "F8_E4M3", "F4", "BOOL", "C64", "F99", "\ud800"),
    *(None, True, 0.5, {}),
    *([], [-1], [0], [1], [2**63], [2**40, 2**40], [2**62, 4], [[1]], ["1"], [1e400], [0, 0]),
    *([0, 2**63], [4, 0], [0, 4], [16, 12]),
]


def pack(header, data=b""):
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutate_header(whole, generator):
    """Change entries of the header of a safetensors file, which stays a valid header or not."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    for _ in range(generator.randrange(1, 4)):
        name = generator.choice(["__metadata__", *header])
        entry = header.setdefault(name, {})
        key = generator.choice(list(entry) or [""])
        action = generator.randrange(10)
        if action == 0:
            del header[name]
        elif action == 1:
            entry.pop(key, None)
        elif action == 2:
            header[generator.choice(["", "a", *header])] = header.pop(name)
        elif name == "__metadata__":
            entry[key] = generator.choice(JSON_TEXTS)
        else:
            entry[key] = generator.choice(HEADER_VALUES)
    return pack(header, whole[8 + size :])


@pytest.mark.parametrize("change", [mutate, mutate_header])
def test_mutated_weights_are_used_or_rejected(path, content, long, trial, memory_limit, change):
    save_tensors(path, *content)
    whole, generator, rejected = path.read_bytes(), random.Random(0), 0
    with memory_limit(100):
        for _ in range(2000 if long else 150):
            path.write_bytes(change(whole, generator))
            with trial("mutated checkpoints"):
                try:
                    checkpoint = load_weights(path, CNN)
                except UsageError as error:
                    rejected += 1
                    assert "cnn.safetensors" in str(error)
                else:
                    assert checkpoint.model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert rejected


WRONG_WEIGHTS = {
    "NaN": lambda weight: {WEIGHT: weight * torch.nan},
    "infinity": lambda weight: {WEIGHT: weight / 0},
    "another shape": lambda weight: {WEIGHT: weight[:1]},
    "double precision": lambda weight: {WEIGHT: weight.double()},
    "integers": lambda weight: {WEIGHT: weight.int()},
    "an additional tensor": lambda weight: {WEIGHT: weight, "a": weight.clone()},
    "a missing tensor": lambda weight: {},
}


@pytest.mark.parametrize("kind", WRONG_WEIGHTS)
def test_wrong_weights_are_rejected(path, content, reject, kind):
    weights, metadata = content
    weights |= WRONG_WEIGHTS[kind](weights.pop(WEIGHT))
    save_tensors(path, weights, metadata)
    reject(load_weights, path, CNN)


WRONG_METADATA = {
    # A layer that fits into memory would be noticed by its size, the others would not.
    "large layers": ("arguments", {**MODEL, "widths": [20_000, 20_000]}),
    "huge layers": ("arguments", {**MODEL, "channels": [10**6, 10**6, 10**6]}),
    "absurd layers": ("arguments", {**MODEL, "widths": [10**18, 10**18]}),
    "infinite layers": ("arguments", {**MODEL, "widths": [float("inf"), 12]}),
    "no layers": ("arguments", {**MODEL, "channels": []}),
    "unknown arguments": ("arguments", {"layers": 3}),
    "a number as arguments": ("arguments", 7),
    "NaN as dropout": ("arguments", {**MODEL, "dropout": float("nan")}),
    "another class": ("class", "FFN"),
    "unknown class": ("class", "Transformer"),
    "a list as class": ("class", ["CNN"]),
    "standard deviation 0": ("std", 0.0),
    "negative standard deviation": ("std", -0.3),
    "temperature 0": ("temperature", 0.0),
    "NaN as limit of the energy": ("energy_limit", float("nan")),
    "NaN as mean": ("mean", float("nan")),
    "infinite mean": ("mean", float("inf")),
    "a mean beyond float": ("mean", 10**400),
    "a mean beyond float32": ("mean", 1e300),
    "a text as mean": ("mean", "dark"),
    "nine classes": ("class_names", ["a"] * 9),
    "a number as class names": ("class_names", 10),
    "an unknown dataset": ("dataset", "imagenet"),
    "a list as dataset": ("dataset", ["fashion-mnist"]),
    "a text as seed": ("seed", "seven"),
    "a negative seed": ("seed", -1),
    "infinite seed": ("seed", float("inf")),
    "a seed beyond 64 bits": ("seed", 10**400),
}


@pytest.mark.parametrize("kind", WRONG_METADATA)
def test_wrong_metadata_are_rejected(path, content, reject, kind):
    weights, metadata = content
    key, value = WRONG_METADATA[kind]
    save_tensors(path, weights, metadata | {key: value})
    reject(load_weights, path, CNN)


@pytest.mark.parametrize(
    "key",
    ["class", "arguments", "mean", "std", "temperature", "energy_limit", "class_names", "dataset"],
)
def test_missing_metadata_are_rejected(path, content, reject, key):
    weights, metadata = content
    del metadata[key]
    save_tensors(path, weights, metadata)
    reject(load_weights, path, CNN)


@pytest.mark.parametrize("text", ["", "CNN", DEEP_LIST, LONG_NUMBER])
def test_metadata_that_are_not_json_are_rejected(path, content, reject, text):
    weights, metadata = content
    weights = {key: tensor.contiguous() for key, tensor in weights.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    save_file(weights, path, {**texts, "class": text})
    reject(load_weights, path, CNN)


def tensor_entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BROKEN_FILES = {
    "empty": b"",
    "random bytes": random.Random(0).randbytes(10_000),
    "zeros": bytes(10_000),
    "a pickle": pickle.dumps({"a": 1}),
    "only a header length": struct.pack("<Q", 100),
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a header of 2⁶³ bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 2⁶⁴ − 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is not JSON": pack(b"header"),
    "a list as header": pack([]),
    "a deeply nested header": pack(DEEP_OBJECT.encode()),
    "a number as metadata": pack({"__metadata__": {"class": 1}}),
    "unknown type": pack(tensor_entry("F99"), bytes(4)),
    "negative size": pack(tensor_entry(shape=[-1]), bytes(4)),
    "fractional size": pack(tensor_entry(shape=[1.5]), bytes(4)),
    "more values than data": pack(tensor_entry(shape=[2**28]), bytes(4)),
    "more values than numbers count": pack(tensor_entry(shape=[2**62, 4]), bytes(4)),
    "data beyond the file": pack(tensor_entry(shape=[2**28], offsets=[0, 2**30]), bytes(4)),
    "data before their start": pack(tensor_entry(offsets=[4, 0]), bytes(4)),
    "data that belong to no tensor": pack(tensor_entry(), bytes(8)),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_broken_safetensors_file_is_rejected(path, reject, kind):
    path.write_bytes(BROKEN_FILES[kind])
    reject(load_tensors, path)


WRONG_RECORDINGS = {
    "more steps than kernels": {"steps": [0, 1]},
    "fewer steps than kernels": {"steps": []},
    "a number as steps": {"steps": 5},
    "texts as steps": {"steps": ["a"]},
    "a negative step": {"steps": [-1]},
    "a step beyond 64 bits": {"steps": [10**400]},
    "a text as steps per epoch": {"steps_per_epoch": "one"},
    "no steps per epoch": {"steps_per_epoch": 0},
    "unknown metadata": {"epochs": 1},
}


@pytest.mark.parametrize("kind", WRONG_RECORDINGS)
def test_wrong_recording_is_rejected(tmp_path, trainer, reject, kind):
    path, metadata = tmp_path / "recording.safetensors", {"steps": [0], "steps_per_epoch": 1}
    kernels = trainer.averaged.state_dict()[WEIGHT].unsqueeze(0)
    save_tensors(path, {"kernels": kernels}, metadata)
    assert load_recording(path, trainer.averaged)
    save_tensors(path, {"kernels": kernels}, metadata | WRONG_RECORDINGS[kind])
    reject(load_recording, path, trainer.averaged)


@pytest.mark.parametrize("name", ["kernels", "a"])
def test_recording_with_wrong_kernels_is_rejected(tmp_path, trainer, reject, name):
    path = tmp_path / "recording.safetensors"
    save_tensors(path, {name: torch.zeros(())}, {"steps": [0], "steps_per_epoch": 1})
    reject(load_recording, path, trainer.averaged)


# The file to resume from, which torch.save writes


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "save", [lambda command, path: path.write_bytes(pickle.dumps(command, 2)), torch.save]
)
def test_command_in_a_resume_file_is_not_run(tmp_path, reject, save):
    path, command = tmp_path / "resume.pt", Command(tmp_path / "was_run")
    save(command, path)
    reject(load_state, path)
    assert not command.path.exists()
    pickle.loads(pickle.dumps(command))  # shows that the command works
    assert command.path.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", 7),
        ("model", {}),
        ("model", {WEIGHT: "text"}),
        ("averaged", None),
        ("optimizers", []),
        ("optimizers", [{}, {}]),
        ("schedules", 7),
        ("generator", torch.zeros(3, dtype=torch.uint8)),
        ("default_generator", torch.zeros(3)),
        ("history", 7),
        ("epoch_seconds", None),
        ("frames", 7),
    ],
)
def test_wrong_content_of_a_resume_file_is_rejected(tmp_path, trainer, reject, key, value):
    path = tmp_path / "resume.pt"
    trainer.save(path)
    save_state(path, load_state(path) | {key: value})
    reject(make_trainer(trainer.dataset).resume, path)


def test_mutated_resume_file_is_used_or_rejected(tmp_path, trainer, long, trial):
    path, generator, rejected = tmp_path / "resume.pt", random.Random(1), 0
    trainer.save(path)
    whole = path.read_bytes()
    for _ in range(1000 if long else 50):
        path.write_bytes(mutate(whole, generator))
        resumed = make_trainer(trainer.dataset)
        with trial("mutated resume files"):
            try:
                resumed.resume(path)
            except UsageError as error:
                rejected += 1
                assert "resume.pt" in str(error)
            else:
                assert resumed.history == trainer.history
                torch.testing.assert_close(
                    resumed.model.state_dict(), trainer.model.state_dict(), rtol=0, atol=0
                )
    assert rejected


# Finished runs of a series


@pytest.fixture
def finished(tmp_path, trainer):
    """A run that was saved in tmp_path."""
    run = score(trainer, "cnn")
    save_run(tmp_path, run)
    return run


@pytest.mark.parametrize("text", ["", "figures", "[]", "{}", DEEP_LIST, '{"identity": 1}'])
def test_wrong_figures_of_a_run_are_rejected(tmp_path, trainer, finished, reject, text):
    path = tmp_path / "cnn-seed0.json"
    path.write_text(text)
    reject(lambda path: find_run(tmp_path, "cnn", trainer), path)


@pytest.mark.parametrize("key", ["history", "epoch_seconds", "flip_averaged_accuracy"])
def test_missing_figures_of_a_run_are_rejected(tmp_path, trainer, finished, reject, key):
    path = tmp_path / "cnn-seed0.json"
    figures = json.loads(path.read_text())
    del figures[key]
    path.write_text(json.dumps(figures))
    reject(lambda path: find_run(tmp_path, "cnn", trainer), path)


@pytest.mark.parametrize("kind", ["large layers", "unknown arguments", "a number as arguments"])
def test_wrong_architecture_of_a_run_is_rejected(tmp_path, trainer, finished, reject, kind):
    key, value = WRONG_METADATA[kind]
    path = tmp_path / "cnn-seed0.safetensors"
    save_tensors(path, finished.weights, finished.metadata | {key: value})
    reject(lambda path: find_run(tmp_path, "cnn", trainer), tmp_path / "cnn-seed0.")


@pytest.mark.parametrize(
    "logits", [torch.zeros(60, 2), torch.zeros(10, 10), torch.zeros(()), torch.ones(60, 10).int()]
)
def test_wrong_logits_of_a_run_are_rejected(tmp_path, trainer, finished, reject, logits):
    tensors = {"validation_logits": finished.validation_logits, "test_logits": logits}
    save_tensors(tmp_path / "cnn-seed0.logits.safetensors", tensors, {})
    reject(lambda path: find_run(tmp_path, "cnn", trainer), tmp_path / "cnn-seed0.")


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".logits.safetensors"])
def test_mutated_run_is_used_or_rejected(tmp_path, trainer, finished, long, trial, suffix):
    path, generator, rejected = tmp_path / f"cnn-seed0{suffix}", random.Random(2), 0
    whole = path.read_bytes()
    for _ in range(500 if long else 30):
        path.write_bytes(mutate(whole, generator))
        with trial("mutated runs"):
            try:
                run = find_run(tmp_path, "cnn", trainer)
            except UsageError as error:
                rejected += 1
                assert "cnn-seed0" in str(error)
            else:
                assert run.test_logits.shape == (len(trainer.dataset.test_labels), 10)
    assert rejected
