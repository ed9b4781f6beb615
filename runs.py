"""Finished runs: score them once, keep them, and share them out over processes or machines."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data import Dataset
from files import UserMistake, WorldFault, write_file
from training import (
    MODELS,
    Evaluation,
    Trainer,
    average_over_flip,
    checkpoint_content,
    count_parameters,
    evaluate,
    predict_logits,
    read_tensors,
    write_tensors,
)

Job = tuple[str, int]  # a model's name and a seed
Shared = TypeVar("Shared")

# A process waits for the others until they are done; torchrun ends it when one of them dies.
PATIENCE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Run:
    """One model trained to the end with one seed, and scored.

    Attributes:
        name: a key of MODELS.
        seed: of first weights, order, augmentation and dropout.
        identity: the settings that decide every weight, see Trainer.identity.
        checkpoint: what a checkpoint file holds, see training.checkpoint_content.
        history, epoch_seconds: see Trainer.
        validation_logits, test_logits: float32 (N, 10), of the last averaged weights.
        test: how the test set's predictions compare with its labels.
        flip_averaged_accuracy: the same set's, of the mean over each image and its mirror image.
        tested_at: when the test set was scored, in UTC.
    """

    name: str
    seed: int
    identity: dict[str, Any]
    checkpoint: dict[str, Any]
    history: list[dict[str, float]]
    epoch_seconds: list[float]
    validation_logits: Tensor
    test_logits: Tensor
    test: Evaluation
    flip_averaged_accuracy: float
    tested_at: str

    @property
    def parameters(self) -> int:
        """How many numbers the model learned."""
        return count_parameters(MODELS[self.name](**self.checkpoint["arguments"]))

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of the training, validation included."""
        return sum(self.epoch_seconds)


def score(trainer: Trainer) -> Run:
    """Score a finished training on the test set: the one and only look at it."""
    dataset = trainer.dataset
    arguments = dataset.mean, dataset.std, trainer.precision
    validation_logits, test_logits = (
        predict_logits(trainer.averaged, images, *arguments)
        for images in (dataset.images[dataset.validation_indices], dataset.test_images)
    )
    averaged = average_over_flip(trainer.averaged, dataset.test_images, *arguments)
    return Run(
        name=trainer.name,
        seed=trainer.seed,
        identity=trainer.identity(),
        checkpoint=checkpoint_content(trainer),
        history=trainer.history,
        epoch_seconds=trainer.epoch_seconds,
        validation_logits=validation_logits.cpu(),
        test_logits=test_logits.cpu(),
        test=evaluate(test_logits, dataset.test_labels),
        flip_averaged_accuracy=evaluate(averaged, dataset.test_labels).accuracy,
        tested_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def run_path(folder: Path, name: str, seed: int, ending: str) -> Path:
    """Where a run of a series is kept: "json" the figures, "pt" weights and predictions."""
    return folder / f"{name}-seed{seed}.{ending}"


def keep_run(folder: Path, run: Run) -> None:
    """Write a run's two files. The figures come last: where they stand, the run is whole.

    Raises:
        WorldFault: when one cannot be written.
    """
    predictions = {"validation_logits": run.validation_logits, "test_logits": run.test_logits}
    write_tensors(run_path(folder, run.name, run.seed, "pt"), run.checkpoint | predictions)
    figures = {
        "identity": run.identity,
        "test_accuracy": run.test.accuracy,
        "flip_averaged_accuracy": run.flip_averaged_accuracy,
        "test_accuracy_by_class": run.test.accuracy_by_class,
        "confusion_matrix": run.test.confusion_matrix,
        "tested_at": run.tested_at,
        "train_seconds": run.train_seconds,
        "epoch_seconds": run.epoch_seconds,
        "history": run.history,
    }
    write_file(
        run_path(folder, run.name, run.seed, "json"),
        (json.dumps(figures, indent=2) + "\n").encode(),
    )


def find_run(folder: Path, identity: dict[str, Any], dataset: Dataset) -> Run | None:
    """Return the kept run of a model and seed, or None where there is none.

    Args:
        folder: where runs are kept.
        identity: of the run that is wanted; its model and seed say which file to look at.
        dataset: whose test labels the predictions are compared with.

    Raises:
        UserMistake: when the run there comes from other settings or data, or is damaged.
        WorldFault: when it cannot be read.
    """
    name, seed = identity["model"], identity["seed"]
    path = run_path(folder, name, seed, "json")
    if not path.exists():
        return None
    try:
        figures = json.loads(path.read_bytes())
        kept = figures["identity"]
        different = next((key for key in identity if kept.get(key) != identity[key]), None)
        if different is None:
            tensors = read_tensors(run_path(folder, name, seed, "pt"))
            logits = {key: tensors.pop(key) for key in ("validation_logits", "test_logits")}
            return Run(
                name=name,
                seed=seed,
                identity=kept,
                checkpoint=tensors,
                history=figures["history"],
                epoch_seconds=figures["epoch_seconds"],
                test=evaluate(logits["test_logits"], dataset.test_labels.cpu()),
                flip_averaged_accuracy=figures["flip_averaged_accuracy"],
                tested_at=figures["tested_at"],
                **logits,
            )
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserMistake(
            f"{path} is damaged; remove it, and the same command trains that run again"
        ) from error
    raise UserMistake(
        f"{path} is of a run with {different} {kept.get(different)}, this series has "
        f"{identity[different]}; runs of different settings or data are not mixed: "
        "name another folder with --out, or remove the old runs"
    )


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Say in words that another process is gone, which torch reports as a broken connection."""
    try:
        yield
    except RuntimeError as error:
        raise WorldFault(
            "another process of this job ended early; its own message says why. Finished runs are "
            "kept: the same command does only the rest"
        ) from error


class Workers:
    """The processes that torchrun started, or this one alone.

    Attributes:
        rank: this process's number, from 0; the first one downloads, prints and draws.
        size: how many there are.
        local_rank, local_size: the same, on this machine.
        device: what this process trains on; of several GPUs its own one.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.local_rank = (int(os.environ.get(key, 0)) for key in ("RANK", "LOCAL_RANK"))
        self.size, self.local_size = (
            int(os.environ.get(key, 1)) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
        )
        self.device = device
        if device.type == "cuda" and self.size > 1:
            self.device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(self.device)

    @property
    def leads(self) -> bool:
        """Whether this is the process that downloads, prints and draws."""
        return self.rank == 0

    def __enter__(self) -> Self:
        """Share the cores out over this machine's processes, and meet the others.

        Every process gets as many threads as there are cores for it, never more; alone, it keeps
        the number that torch or OMP_NUM_THREADS chose.
        """
        if self.size == 1:
            return self
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // self.local_size))
        # What is exchanged are Python objects, on the CPU; NCCL is there for the GPUs themselves.
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        """Part from the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, make: Callable[[], Shared]) -> Shared:
        """Let the first process make something, and return it in all of them."""
        if self.size == 1:
            return make()
        made = [make() if self.leads else None]
        with _exchange():
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def portion(self, jobs: list[Job], have: Iterable[Job]) -> list[Job]:
        """Return the jobs that this process is to do: its turn of those that nobody has done."""
        done = set(have)
        if self.size > 1:
            everywhere: list[Any] = [None] * self.size
            with _exchange():
                dist.all_gather_object(everywhere, done)
            done = set().union(*everywhere)
        return [job for job in jobs if job not in done][self.rank :: self.size]

    def gather(self, runs: dict[Job, Run]) -> dict[Job, Run]:
        """Return all processes' runs in the first one, and an empty dictionary in the others."""
        if self.size == 1:
            return runs
        everywhere: list[Any] | None = [None] * self.size if self.leads else None
        with _exchange():
            dist.gather_object(runs, everywhere, dst=0)
        return {job: run for part in everywhere or [] for job, run in part.items()}
