import io
import os
import pickle
import random
import resource
import zipfile
from dataclasses import replace

import pytest
import torch

from files import UserMistake
from training import (
    RECIPES,
    Trainer,
    checkpoint_content,
    load_checkpoint,
    load_recording,
    read_tensors,
    write_tensors,
)

MODEL = {"channels": (4, 8, 8), "widths": (16, 12), "dropout": 0.1}
GIGABYTES = 10**9


@pytest.fixture(scope="module")
def trainer(tiny_dataset):
    recipe = replace(RECIPES["cnn"], model=MODEL, epochs=2, batch_size=100)
    trainer = Trainer("cnn", tiny_dataset, recipe, 0, torch.float32)
    trainer.train_epoch()
    return trainer


@pytest.fixture
def content(trainer):
    """What a checkpoint holds, to be changed."""
    return checkpoint_content(trainer)


def memory_used():
    """Kilobytes that this process ever held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mutate(content, generator):
    """Change a file at random: bytes, a piece cut out, doubled, emptied, or the end lost."""
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


def test_mutated_checkpoint_is_used_or_refused_in_words(trainer, content, tmp_path, long, trial):
    write_tensors(tmp_path / "cnn.pt", content)
    whole = (tmp_path / "cnn.pt").read_bytes()
    generator, memory, refused = random.Random(0), memory_used(), 0
    for _ in range(1000 if long else 100):
        with trial("mutated checkpoints"):
            (tmp_path / "cnn.pt").write_bytes(mutate(whole, generator))
            try:
                checkpoint = load_checkpoint(tmp_path / "cnn.pt", "cnn")
            except UserMistake as mistake:
                refused += 1
                assert "cnn.pt" in str(mistake)
            else:
                assert checkpoint.model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert refused
    assert memory_used() - memory < 300_000


def test_mutated_resume_file_is_used_or_refused_in_words(trainer, tmp_path, long, trial):
    trainer.save(tmp_path / "resume.pt")
    whole = (tmp_path / "resume.pt").read_bytes()
    generator = random.Random(1)
    for _ in range(1000 if long else 50):
        with trial("mutated files to resume from"):
            (tmp_path / "resume.pt").write_bytes(mutate(whole, generator))
            fresh = Trainer("cnn", trainer.dataset, trainer.recipe, 0, torch.float32)
            try:
                fresh.resume(tmp_path / "resume.pt")
            except UserMistake as mistake:
                assert "resume.pt" in str(mistake)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["plain pickle", "zip of torch"])
def test_no_code_in_a_file_is_run(tmp_path, content, trial, form):
    command = Command(tmp_path / "was_run")
    if form == "plain pickle":
        (tmp_path / "cnn.pt").write_bytes(pickle.dumps(command))
    else:
        torch.save({**content, "class_names": command}, tmp_path / "cnn.pt")
    for read in (
        lambda path: load_checkpoint(path, "cnn"),
        read_tensors,
    ):
        with trial("hostile checkpoints"), pytest.raises(UserMistake, match=r"cnn\.pt"):
            read(tmp_path / "cnn.pt")
    assert not (tmp_path / "was_run").exists()


def poison(content, key, value):
    weights = dict(content["weights"])
    name = next(iter(weights))
    if key == "weight":
        weights[name] = value(weights[name])
        return {**content, "weights": weights}
    return {**content, key: value}


HOSTILE = {
    "NaN in the weights": ("weight", lambda w: w.clone().fill_(float("nan"))),
    "infinity in the weights": ("weight", lambda w: w.clone().fill_(float("inf"))),
    "weights of another shape": ("weight", lambda w: w[:1]),
    "weights of another type": ("weight", lambda w: w.double()),
    "whole numbers as weights": ("weight", lambda w: w.int()),
    "sparse weights": ("weight", lambda w: w.to_sparse()),
    "a text as weights": ("weight", lambda w: "weights"),
    "huge weights from one number": (
        "weight",
        lambda w: torch.zeros(1).expand(50_000, 50_000),
    ),
    "huge layers": ("arguments", {**MODEL, "channels": [10**6, 10**6, 10**6]}),
    "absurd layers": ("arguments", {**MODEL, "widths": [10**18, 10**18]}),
    "no layers": ("arguments", {**MODEL, "channels": []}),
    "arguments of another kind": ("arguments", {"layers": 3}),
    "arguments that are none": ("arguments", 7),
    "another model's name": ("model", "ffn"),
    "no model's name": ("model", "transformer"),
    "a list as name": ("model", ["cnn"]),
    "standard deviation 0": ("std", 0.0),
    "NaN as mean": ("mean", float("nan")),
    "a text as mean": ("mean", "dark"),
    "nine classes": ("class_names", ["a"] * 9),
    "an unknown dataset": ("dataset", "imagenet"),
    "a list as dataset": ("dataset", ["fashion-mnist"]),
    "a text as seed": ("seed", "seven"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_content_that_is_amiss_is_refused(tmp_path, content, trial, kind):
    write_tensors(tmp_path / "cnn.pt", poison(content, *HOSTILE[kind]))
    memory = memory_used()
    with trial("hostile checkpoints"), pytest.raises(UserMistake, match=r"cnn\.pt"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")
    assert memory_used() - memory < 200_000


@pytest.mark.parametrize("missing", ["model", "arguments", "weights", "mean", "seed", "dataset"])
def test_missing_part_is_refused(tmp_path, content, trial, missing):
    del content[missing]
    write_tensors(tmp_path / "cnn.pt", content)
    with trial("hostile checkpoints"), pytest.raises(UserMistake, match=r"cnn\.pt"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")


def test_file_of_five_gigabytes_is_not_read(tmp_path, trial):
    with (tmp_path / "cnn.pt").open("wb") as file:
        file.truncate(5 * GIGABYTES)  # a hole, which takes no place on the disk
    memory = memory_used()
    with trial("hostile checkpoints"), pytest.raises(UserMistake, match="5,000,000,000 bytes"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")
    assert memory_used() - memory < 100_000


def test_packed_file_that_claims_to_be_huge_is_not_unpacked(tmp_path, content, trial):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(tmp_path / "cnn.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
        packed.writestr("archive/data/999", bytes(GIGABYTES // 5))
    memory = memory_used()
    with trial("hostile checkpoints"), pytest.raises(UserMistake, match=r"cnn\.pt"):
        load_checkpoint(tmp_path / "cnn.pt", "cnn")
    assert memory_used() - memory < 100_000


@pytest.mark.parametrize(
    "content",
    [
        {"steps": [0, 1], "kernels": torch.zeros(1, 4, 1, 3, 3), "steps_per_epoch": 1},
        {"steps": [0], "kernels": torch.zeros(0), "steps_per_epoch": 1},
        {"steps": 5, "kernels": torch.zeros(1, 4, 1, 3, 3), "steps_per_epoch": 1},
        {"steps": [0], "kernels": torch.zeros(1, 4, 1, 3, 3), "steps_per_epoch": "one"},
        {"steps": ["a"], "kernels": torch.zeros(1, 4, 1, 3, 3), "steps_per_epoch": 1},
    ],
)
def test_recording_that_is_amiss_is_refused(trained_folder, tmp_path, trial, content):
    checkpoint = load_checkpoint(trained_folder / "cnn.pt", "cnn")
    write_tensors(tmp_path / "recording.pt", content)
    with trial("hostile checkpoints"), pytest.raises(UserMistake, match=r"recording\.pt"):
        load_recording(tmp_path / "recording.pt", checkpoint)
