"""The rules of the project's layout: which module may import which, and what the package names."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import MODELS

PROJECT = Path(__file__).parent.parent
PACKAGE = sorted((PROJECT / "fashion").glob("[!_]*.py"))
ROOT = sorted(PROJECT.glob("*.py"))
EXPERIMENTS = sorted((PROJECT / "experiments").glob("[!_]*.py"))
MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts): path
    for path in (*PACKAGE, *ROOT, *EXPERIMENTS)
}
# Options, commands and models, which only the scripts know.
FOREIGN = re.compile(
    rf"--[a-z]|\b({'|'.join(path.stem for path in ROOT)})\.py"
    rf"|(?<![a-z])({'|'.join(MODELS)})(?![a-z])",
    re.IGNORECASE,
)


def find_imports(path):
    """Return the modules of this project that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            # What is imported from a package may be a module.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
            names.add(node.module)
    return names & MODULES.keys()


IMPORTS = {name: find_imports(path) for name, path in MODULES.items()}
NETWORKS = {name for name in IMPORTS["models"] if "." not in name}


def rank(module):
    """Return the level of a module. It may only import modules of lower levels."""
    if module.startswith("fashion."):
        return 0
    if module in NETWORKS:
        return 1
    if module == "models":
        return 2
    if module.startswith("experiments."):
        return 5 if "__main__" in MODULES[module].read_text() else 4  # what experiments share
    return 3


def test_imports_have_no_cycle():
    assert len(IMPORTS) == len(MODULES) and any(IMPORTS.values())
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    # From the experiments to what they share, the scripts, the table of models, the networks and
    # the package. No script imports a script.
    same = rank(module) in (0, 4)  # parts that may import each other
    wrong = {each for each in IMPORTS[module] if rank(each) + (not same) > rank(module)}
    assert wrong == set()


def test_networks_are_found():
    assert {network.__module__ for network in MODELS.values()} == NETWORKS


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_package_names_no_option_command_or_model(path):
    if path.stem == "cli":
        pytest.skip("declares the options of all scripts")
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [match[0] for text in texts for match in FOREIGN.finditer(text)] == []


def test_importing_prints_nothing_and_writes_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(MODULES)}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
