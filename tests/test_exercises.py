"""Every exercise of docs/exercises.md works: its edit is made on a copy, and the scripts run."""

import importlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from fashion import script

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "exercises.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
# Edits of different lines share a copy and its trainings.
TOGETHER = [("1", "3", "4", "5", "6", "7", "8", "9", "10"), ("2",)]


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that a file holds once."""
    content = file.read_text()
    assert content.count(old) == 1, f"{file.name} does not hold this once:\n{old}"
    file.write_text(content.replace(old, new))


def make_edits(section: str, folder: Path) -> None:
    """Make the edits of an exercise in a copy of the project."""
    for code in blocks(section, "python"):
        (folder / re.search(r"Create `(.*?)`", section)[1]).write_text(code)
    for block in blocks(section, "diff"):
        for name, lines in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", block, re.M | re.S):
            old, new = (
                "".join(f"{line[1:]}\n" for line in lines.splitlines() if line[0] in (sign, " "))
                for sign in "-+"
            )
            edit(folder / name, old, new)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the project with a smaller sample, as the working directory."""
    for name in ("fashion", "sample", "pretrained"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for file in (tmp_path / "sample").glob("*.png"):
        with Image.open(file) as picture:
            picture.crop((0, 0, 5 * 28, picture.height)).save(file)  # the first five columns
    for file in ROOT.glob("*.py"):
        shutil.copyfile(file, tmp_path / file.name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is as old as a file edited at once
    return tmp_path


@pytest.fixture
def load(copy, forget):
    """Import a module of the copy, and all that it imports, as a new process would."""

    def start(name: str):
        forget()
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return start


def test_there_are_ten_exercises_without_gaps():
    assert list(SECTIONS) == [str(number) for number in range(1, 11)]
    assert sorted(SECTIONS) == sorted(number for numbers in TOGETHER for number in numbers)


@pytest.mark.parametrize("numbers", TOGETHER, ids="-".join)
def test_exercises(numbers, copy, load, monkeypatch, capsys):
    commands = ["python kernel_vis.py --sample --checkpoint outputs --only feature_progression"]
    for number in numbers:
        make_edits(SECTIONS[number], copy)
        commands = [*blocks(SECTIONS[number], "bash")[0].splitlines(), *commands]
    for module in (load("fashionmnist").report, importlib.import_module("kernel_vis")):
        monkeypatch.setattr(module, "save_figure", lambda _, path, *__: path)  # which is slow
    trainings = [command for command in commands if "fashionmnist.py" in command]
    widest = f"{min(trainings, key=len)} --limit 200 --epochs 1"  # trains all that others train
    for command in dict.fromkeys([widest, *commands]):
        _, file, *arguments = command.split()
        monkeypatch.setattr(sys, "argv", [file, *arguments])
        if command in trainings:
            importlib.import_module("fashion.options").fashionmnist()  # knows these options
        else:
            assert script.run(importlib.import_module(file.removesuffix(".py")).main) == 0, command
    assert "test accuracy" in capsys.readouterr().out


def test_edits_repeat_the_trainings_that_they_affect(copy, load, tiny):
    def paths() -> dict[str, Path]:
        module, models = load("fashionmnist"), load("models").MODELS
        recipes = {name: replace(model.recipe, epochs=0) for name, model in models.items()}
        return {name: module.train(name, recipes[name], 0, tiny, copy).path for name in recipes}

    edits = {
        "cnn.py": ("nn.ReLU()", "nn.GELU()", {"cnn"}),
        "ffn.py": ("layers", "parts", {"ffn"}),
        "fashion/data.py": ("uint8", "int8", {"ffn", "cnn"}),
        "fashion/dropout.py": ("256", "128", {"ffn", "cnn"}),
        "fashion/optim.py": ("momentum", "speed", {"ffn", "cnn"}),
        "fashionmnist.py": ("loss.backward()", "(2 * loss).backward()", {"ffn", "cnn"}),
        "fashion/plots.py": ("true", "real", set()),
    }
    before = paths()
    for file, (old, new, repeated) in edits.items():
        content = (copy / file).read_text()
        assert old in content
        (copy / file).write_text(content.replace(old, new))
        after = paths()
        assert {name for name in before if before[name] != after[name]} == repeated, file
        before = after
