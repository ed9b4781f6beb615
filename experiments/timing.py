"""What the measuring experiments share: options, data, torch's dropout, the time of a step."""

import argparse
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, repeat
from typing import TypeVar

from torch import nn

from fashion import cli
from fashion.data import FASHION_MNIST, Dataset, load_dataset
from fashion.environment import choose_device, synchronize
from fashion.files import RunError, prepare_folder
from fashion.layers import Dropout
from fashion.training import Trainer

SEED = 0
WARM_UP_STEPS = 3  # the first steps allocate memory and choose kernels
TIMED_STEPS = 6


Result = TypeVar("Result")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that load_data reads."""
    cli.add_device_option(parser)
    cli.add_data_dir_option(parser)
    cli.add_out_option(parser, "the results")


def load_data(arguments: argparse.Namespace) -> Dataset:
    """Check the output folder and return Fashion-MNIST on the device of the options.

    Raises:
        UsageError: If there is no such device.
        RunError: If the folder is not writable, or the dataset is neither on disk nor online.
    """
    with cli.advise("choose another one with --device"):
        device = choose_device(arguments.device)
    with cli.advise("choose another folder with --out"):
        prepare_folder(arguments.out)
    with cli.advise("choose another folder with --data-dir", RunError):
        return load_dataset(FASHION_MNIST, arguments.data_dir).to(device)


def time_steps(trainer: Trainer, count: int = TIMED_STEPS) -> float:
    """Return the median time in seconds of training steps, over several epochs if necessary.

    Args:
        trainer: Has not begun to train.
        count: Number of steps to measure, after WARM_UP_STEPS others.
    """
    batches = chain.from_iterable(epoch() for epoch in repeat(trainer.batches))
    times = []
    for _ in range(WARM_UP_STEPS + count):
        start = time.perf_counter()
        trainer.step(*next(batches))
        synchronize(trainer.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP_STEPS:])


def use_torch_dropout(model: nn.Module) -> None:
    """Replace the dropout layers by torch's, which draw one random number per activation."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Dropout):
                setattr(parent, name, nn.Dropout(layer.p))


def call_in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Return what a function of a module returns when a new process calls it.

    Raises:
        RunError: If the process ends before that, such as for lack of memory.
    """
    context, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunError("a process that the script started has ended unexpectedly") from error
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
