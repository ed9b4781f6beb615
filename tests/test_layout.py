"""The structure of the project: directions of imports, sizes, and imports without effects."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = [*ROOT.glob("*.py"), *ROOT.glob("fashion/*.py"), *ROOT.glob("experiments/*.py")]
SCRIPTS = {"fashionmnist", "kernel_vis", "predict"}
NETWORKS = {"ffn", "cnn", "models"}
CORE = {"recipe", "data", "optim", "device", "evaluation", "runs", "checkpoint", "comparison"}


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


def test_imports_go_in_one_direction():
    for path in ROOT.glob("fashion/*.py"):
        assert not imports(path) & (NETWORKS | SCRIPTS), path
        assert path.stem not in CORE or "matplotlib" not in path.read_text(), path
        assert path.stem not in CORE or "fashion.style" not in imports(path), path
    for name in ("ffn", "cnn"):
        assert imports(ROOT / f"{name}.py") <= {"fashion.recipe", "fashion.dropout"}


def test_no_file_is_longer_than_four_hundred_lines():
    for path in CODE:
        assert len(path.read_text().splitlines()) <= 400, path


def test_importing_prints_and_writes_nothing(forget, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    forget()
    for path in CODE:
        importlib.import_module(name_of(path))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
