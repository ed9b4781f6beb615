"""The fault trials: counted, so that the long form ends with a table of trials and survivals."""

import contextlib
from collections import Counter

import pytest

TRIED, SURVIVED = Counter(), Counter()


@pytest.fixture
def long(request):
    """Whether the long form was asked for."""
    return request.config.getoption("--long")


@pytest.fixture
def trial():
    """trial(kind) counts what happens inside as one trial, survived unless it raises."""

    @contextlib.contextmanager
    def count(kind, trials=1):
        TRIED[kind] += trials
        yield
        SURVIVED[kind] += trials

    return count


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.config.getoption("--long"):
        terminalreporter.section("fault trials")
        terminalreporter.line(f"{'':<44}{'trials':>8}{'survived':>10}")
        for kind, count in TRIED.items():
            terminalreporter.line(f"{kind:<44}{count:>8,}{SURVIVED[kind]:>10,}")
        total = f"{TRIED.total():>8,}{SURVIVED.total():>10,}"
        terminalreporter.line(f"{'all':<44}{total}")
