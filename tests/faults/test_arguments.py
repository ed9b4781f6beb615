"""Every option of every script with any value: accepted and in range, or refused in words."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import finish, run_small

import ablation
import benchmark
import fashionmnist
import kernel_vis
import predict
from files import UserMistake

SCRIPTS = {
    module.__name__: module for module in (fashionmnist, kernel_vis, predict, benchmark, ablation)
}
# All that a command line can hold, bytes that are no text included.
TEXT = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"0")))
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(), st.sampled_from(["1e400", "١", "0x10", "1_000"])
).map(str)
OPTIONS = {
    "fashionmnist": "--models --out --dataset --data-dir --mirror --timeout --limit --best "
    "--teacher --epochs --batch-size --lr --weight-decay --seed --device --precision --runs "
    "--deterministic --resume --record --summary",
    "kernel_vis": "--only --checkpoint --image --layer --after --units --data-dir --out",
    "predict": "--checkpoints --json --out",
    "benchmark": "--epochs --device --data-dir --out",
    "ablation": "--seeds --device --data-dir --out",
}
OPTIONS = {script: names.split() for script, names in OPTIONS.items()}
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
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_tried_here(script, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[script].parse_arguments(["--help"])
    helped = {word.strip(",:[]") for word in capsys.readouterr().out.split()}
    assert {word for word in helped if word.startswith("--")} - {"--help"} == set(OPTIONS[script])


def parse(script, arguments):
    """Parse; return the arguments, or None when they were refused in words."""
    try:
        return SCRIPTS[script].parse_arguments(arguments)
    except UserMistake as mistake:
        assert str(mistake)
        return None
    except SystemExit as stop:  # --help, or its short form
        assert stop.code == 0
        return None


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_value_is_in_range_or_refused_by_the_options_name(script, long, trial, capsys):
    count = 500 if long else 60

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(option=st.sampled_from(OPTIONS[script]), value=st.one_of(TEXT, NUMBERS))
    def check(option, value):
        try:
            arguments = SCRIPTS[script].parse_arguments([*NEEDED[script], f"{option}={value}"])
        except UserMistake as mistake:
            assert option in str(mistake)
            return
        for name, (low, high) in RANGES.items():
            given_value = getattr(arguments, name, None)
            assert given_value is None or low <= given_value <= high
            assert given_value is None or math.isfinite(given_value)

    with trial("options with any value", count):
        check()
    capsys.readouterr()


NEEDED = {"predict": ["a.png"], **{script: [] for script in SCRIPTS if script != "predict"}}


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_command_line_is_understood_or_refused(script, long, trial, capsys):
    count = 500 if long else 60
    words = st.lists(st.one_of(st.sampled_from(OPTIONS[script]), TEXT, NUMBERS), max_size=6)

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(arguments=words)
    def check(arguments):
        parse(script, arguments)

    with trial("command lines of any words", count):
        check()
    capsys.readouterr()


ACCEPTED = st.fixed_dictionaries(
    {},
    optional={
        "--models": st.sampled_from(["ffn", "cnn"]),
        "--epochs": st.integers(1, 3),
        "--batch-size": st.sampled_from([2, 3, 50, 1000, 55_000]),
        "--lr": st.sampled_from([1e-9, 1e-3, 0.1]),
        "--weight-decay": st.sampled_from([0, 0.1, 10]),
        "--seed": st.sampled_from([0, 1, 2**62]),
        "--limit": st.sampled_from([2, 3, 10, 200, 55_000]),
        "--precision": st.sampled_from(["float32", "bfloat16", "auto"]),
        "--runs": st.sampled_from([1, 2]),
    },
)
FLAGS = st.sets(st.sampled_from(["--deterministic", "--resume", "--record"]))


def test_accepted_options_work_together(tmp_path, long, trial):
    count = 60 if long else 1
    number = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(options=ACCEPTED, flags=FLAGS)
    def check(options, flags):
        nonlocal number
        number += 1
        log = tmp_path / f"log{number}"
        arguments = [f"{option}={value}" for option, value in options.items()]
        status = finish(run_small, "--out", tmp_path / f"out{number}", *arguments, *flags, log=log)
        printed = log.read_text(errors="replace")
        assert "Traceback" not in printed
        assert status == 0 or (status == 2 and "--record" in printed), (arguments, printed)

    with trial("accepted options, whole runs", count):
        check()


@pytest.mark.parametrize("name", [b"\xff\xfe", "ключ".encode(), b"a b'c\"d", b"x" * 300])
def test_any_folder_name_is_used_or_refused_in_words(tmp_path, trial, name):
    out, log = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), tmp_path / "log"
    with trial("accepted options, whole runs"):
        status = finish(run_small, "--models", "ffn", "--out", out, log=log)
        assert status == (1 if len(name) > 255 else 0)
        assert b"Traceback" not in log.read_bytes()
