"""What the scripts share: the error for users, exit statuses and what is printed."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DATA, OUTPUTS = Path("data"), Path("outputs")
PRETRAINED = Path(__file__).parents[1] / "pretrained"
MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # exit statuses


class UserError(Exception):
    """A mistake of the user, or a failure that they can do something about, in one or two lines."""

    def __init__(self, message: str, status: int = MISTAKE) -> None:
        super().__init__(message)
        self.status = status


def run(main: Callable[[], None], after_interrupt: str = "") -> int:
    """Call the main function of a script and return its exit status; print errors as one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        print(end="", flush=True)
    except UserError as error:
        return fail(str(error), error.status)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return fail(f"{place}{error.strerror or error}", FAILURE)
    except (MemoryError, RuntimeError) as error:
        texts = ("out of memory", "can't allocate memory")
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in texts):
            raise
        hint = "a smaller batch size, such as --batch-size 128, needs less"
        return fail(f"out of memory; {hint}", FAILURE)
    except KeyboardInterrupt:
        return fail(f"interrupted{after_interrupt}", INTERRUPTED)
    return 0


def fail(message: str, status: int) -> int:
    """Print an error and return its exit status."""
    with contextlib.suppress(OSError):  # standard error may be closed
        print(f"error: {printable(message)}", file=sys.stderr)
    return status


def printable(text: str) -> str:
    """Return the text with control characters escaped, which could take over a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def on_terminal() -> bool:
    """Return whether standard error is shown on a terminal, where a progress bar makes sense."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """Suppress standard output."""
    with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
        yield


def make_folder(folder: Path) -> None:
    """Create a folder for results; UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from error


def duration(seconds: float) -> str:
    """Return a duration such as "8.4 s", "2 min 5 s" or "1 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def list_files(files: list[Path]) -> None:
    """Print the names of the files that were written."""
    print("\nFiles written:", *(f"  {file}" for file in files), sep="\n")
