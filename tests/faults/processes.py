"""Start the project's functions in processes of their own, that can be killed at any moment.

They are forked from a server that has imported everything and started no thread, so each is there
at once.
"""

import contextlib
import errno
import fnmatch
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

import data
import fashionmnist
import plots
import synthetic

CLOSED_ADDRESS = "http://127.0.0.1:9/"  # nothing listens there
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fashionmnist", "kernel_vis", "processes"])


def start(function, *arguments, log=os.devnull):
    """Start a function in a process that prints to a file."""
    process = SERVER.Process(target=_enter, args=(function, arguments, str(log)), daemon=True)
    process.start()
    return process


def finish(function, *arguments, log=os.devnull):
    """Let a function run to its end in a process, and return the exit status."""
    process = start(function, *arguments, log=log)
    process.join()
    return process.exitcode


def kill_after(process, seconds):
    """Kill a process -9 after some time, and return whether it was still running."""
    process.join(seconds)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


def _enter(function, arguments, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    # A shell lets what it starts in the background ignore Ctrl-C, and so would the tests'.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(function(*arguments))


def run_small(*arguments):
    """Run fashionmnist.py on a small stand-in, with pictures of few pixels."""
    synthetic.TRAIN_COUNT, synthetic.TEST_COUNT = 240, 60
    plots.STYLE["savefig.dpi"] = 20
    small = ["--dataset", "synthetic", "--epochs", "4", "--batch-size", "50"]
    return fashionmnist.main([*small, "--precision", "float32", *map(str, arguments)])


def run_small_on_full_disk(pattern, *arguments):
    """Do the same on a disk that is full when a file of that name is to be written."""
    sync = os.fsync

    def fail(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if fnmatch.fnmatch(name, pattern):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    os.fsync = fail
    return run_small(*arguments)


def load_small(resources, md5s, folder, mirror):
    """Load small archives in place of Fashion-MNIST, as tests/conftest.py makes them."""
    data.FashionMNIST.resources = resources
    data.FashionMNIST.mirrors = [CLOSED_ADDRESS]
    data.EXTRACTED_MD5.update(md5s)
    data.load_fashion_mnist(folder, mirror, 5)


def load_real(folder):
    """Load Fashion-MNIST from archives in a folder."""
    data.FashionMNIST.mirrors = [CLOSED_ADDRESS]
    data.load_fashion_mnist(folder)


def wait_until(condition, seconds=60):
    """Wait until something is so; fail after a time that is out of the question."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def wait_for_end(process, seconds=60):
    """Wait for the end of a process and return its exit status; fail where none comes."""
    process.join(seconds)
    assert not process.is_alive(), "the process goes on"
    return process.exitcode


@contextlib.contextmanager
def ended(process):
    """End a process at the end of a block, however that ends."""
    try:
        yield process
    finally:
        process.kill()
        process.join()
