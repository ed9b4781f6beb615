"""Fault trials: counted, so that the long form ends with a table of what was tried."""

import contextlib
from collections import Counter
from pathlib import Path

import pytest

TRIED, SURVIVED = Counter(), Counter()
CHECKED = Counter()  # cases without a fault, such as command lines for the parser


@pytest.fixture
def long(request):
    """Whether the long form was requested."""
    return request.config.getoption("--long")


@pytest.fixture
def trial():
    """trial(kind) counts a trial, which is survived unless its block raises."""

    @contextlib.contextmanager
    def count(kind):
        TRIED[kind] += 1
        yield
        SURVIVED[kind] += 1

    return count


@pytest.fixture
def case():
    """case(kind) counts a case in which nothing is faulty, apart from the trials."""

    @contextlib.contextmanager
    def count(kind):
        yield
        CHECKED[kind] += 1

    return count


@pytest.fixture
def memory_limit():
    """memory_limit(megabytes) fails if its block makes this process larger by more than that."""

    @contextlib.contextmanager
    def check(megabytes):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
        before = _peak_memory()
        yield
        assert _peak_memory() - before < 1000 * megabytes

    return check


def _peak_memory():
    """Return the largest size of this process so far in kilobytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.config.getoption("--long"):
        terminalreporter.section("fault trials")
        terminalreporter.line(f"{'':<44}{'trials':>8}{'survived':>10}")
        for kind, count in TRIED.items():
            terminalreporter.line(f"{kind:<44}{count:>8,}{SURVIVED[kind]:>10,}")
        total = f"{TRIED.total():>8,}{SURVIVED.total():>10,}"
        terminalreporter.line(f"{'all':<44}{total}")
        terminalreporter.section("cases without a fault")
        for kind, count in CHECKED.items():
            terminalreporter.line(f"{kind:<44}{count:>8,}")
