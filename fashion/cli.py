"""What the command lines of all scripts share: exit statuses, options, errors and progress."""

import argparse
import contextlib
import io
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from tqdm import tqdm

from fashion.data import FASHION_MNIST, SYNTHETIC, Dataset, load_dataset
from fashion.download import NETWORK_TIMEOUT
from fashion.environment import DEVICES, PRECISIONS
from fashion.files import RunError, UsageError
from fashion.recipe import Recipe

DATA_FOLDER, OUTPUT_FOLDER = Path("data"), Path("outputs")
# The largest values that make sense. Larger arguments are typing errors.
MAX_EPOCHS = 100_000
MAX_BATCH_SIZE = 55_000  # the training images of Fashion-MNIST
MAX_RUNS = 10_000
MAX_SEED = 2**63 - 1 - MAX_RUNS  # the limit of torch's generators, less the runs
MAX_TIMEOUT = 3600  # seconds
MIN_BATCH_SIZE = 2  # batch norm needs at least two images
INTERRUPTED, TERMINATED = 130, 143  # the shell's exit statuses after Ctrl-C and SIGTERM

Item = TypeVar("Item")


def run(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script and report errors that a user can act on as a message and an exit status.

    Args:
        parse: Parses the command line.
        main: The script.
        argv: The command line; None for that of the process.

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
        main(parse(argv))
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return RunError.exit_status
    except KeyboardInterrupt as error:
        print(f"\ninterrupted{error}", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


@contextlib.contextmanager
def advise(
    advice: str, kinds: type[Exception] | tuple[type[Exception], ...] = (UsageError, RunError)
) -> Iterator[None]:
    """Add to an error raised inside which option or command helps.

    Args:
        advice: What to do, appended to the message.
        kinds: The errors to which it applies.
    """
    try:
        yield
    except kinds as error:
        raise type(error)(f"{error}; {advice}") from error


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes as UsageError and accepts no abbreviated options."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"python {prog}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")


def number_type(
    convert: type[int] | type[float], low: float, high: float, *, above: bool = False
) -> Callable[[str], float]:
    """Return a converter for argparse that accepts numbers from low, or above low, to high.

    Args:
        convert: int or float.
        low: Smallest allowed value.
        high: Largest allowed value.
        above: Whether low itself is rejected.
    """

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


def add_out_option(parser: argparse._ActionsContainer, content: str) -> None:
    """Add --out, the folder for the content named."""
    parser.add_argument(
        "--out",
        type=Path,
        default=OUTPUT_FOLDER,
        metavar="DIR",
        help=f"folder for {content} (default: %(default)s)",
    )


def add_data_dir_option(parser: argparse._ActionsContainer) -> None:
    """Add --data-dir, the folder of the dataset."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DATA_FOLDER,
        metavar="DIR",
        help="folder with the dataset in FashionMNIST/raw, also for the download "
        "(default: %(default)s)",
    )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="device to train on; auto: the fastest available (default: %(default)s)",
    )


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that load_data reads."""
    parser.add_argument(
        "--dataset",
        choices=["auto", FASHION_MNIST, SYNTHETIC],
        default="auto",
        help="auto: Fashion-MNIST, or a drawn stand-in if neither disk nor network provides it "
        "(default: %(default)s)",
    )
    add_data_dir_option(parser)
    parser.add_argument(
        "--mirror",
        type=web_address,
        metavar="URL",
        help="address of a folder with the four archives, tried before torchvision's own",
    )
    parser.add_argument(
        "--timeout",
        type=number_type(float, 0, MAX_TIMEOUT, above=True),
        default=NETWORK_TIMEOUT,
        metavar="SECONDS",
        help="longest wait for one answer from the network (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=number_type(int, MIN_BATCH_SIZE, MAX_BATCH_SIZE),
        metavar="N",
        help="train on the first N images only",
    )


def load_data(arguments: argparse.Namespace) -> Dataset:
    """Load the dataset that the options of add_data_options select; see data.load_dataset."""
    advice = "--mirror names another source of the files, --data-dir another folder"
    with advise(advice, RunError):
        return load_dataset(
            arguments.dataset,
            arguments.data_dir,
            arguments.mirror,
            arguments.timeout,
            arguments.limit,
        )


def add_recipe_options(parser: argparse._ActionsContainer, recipes: Mapping[str, Recipe]) -> None:
    """Add the options that change_recipe reads, with the default of each recipe in the help."""
    batch_size = number_type(int, MIN_BATCH_SIZE, MAX_BATCH_SIZE)
    rate = number_type(float, 0, 1e6, above=True)
    for option, setting, convert, text in (
        ("--epochs", "epochs", number_type(int, 1, MAX_EPOCHS), "passes over the training images"),
        ("--batch-size", "batch_size", batch_size, "images per step"),
        ("--lr", "learning_rate", rate, "peak learning rate"),
        ("--weight-decay", "weight_decay", number_type(float, 0, 1e6), "weight decay of AdamW"),
    ):
        defaults = ", ".join(f"{name} {getattr(r, setting):g}" for name, r in recipes.items())
        parser.add_argument(
            option, dest=setting, type=convert, metavar="X", help=f"{text} (default: {defaults})"
        )


def change_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return a recipe with the settings that the options of add_recipe_options change."""
    settings = ("epochs", "batch_size", "learning_rate", "weight_decay")
    given = {key: getattr(arguments, key) for key in settings}
    return replace(recipe, **{key: value for key, value in given.items() if value is not None})


def add_run_options(parser: argparse._ActionsContainer, runs: int) -> None:
    """Add the options of a training that are not part of a recipe.

    Args:
        parser: The parser or group.
        runs: Default number of seeds.
    """
    parser.add_argument(
        "--seed",
        type=number_type(int, 0, MAX_SEED),
        default=0,
        metavar="N",
        help="seed of initial weights, order, augmentation and dropout (default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        type=number_type(int, 1, MAX_RUNS),
        default=runs,
        metavar="N",
        help="train each model with N seeds, from --seed on, and compare (default: %(default)s)",
    )
    add_device_option(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of matrix products; auto: bfloat16 if the hardware has it (default: %(default)s)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run with the same settings after its last finished epoch",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="discard an interrupted run in the output folder instead of refusing to start",
    )


@contextlib.contextmanager
def quiet_unless(first: bool) -> Iterator[None]:
    """Suppress standard output in all processes of a job but the first."""
    if first:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield


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

    Args:
        items: What to iterate over.
        title: Text before the bar.
        total: Number of items if they have no length.
        unit: What is counted.
        unit_scale: How many of these an item stands for.
    """
    hidden = not is_interactive()
    return tqdm(items, title, total, leave=False, disable=hidden, unit=unit, unit_scale=unit_scale)


def print_files(files: Iterable[Path]) -> None:
    """Print the files that were written."""
    print("\nFiles written:")
    for file in files:
        print(f"  {file}")
