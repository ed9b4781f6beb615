"""What the command lines of all scripts share: exit statuses, options, errors and progress."""

import argparse
import contextlib
import io
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from fashion.checkpoint import SUFFIX
from fashion.data import FASHION_MNIST, SYNTHETIC, Dataset, load_dataset
from fashion.download import NETWORK_TIMEOUT
from fashion.environment import DEVICES, PRECISIONS
from fashion.files import RunError, UsageError
from fashion.recipe import Recipe
from fashion.report import describe_results, result_files
from fashion.training import describe_unfinished

DATA_FOLDER, OUTPUT_FOLDER = Path("data"), Path("outputs")
PRETRAINED_FOLDER = Path(__file__).parents[1] / "pretrained"
INTERRUPTED, TERMINATED = 130, 143  # the shell's exit statuses after Ctrl-C and SIGTERM

Item = TypeVar("Item")


def run(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script and report errors that a user can act on as a message and an exit status.

    Args:
        parse: Parses the command line: argv, or that of the process if argv is None.
        main: The script.
        argv: The command line.

    Returns:
        0 on success; 2 if the user made a mistake; 1 if disk, network, data or numbers failed; 130
        after Ctrl-C; 143 after SIGTERM.
    """
    status = INTERRUPTED

    def interrupt(*_: object) -> NoReturn:
        nonlocal status
        status = TERMINATED
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    # Names of files may contain bytes that are not text. They are printed with escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main(parse(argv))
        finally:  # in the outer block, which reports a signal that arrives here
            signal.signal(signal.SIGTERM, previous)
    except (UsageError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_status", RunError.exit_status)
    except KeyboardInterrupt as error:
        print(f"\ninterrupted{error}", file=sys.stderr)
        return status
    return 0


@contextlib.contextmanager
def advise(
    advice: str, kinds: type[Exception] | tuple[type[Exception], ...] = (UsageError, RunError)
) -> Iterator[None]:
    """Append advice, such as the option that helps, to errors of these kinds raised inside."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{error}; {advice}") from error


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes as UsageError and accepts no abbreviated options."""

    def __init__(self, prog: str, description: str, usage: str = "[options]") -> None:
        prog = f"python {prog}"
        usage = f"{prog} {usage}"  # the help lists the options
        super().__init__(prog, usage, description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")


def number_type(
    convert: type[int] | type[float], low: float, high: float, *, above: bool = False
) -> Callable[[str], float]:
    """Return a converter for argparse that accepts numbers from low, or above low, to high."""

    def parse(text: str) -> float:
        try:
            value: float = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low):
            kind = "an integer" if convert is int else "a number"
            span = f"above {low:,} and up to {high:,}" if above else f"from {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"expected {kind} {span}, got {text!r}")
        return value

    return parse


def web_address(text: str) -> str:
    """Check an address for argparse: http or https, with a host."""
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise argparse.ArgumentTypeError(f"expected an http:// or https:// address, got {text!r}")
    return text


# The upper limits are the largest values that make sense; larger ones are typing errors. Batch norm
# needs two images; Fashion-MNIST has 55,000 to train on.
image_count = number_type(int, 2, 55_000)
MAX_RUNS = 10_000
RECIPE_OPTIONS = (  # option, setting of the recipe, type, help
    ("--epochs", "epochs", number_type(int, 1, 100_000), "passes over the training images"),
    ("--batch-size", "batch_size", image_count, "images per step"),
    ("--lr", "learning_rate", number_type(float, 0, 1_000_000, above=True), "peak learning rate"),
    (
        "--weight-decay",
        "weight_decay",
        number_type(float, 0, 1_000_000),
        "weight decay of the parameters that AdamW trains",
    ),
)
HELP = {
    "--dataset": "auto: Fashion-MNIST; synthetic images if it is not on disk and no server answers",
    "--data-dir": "folder whose subfolder FashionMNIST/raw holds, or will hold, the dataset",
    "--mirror": "address of a folder with the four archives, tried before torchvision's own",
    "--timeout": "longest wait for an answer from the server",
    "--limit": "train on the first N images only",
    "--seed": "seed of initial weights, image order, augmentation and dropout",
    "--runs": "train each model with N seeds, starting at --seed, and compare the results",
    "--device": "device to train on; auto: the fastest available",
    "--precision": "precision of matrix products; auto: bfloat16 if the hardware has it",
    "--resume": "continue an interrupted run with the same settings after its last finished epoch",
    "--overwrite": "discard an interrupted run in the output folder instead of refusing to start",
}


def _add_option(parser: argparse._ActionsContainer, option: str, **settings: Any) -> None:
    """Add an option with the text in HELP and its default, if it has one."""
    default = " (default: %(default)s)" if "default" in settings else ""
    parser.add_argument(option, help=HELP[option] + default, **settings)


def add_out_option(parser: argparse._ActionsContainer, content: str) -> None:
    """Add --out, the folder for the content named."""
    text = f"folder for {content} (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=OUTPUT_FOLDER, metavar="DIR", help=text)


def add_data_dir_option(parser: argparse._ActionsContainer) -> None:
    """Add --data-dir, the folder of the dataset."""
    _add_option(parser, "--data-dir", type=Path, default=DATA_FOLDER, metavar="DIR")


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add --device."""
    _add_option(parser, "--device", choices=DEVICES, default="auto")


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that load_data reads."""
    choices, seconds = ["auto", FASHION_MNIST, SYNTHETIC], number_type(float, 0, 3600, above=True)
    _add_option(parser, "--dataset", choices=choices, default="auto")
    add_data_dir_option(parser)
    _add_option(parser, "--mirror", type=web_address, metavar="URL")
    _add_option(parser, "--timeout", type=seconds, default=NETWORK_TIMEOUT, metavar="SECONDS")
    _add_option(parser, "--limit", type=image_count, metavar="N")


@advise("choose another source with --mirror, or another folder with --data-dir", RunError)
def load_data(arguments: argparse.Namespace) -> Dataset:
    """Load the dataset that the options of add_data_options select; see data.load_dataset."""
    return load_dataset(
        arguments.dataset, arguments.data_dir, arguments.mirror, arguments.timeout, arguments.limit
    )


def add_recipe_options(parser: argparse._ActionsContainer, recipes: Mapping[str, Recipe]) -> None:
    """Add the options that change_recipe reads, with the default of each recipe in the help."""
    for option, setting, convert, text in RECIPE_OPTIONS:
        defaults = ", ".join(f"{name} {getattr(r, setting):g}" for name, r in recipes.items())
        text += f" (default: {defaults})"
        parser.add_argument(option, dest=setting, type=convert, metavar="X", help=text)


def change_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return a recipe with the settings that the options of add_recipe_options change."""
    given = {setting: getattr(arguments, setting) for _, setting, *_ in RECIPE_OPTIONS}
    return replace(recipe, **{key: value for key, value in given.items() if value is not None})


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say which runs to do, and what to do with an interrupted one."""
    _add_option(parser, "--runs", type=number_type(int, 1, MAX_RUNS), default=1, metavar="N")
    _add_option(parser, "--resume", action="store_true")
    _add_option(parser, "--overwrite", action="store_true")


def add_training_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of a training that are not part of a recipe."""
    max_seed = 2**63 - 1 - MAX_RUNS  # the limit of torch's generators, less the runs
    _add_option(parser, "--seed", type=number_type(int, 0, max_seed), default=0, metavar="N")
    add_device_option(parser)
    _add_option(parser, "--precision", choices=PRECISIONS, default="auto")


def check_previous_results(arguments: argparse.Namespace, state_paths: Iterable[Path]) -> None:
    """Refuse to overwrite an unfinished training, and print which results will be replaced."""
    state_paths = list(state_paths)
    for path in () if arguments.resume or arguments.overwrite else state_paths:
        if unfinished := describe_unfinished(path):
            raise UsageError(
                f"{path} holds {unfinished}; continue it with --resume, discard it with "
                "--overwrite, or choose another folder with --out"
            )
    resuming = arguments.resume and any(path.exists() for path in state_paths)
    old = any((arguments.out / name).exists() for name in result_files(arguments.models))
    if old and not resuming:
        previous = describe_results(arguments.out)
        results = f"{arguments.out} ({previous})" if previous else arguments.out
        print(f"The results in {results} and the figures of these models will be replaced.")


def find_models(names: Iterable[str]) -> Path:
    """Return the output folder if it holds weights of these models, else that of shipped ones."""
    trained = any((OUTPUT_FOLDER / f"{name}{SUFFIX}").exists() for name in names)
    return OUTPUT_FOLDER if trained else PRETRAINED_FOLDER


def quiet_unless(first: bool) -> AbstractContextManager:
    """Suppress standard output in all processes of a job but the first."""
    return contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO())


def is_interactive() -> bool:
    """Return whether both standard output and error are shown on a terminal."""
    return sys.stderr.isatty() and sys.stdout.isatty()


def progress_bar(
    items: Iterable[Item],
    title: str,
    total: int | None = None,
    unit: str = "it",
    unit_scale: int = 1,
) -> "tqdm[Item]":
    """Return an iterable over items that shows a progress bar, on a terminal only.

    Items without a length need a total. Each of them stands for unit_scale units.
    """
    hidden = not is_interactive()
    return tqdm(items, title, total, leave=False, disable=hidden, unit=unit, unit_scale=unit_scale)


def print_files(files: Iterable[Path]) -> None:
    """Print the files that were written."""
    print("\nFiles written:", *(f"  {file}" for file in files), sep="\n")
