"""Run the project's functions in processes that can be killed at any moment.

The processes are forked from a server that has imported everything and started no threads, so they
start within milliseconds.
"""

import contextlib
import errno
import fnmatch
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.datasets import FashionMNIST

import fashionmnist
from cnn import CNN
from fashion import cli, comparison, download, plots, synthetic
from ffn import FFN

CLOSED_ADDRESS = "http://127.0.0.1:9/"  # nothing listens there
HANG = 120  # seconds after which a test gives up
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fashionmnist", "processes"])


def start(function, *arguments, log=os.devnull):
    """Start a function in a process whose output goes to a file."""
    process = SERVER.Process(target=_enter, args=(function, arguments, str(log)), daemon=True)
    process.start()
    return process


def finish(function, *arguments, log=os.devnull):
    """Run a function in a process and return the exit status; fail if it never ends."""
    with ended(start(function, *arguments, log=log)) as process:
        return wait_for_end(process)


def kill_after(process, seconds):
    """Kill a process with SIGKILL after some time; return whether it was still running."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def wait_until(condition):
    """Wait until a condition holds; fail if it never does."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def wait_for_end(process):
    """Wait for the end of a process and return its exit status; fail if it never ends."""
    process.join(HANG)
    assert not process.is_alive(), "the process does not end"
    return process.exitcode


@contextlib.contextmanager
def ended(process):
    """End a process at the end of a block, also if the block raises."""
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _enter(function, arguments, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(function(*arguments))


# Functions to run in a process


def run_small(*arguments):
    """Run fashionmnist.py with small networks on a small stand-in; its figures are empty."""
    for name in dir(plots):
        if name.startswith("draw_"):
            setattr(plots, name, lambda *_: Figure((1, 1)))
    return run_small_with_figures(*arguments)


def run_small_with_figures(*arguments):
    """Do the same with real figures of low resolution."""
    synthetic.TRAIN_COUNT, synthetic.TEST_COUNT = 240, 60
    FFN.recipe = replace(FFN.recipe, model={"widths": (32, 24, 16, 12)})
    CNN.recipe = replace(CNN.recipe, model={"channels": (4, 6, 8), "widths": (16, 12)})
    comparison.LATENCY_REPEATS = 1
    plots.STYLE["savefig.dpi"] = 20
    plots.GRID_ROWS, plots.GRID_COLUMNS = 1, 2
    small = ["--dataset", "synthetic", "--epochs", "4", "--batch-size", "50"]
    small += ["--device", "cpu", "--precision", "float32"]
    arguments = [*small, *map(str, arguments)]
    return cli.run(fashionmnist.parse_arguments, fashionmnist.main, arguments)


def load_small(resources, md5s, folder, mirror):
    """Load small archives in place of Fashion-MNIST, as tests/conftest.py makes them."""
    FashionMNIST.resources = resources
    FashionMNIST.mirrors = [CLOSED_ADDRESS]
    download.EXTRACTED_MD5.update(md5s)
    download.load_fashion_mnist(folder, mirror, 5)


def load_real(folder):
    """Load Fashion-MNIST from archives in a folder."""
    FashionMNIST.mirrors = [CLOSED_ADDRESS]
    download.load_fashion_mnist(folder)


def on_write(action, pattern, earlier, function, *arguments):
    """Run a function; call action once it has written, but not renamed, a file of this name.

    Earlier writes of such files, as many as stated, are left alone.
    """
    fsync, left = os.fsync, iter(range(earlier))

    def sync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if fnmatch.fnmatch(path.name, f".{pattern}.*.part") and next(left, None) is None:
            action(descriptor)
        fsync(descriptor)

    os.fsync = sync
    return function(*arguments)


def fill_disk(descriptor):
    """Behave like a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill_itself(descriptor):
    """Lose half of the file and end the process at once."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
