import argparse
import io
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fashion import cli
from fashion.download import NoSourceError
from fashion.files import RunError, UsageError
from models import MODELS


@pytest.fixture(autouse=True)
def own_logging():
    """Restore the handlers that cli.run replaces."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(main, *words):
    """Run a script that takes any words."""
    return cli.run(lambda argv: argparse.Namespace(words=argv), main, words)


# Exit statuses


def test_finished_script_returns_zero_and_gets_the_command_line():
    seen = []
    assert run(lambda arguments: seen.append(arguments.words), "a", "b") == 0
    assert seen == [("a", "b")]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("no such folder"), 2, "error: no such folder\n"),
        (RunError("disk full"), 1, "error: disk full\n"),
        (NoSourceError("no network"), 1, "error: no network\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (KeyboardInterrupt(" in epoch 3"), 130, "\ninterrupted in epoch 3\n"),
    ],
)
def test_errors_of_users_and_systems_are_a_message_and_a_status(capsys, error, status, message):
    def fail(_):
        raise error

    assert run(fail) == status
    assert cli.run(fail, print, []) == status  # while parsing
    assert capsys.readouterr() == ("", 2 * message)


def test_sigterm_interrupts_with_its_own_status(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def wait_for_signal(_):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert run(wait_for_signal) == 143
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_errors_in_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(lambda _: 1 / 0)


def test_warnings_are_printed_as_such(capsys):
    def warn(_):
        logger = logging.getLogger("fashion.data")
        logger.warning("drawn")
        logger.info("detail")

    run(warn)
    assert capsys.readouterr() == ("", "WARNING: drawn\n")


def test_file_names_that_are_not_text_can_be_printed(capsys):
    assert run(lambda _: print(Path(os.fsdecode(b"a\xffb")))) == 0
    assert capsys.readouterr().out == "a\\udcffb\n"


# Errors with advice


@pytest.mark.parametrize("kind", [UsageError, NoSourceError])
def test_advice_is_added_and_the_kind_of_error_is_kept(kind):
    with pytest.raises(kind, match=r"^disk full; use --out$") as caught, cli.advise("use --out"):
        raise kind("disk full")
    assert type(caught.value) is kind


def test_advice_is_for_the_kinds_that_it_names():
    for error, kinds in ((UsageError("a"), RunError), (ValueError("a"), (UsageError, RunError))):
        with pytest.raises(type(error)) as caught, cli.advise("use --out", kinds):
            raise error
        assert caught.value is error


# Arguments


def test_mistakes_name_the_help_and_abbreviations_are_mistakes():
    parser = cli.Parser("script.py", "Do something.")
    cli.add_out_option(parser, "results")
    assert parser.parse_args(["--out", "a"]).out == Path("a")
    assert parser.parse_args([]).out == Path("outputs")
    message = r"^unrecognized arguments: --ou a; see python script\.py --help$"
    with pytest.raises(UsageError, match=message):
        parser.parse_args(["--ou", "a"])


@pytest.mark.parametrize(
    ("convert", "above", "text", "value"),
    [(int, False, "1", 1), (int, False, "2000", 2000), (float, True, "1.5", 1.5)],
)
def test_numbers_in_range_are_accepted(convert, above, text, value):
    number = cli.number_type(convert, 1, 2000, above=above)(text)
    assert number == value and type(number) is convert


@pytest.mark.parametrize(
    ("convert", "above", "text", "expected"),
    [
        (int, False, "0", "an integer from 1 to 2,000"),
        (int, False, "1.5", "an integer from 1 to 2,000"),
        (float, False, "nan", "a number from 1 to 2,000"),
        (float, False, "2001", "a number from 1 to 2,000"),
        (float, True, "1", "a number above 1 and up to 2,000"),
        (float, True, "", "a number above 1 and up to 2,000"),
    ],
)
def test_numbers_out_of_range_are_rejected(convert, above, text, expected):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        cli.number_type(convert, 1, 2000, above=above)(text)
    assert str(caught.value) == f"expected {expected}, got {text!r}"


def test_web_addresses_have_a_scheme_and_a_host():
    for text in ("http://a", "https://a.b/c"):
        assert cli.web_address(text) == text
    for text in ("a.b/c", "ftp://a", "file:///etc/passwd", "https://", "https:///"):
        with pytest.raises(argparse.ArgumentTypeError, match="https:// address, got"):
            cli.web_address(text)


def test_recipe_changes_only_in_the_settings_that_are_given():
    parser = cli.Parser("script.py", "Train.")
    recipes = {name: network.recipe for name, network in MODELS.items()}
    cli.add_recipe_options(parser, recipes)
    options = ["--epochs", "7", "--lr", "0.5"]
    for recipe in recipes.values():
        assert cli.change_recipe(recipe, parser.parse_args([])) == recipe
        changed = cli.change_recipe(recipe, parser.parse_args(options))
        assert changed == replace(recipe, epochs=7, learning_rate=0.5)
    text = " ".join(parser.format_help().split())
    for name, recipe in recipes.items():
        assert f"{name} {recipe.epochs}" in text and f"{name} {recipe.learning_rate:g}" in text


def test_data_that_cannot_be_loaded_is_an_error_with_advice(tmp_path, no_network):
    parser = cli.Parser("script.py", "Train.")
    cli.add_data_options(parser)
    options = ["--dataset", "fashion-mnist", "--data-dir", str(tmp_path)]
    with pytest.raises(NoSourceError, match=f"{tmp_path}.*; choose another source with --mirror"):
        cli.load_data(parser.parse_args(options))


# Output


def test_only_the_first_process_prints(capsys):
    for first in (True, False):
        with cli.quiet_unless(first):
            print(f"first: {first}")
            print("problem", file=sys.stderr)
    assert capsys.readouterr() == ("first: True\n", "problem\nproblem\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("shown", [(True, True), (True, False), (False, True)])
def test_progress_bar_is_shown_on_a_terminal_only(monkeypatch, shown):
    out, err = (Terminal() if each else io.StringIO() for each in shown)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    bar = cli.progress_bar(iter("abc"), "ffn 1/3", 3, " images", 50)
    assert list(bar) == ["a", "b", "c"]
    assert cli.is_interactive() == all(shown)
    text = err.getvalue()
    assert ("ffn 1/3" in text and "150" in text) if all(shown) else not text
    assert not out.getvalue()


def test_written_files_are_listed_one_per_line(capsys):
    cli.print_files([Path("out/a.png"), Path("out/b.json")])
    assert capsys.readouterr().out == "\nFiles written:\n  out/a.png\n  out/b.json\n"
