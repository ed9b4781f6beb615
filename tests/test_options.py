"""The options of the scripts."""

import subprocess
import sys
from pathlib import Path

from fashion import options

import pytest

import kernel_vis


def test_parser_reports_mistakes_in_one_line_and_takes_no_abbreviations(capsys):
    parser = options.Parser("test", prog="test.py")
    parser.add_argument("--epochs", type=options.number(int, 1))
    for arguments in (["--epochs", "\x1b"], ["--epo", "3"], ["--epochs", "0"], ["--epochs", "inf"]):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert line.endswith("see python test.py --help")
        assert "\x1b" not in line
    assert parser.parse_args(["--epochs", "3"]).epochs == 3


def test_figures_that_can_be_chosen_are_those_of_the_script():
    assert tuple(kernel_vis.FIGURES) == options.FIGURES


@pytest.mark.parametrize("script", ["fashionmnist", "kernel_vis", "predict"])
def test_help_and_mistakes_are_answered_without_loading_torch(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    root = Path(__file__).parents[1]
    for argument, status in (("--help", 0), ("--no-such-option", 2)):
        done = subprocess.run(
            [sys.executable, root / f"{script}.py", argument],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status
        assert "torch was imported" not in done.stderr
