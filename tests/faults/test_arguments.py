"""Any values of any options: accepted if in range, otherwise rejected with a message."""

import importlib
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import finish, run_small, run_small_with_figures

from fashion.files import UsageError

# The scripts, with the arguments that each requires.
SCRIPTS = {
    "fashionmnist": [],
    "kernel_vis": [],
    "predict": ["a.png"],
    "experiments.benchmark": [],
    "experiments.ablation": [],
    "experiments.record": [],
    "experiments.why_convolution": [],
}
# Everything that a command line can hold, including bytes that are not text.
TEXT = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"0")))
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(), st.sampled_from(["1e400", "١", "0x10", "1_000"])
).map(str)
RANGES = {
    "epochs": (1, 100_000),
    "batch_size": (2, 55_000),
    "learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "seed": (0, 2**63),
    "seeds": (1, 100),
    "runs": (1, 10_000),
    "limit": (2, 55_000),
    "timeout": (0, 3600),
    "units": (0, 1_000_000),
}


@pytest.fixture(params=SCRIPTS)
def script(request, capsys):
    """The parser of a script, the arguments it requires, and the names of its options."""
    parse = importlib.import_module(request.param).parse_arguments
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = sorted(set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"})
    return parse, SCRIPTS[request.param], options


def fuzz(long):
    """Settings for reproducible examples, as many as the form of the trials requires."""
    return settings(
        max_examples=500 if long else 40, deadline=None, database=None, derandomize=True
    )


def test_any_value_is_in_range_or_rejected_with_the_name_of_the_option(script, long, case):
    parse, required, options = script
    rejected = 0

    @fuzz(long)
    @given(option=st.sampled_from(options), value=st.one_of(TEXT, NUMBERS))
    def check(option, value):
        nonlocal rejected
        with case("options with any value"):
            try:
                arguments = parse([*required, f"{option}={value}"])
            except UsageError as error:
                rejected += 1
                assert option in str(error)
                return
            for name, (low, high) in RANGES.items():
                given_value = getattr(arguments, name, None)
                numbers = given_value if isinstance(given_value, list) else [given_value]
                assert all(number is None or low <= number <= high for number in numbers)

    check()
    assert rejected


def test_any_command_line_is_parsed_or_rejected(script, long, case, capsys):
    parse, _, options = script

    @fuzz(long)
    @given(words=st.lists(st.one_of(st.sampled_from(options), TEXT, NUMBERS), max_size=6))
    def check(words):
        with case("command lines of any words"):
            try:
                parse(words)
            except UsageError as error:
                assert str(error)
            except SystemExit as stop:  # a word was -h
                assert stop.code == 0

    check()


VALID = {
    "--models": ["ffn", "cnn"],
    "--epochs": [1, 2, 3],
    "--batch-size": [2, 3, 50, 1000, 55_000],
    "--lr": [1e-9, 1e-3, 0.1],
    "--weight-decay": [0, 0.1, 10],
    "--seed": [0, 1, 2**62],
    "--limit": [2, 3, 10, 200, 55_000],
    "--precision": ["float32", "bfloat16", "auto"],
    "--runs": [1, 2],
}
FLAGS = ["--deterministic", "--resume", "--record"]


def test_valid_options_work_together(tmp_path, long, case):
    generator, log = random.Random(3), tmp_path / "log"
    completed = 0
    for number in range(60 if long else 2):
        chosen = generator.sample(list(VALID), generator.randint(1, len(VALID)))
        words = [f"{option}={generator.choice(VALID[option])}" for option in chosen]
        words += generator.sample(FLAGS, generator.randint(0, len(FLAGS)))
        log.unlink(missing_ok=True)
        with case("valid options, whole runs"):
            out = tmp_path / f"out{number}"
            status = finish(run_small_with_figures, "--out", out, *words, log=log)
            printed = log.read_text()
            assert "Traceback" not in printed
            assert status == 0 or (status == 2 and "--record" in printed), (words, printed)
            completed += status == 0
    assert completed


@pytest.mark.parametrize(
    ("name", "status"), [(b"\xff\xfe \xd0\xba'c\"d\n", 0), (b"x" * 300, 1)], ids=["odd", "long"]
)
def test_any_folder_name_is_used_or_rejected(tmp_path, case, name, status):
    out, log = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), tmp_path / "log"
    with case("valid options, whole runs"):
        assert finish(run_small, "--models", "ffn", "--out", out, log=log) == status
        printed = log.read_bytes()
        assert b"Traceback" not in printed and (status == 0 or b"cannot write" in printed)
