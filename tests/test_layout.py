"""The structure of the project: directions of imports, sizes, and imports without effects."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = [*ROOT.glob("*.py"), *ROOT.glob("fashion/*.py"), *ROOT.glob("experiments/*.py")]
SCRIPTS = {"fashionmnist", "kernel_vis", "predict"}
NETWORKS = {"ffn", "cnn", "models"}
DRAWING = {"style", "plots", "kernels", "activations", "units", "saliency", "embedding", "report"}


def name_of(path: Path) -> str:
    """Return the name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & {name_of(each) for each in CODE}


def test_no_import_cycles():
    graph = {name_of(path): imports(path) - {name_of(path), "fashion"} for path in CODE}
    TopologicalSorter(graph).prepare()  # raises an error for a cycle


def test_fashion_imports_no_network_and_no_script():
    for path in ROOT.glob("fashion/*.py"):
        assert not imports(path) & (NETWORKS | SCRIPTS), path


def test_networks_import_no_more_than_layers_and_their_recipe():
    for name in ("ffn", "cnn"):
        assert imports(ROOT / f"{name}.py") <= {"fashion.recipe", "fashion.dropout"}


def test_the_core_imports_no_plotting():
    core = ("recipe", "data", "download", "optim", "device", "evaluation", "runs", "checkpoint")
    for name in core:
        used = {each.removeprefix("fashion.") for each in imports(ROOT / "fashion" / f"{name}.py")}
        assert not used & DRAWING, name


def test_no_file_is_longer_than_four_hundred_lines():
    for path in CODE:
        assert len(path.read_text().splitlines()) <= 400, path


def test_importing_prints_and_writes_nothing(tmp_path):
    names = ", ".join(sorted(map(name_of, CODE)))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {names}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
