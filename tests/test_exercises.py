"""Every exercise of docs/exercises.md works: its edit is made on a copy, and the scripts run."""

import importlib
import re
import shutil
import sys
from pathlib import Path

from fashion import script

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "exercises.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def make_edits(section: str, folder: Path) -> None:
    """Make the edits of an exercise in a copy of the project. Each must fit at one place."""
    for code in blocks(section, "python"):
        (folder / re.search(r"Create `(.*?)`", section)[1]).write_text(code)
    for block in blocks(section, "diff"):
        for name, lines in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", block, re.M | re.S):
            old, new = (
                "".join(f"{line[1:]}\n" for line in lines.splitlines() if line[0] == sign)
                for sign in "-+"
            )
            content = (folder / name).read_text()
            assert content.count(old) == 1, f"{name} does not hold this once:\n{old}"
            (folder / name).write_text(content.replace(old, new))


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the project with a smaller sample, from which this test imports modules."""
    for name in ("fashion", "sample", "pretrained"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for file in (tmp_path / "sample").glob("*.png"):
        with Image.open(file) as picture:
            picture.crop((0, 0, 5 * 28, picture.height)).save(file)  # the first five columns
    for file in ROOT.glob("*.py"):
        shutil.copyfile(file, tmp_path / file.name)
    look = tmp_path / "fashion" / "style.py"  # smaller pictures are written faster
    look.write_text(look.read_text().replace('"savefig.dpi": 130', '"savefig.dpi": 30'))
    for name in list(sys.modules):
        root = name.split(".")[0]
        if root == "fashion" or (ROOT / f"{root}.py").exists():
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_ten_exercises_without_gaps():
    assert list(SECTIONS) == [str(number) for number in range(1, 11)]
    assert "@" not in TEXT


@pytest.mark.parametrize("number", SECTIONS)
def test_exercise(number, copy, monkeypatch, capsys):
    section = SECTIONS[number]
    make_edits(section, copy)
    for command in blocks(section, "bash")[0].splitlines():
        _, file, *arguments = command.split()
        short = ["--limit", "200", "--epochs", "1"] if file == "fashionmnist.py" else []
        monkeypatch.setattr(sys, "argv", [file, *arguments, *short])
        assert script.run(importlib.import_module(file.removesuffix(".py")).main) == 0
    assert "test accuracy" in capsys.readouterr().out
    figures = ["kernel_grid", "feature_progression"]
    monkeypatch.setattr(
        sys, "argv", ["kernel_vis.py", "--sample", "--checkpoint", "outputs", "--only", *figures]
    )
    assert script.run(importlib.import_module("kernel_vis").main) == 0
