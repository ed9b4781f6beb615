"""What the scripts share: errors become one line and an exit status."""

import os
import subprocess
import sys
from unittest.mock import Mock

from fashion import script
from fashion.script import UserError

import pytest
import torch

ERRORS = [
    (UserError("wrong\nDo this"), 2, "error: wrong\nDo this\n"),
    (UserError("no network", 1), 1, "error: no network\n"),
    (OSError(28, "No space left on device", "out/a.png"), 1, "out/a.png: No space left on device"),
    (MemoryError(), 1, "out of memory; a smaller batch size, such as --batch-size 128"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "--batch-size 128"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "--batch-size 128"),
    (KeyboardInterrupt(), 130, "interrupted; it continues"),
]


@pytest.mark.parametrize(("error", "status", "text"), ERRORS)
def test_errors_become_a_line_and_an_exit_status(error, status, text, capsys):
    assert script.run(Mock(side_effect=error), "; it continues") == status
    output, errors = capsys.readouterr()
    assert text in errors and not output
    with pytest.raises(RuntimeError, match="shape"):  # a bug, which keeps its traceback
        script.run(Mock(side_effect=RuntimeError("shape mismatch")))


PRINT = "from fashion.script import run; run(lambda: [print('x' * 80) for _ in range(9999)])"


def test_reader_that_closes_the_pipe_is_no_error():
    command = f'{sys.executable} -W error -c "{PRINT}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "x" * 80 + "\n"
    assert not done.stderr


@pytest.mark.parametrize(
    ("module", "given", "expected"),
    [
        ("fashionmnist", {}, "1000"),
        ("predict", {"GOMP_SPINCOUNT": "77"}, "77"),
        ("kernel_vis", {"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_waiting_threads_are_set_before_torch_is_loaded(given, expected, module):
    code = f"""
import builtins, os, sys
original = builtins.__import__
def check(name, *rest, **keywords):
    if name == "torch" and "torch" not in sys.modules:
        print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("MPLBACKEND"))
        sys.exit()
    return original(name, *rest, **keywords)
builtins.__import__ = check
import {module}
"""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment |= {"MPLBACKEND": "module://a_notebook.backend", **given}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected} None\n"
