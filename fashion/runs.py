"""Finished runs: scoring, files, and sharing them out over processes and machines."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fashion.checkpoint import CONTENT_ERRORS, SUFFIX, load_tensors, save_tensors
from fashion.environment import warn_of_differences
from fashion.evaluation import (
    Evaluation,
    average_over_flip,
    energy,
    evaluate,
    fit_temperature,
    predict_logits,
)
from fashion.files import RunError, UsageError, write_json
from fashion.layers import Network, count_parameters
from fashion.training import Trainer

Job = tuple[str, int]  # the name of a model and a seed
Shared = TypeVar("Shared")

FAMILIAR_SHARE = 0.95  # of the validation images have an energy below the limit
# Processes wait for each other until all runs are done; torchrun stops them when one of them dies.
JOIN_TIMEOUT = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Run:
    """One model, trained to the end with one seed and scored.

    Attributes:
        name: Name of the model, which its files start with.
        network: Class of the model.
        identity: The settings that determine every weight, see Trainer.identity.
        weights, metadata: What a checkpoint holds, see checkpoint.load_weights.
        history, epoch_seconds: See Trainer.
        validation_logits, test_logits: Float32 (N, 10), of the last averaged weights.
        test: Comparison of the test predictions with the labels.
        flip_averaged_accuracy: Test accuracy of the mean over each image and its mirror image.
        tested_at: Time in UTC when the test images were scored.
    """

    name: str
    network: type[Network]
    identity: dict[str, Any]
    weights: dict[str, Tensor]
    metadata: dict[str, Any]
    history: list[dict[str, float]]
    epoch_seconds: list[float]
    validation_logits: Tensor
    test_logits: Tensor
    test: Evaluation
    flip_averaged_accuracy: float
    tested_at: str

    @property
    def seed(self) -> int:
        """Seed of initial weights, order, augmentation and dropout."""
        return self.metadata["seed"]

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of the training, validation included."""
        return sum(self.epoch_seconds)

    @property
    def probabilities(self) -> np.ndarray:
        """Predicted probabilities for the test images, float32 (N, 10)."""
        return self.test_logits.softmax(1).numpy()

    def build_model(self) -> Network:
        """Return a new model with the run's architecture and random weights."""
        with torch.random.fork_rng(devices=[]):
            return self.network(**self.metadata["arguments"])

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return count_parameters(self.build_model())

    def measurements(self) -> dict[str, Any]:
        """Return everything measured on the run, as JSON can represent it."""
        return {
            "parameters": self.parameters,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "tested_at": self.tested_at,
            "versions": self.metadata["versions"],
            "environment": self.metadata["environment"],
            "test_loss": self.test.loss,
            "test_accuracy": self.test.accuracy,
            "flip_averaged_accuracy": self.flip_averaged_accuracy,
            "test_accuracy_by_class": self.test.accuracy_by_class,
            "confusion_matrix": self.test.confusion_matrix,
        }


def score(trainer: Trainer, name: str) -> Run:
    """Score a finished training on the test images, the only time that a training uses them.

    The temperature and the limit of the energy come from the validation images.
    """
    dataset, model = trainer.dataset, trainer.averaged
    settings, held_out = (dataset.mean, dataset.std), dataset.validation_indices
    validation_logits = predict_logits(model, dataset.images[held_out], *settings)
    test_logits = predict_logits(model, dataset.test_images, *settings)
    test = evaluate(test_logits, dataset.test_labels)
    flip_averaged = average_over_flip(model, dataset.test_images, *settings)
    return Run(
        name=name,
        network=trainer.network,
        identity=trainer.identity(),
        weights={key: value.cpu() for key, value in model.state_dict().items()},
        metadata=trainer.metadata()
        | {
            **describe_validation(validation_logits, dataset.labels[held_out]),
            "test_accuracy": test.accuracy,
        },
        history=trainer.history,
        epoch_seconds=trainer.epoch_seconds,
        validation_logits=validation_logits.cpu(),
        test_logits=test_logits.cpu(),
        test=test,
        flip_averaged_accuracy=evaluate(flip_averaged, dataset.test_labels).accuracy,
        tested_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def describe_validation(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what checkpoints state about validation logits (N, 10) and their labels (N,)."""
    return {
        "validation_accuracy": evaluate(logits, labels).accuracy,
        "temperature": fit_temperature(logits, labels),
        "energy_limit": energy(logits).quantile(FAMILIAR_SHARE).item(),
    }


def run_path(folder: Path, name: str, seed: int, suffix: str) -> Path:
    """Return the path of one of a run's files; see save_run for the suffixes."""
    return folder / f"{name}-seed{seed}{suffix}"


def save_weights(path: Path, run: Run) -> None:
    """Write a run's weights as a checkpoint; RunError if the file cannot be written."""
    save_tensors(path, run.weights, run.metadata)


def save_run(folder: Path, run: Run) -> None:
    """Write the files of a run: weights, predictions, and figures; RunError if that fails."""
    path = run_path(folder, run.name, run.seed, ".json")
    save_weights(path.with_suffix(SUFFIX), run)
    logits = {"validation_logits": run.validation_logits, "test_logits": run.test_logits}
    save_tensors(path.with_suffix(f".logits{SUFFIX}"), logits, {})
    # Last, so that a run with this file is complete.
    write_json(path, {"identity": run.identity, **run.measurements()})


def find_run(folder: Path, name: str, trainer: Trainer) -> Run | None:
    """Return the saved run that a trainer would repeat, or None if there is none.

    Raises:
        UsageError: If the saved run has other settings or data, or is damaged.
        RunError: If it cannot be read.
    """
    path = run_path(folder, name, trainer.seed, ".json")
    if not path.exists():
        return None
    identity = trainer.identity()
    try:
        figures = json.loads(path.read_bytes())
        saved = figures["identity"]
        for key in identity | saved:  # subclasses of Trainer add settings
            if saved.get(key) != identity.get(key):
                raise UsageError(
                    f"{path} is a run with {key} {saved.get(key)}, but this command has "
                    f"{identity.get(key)}"
                )
        weights, metadata = load_tensors(path.with_suffix(SUFFIX))
        logits, _ = load_tensors(path.with_suffix(f".logits{SUFFIX}"))
        # Rejects weights and metadata that do not fit the model.
        with torch.device("meta"):
            trainer.network(**metadata["arguments"]).load_state_dict(weights, assign=True)
        warn_of_differences(path, metadata["environment"], trainer.device)
        return Run(
            name=name,
            network=trainer.network,
            identity=saved,
            weights=weights,
            metadata=metadata,
            history=figures["history"],
            epoch_seconds=figures["epoch_seconds"],
            validation_logits=logits["validation_logits"],
            test_logits=logits["test_logits"],
            test=evaluate(logits["test_logits"], trainer.dataset.test_labels.cpu()),
            flip_averaged_accuracy=figures["flip_averaged_accuracy"],
            tested_at=figures["tested_at"],
        )
    except CONTENT_ERRORS as error:
        raise UsageError(f"{path} is damaged") from error


def find_runs(
    folder: Path, jobs: Iterable[Job], make_trainer: Callable[[str, int], Trainer]
) -> dict[Job, Run]:
    """Return the saved runs of these jobs; see find_run."""
    found = {job: find_run(folder, job[0], make_trainer(*job)) for job in jobs}
    return {job: run for job, run in found.items() if run}


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Explain that another process has ended, which torch reports as a broken connection."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this job has ended, see its own message. Finished runs are saved: "
            "repeat the command to train the others"
        ) from error


class Workers:
    """The processes that torchrun started, or this one alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        first: Whether this process downloads, prints and draws.
        device: What this process trains on; with several GPUs its own one.
    """

    def __init__(self, device: torch.device) -> None:
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        self.rank, self.size, local_rank, self._local_size = (
            int(os.environ.get(key, default)) for key, default in defaults.items()
        )
        self.first = self.rank == 0
        self.device = device
        if device.type == "cuda" and self.size > 1:
            if self._local_size > torch.cuda.device_count():
                raise UsageError(
                    f"{self._local_size} processes need as many GPUs, but this machine has "
                    f"{torch.cuda.device_count()}; start fewer processes"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)

    def __enter__(self) -> Self:
        """Divide the cores among the processes of this machine, and connect to the others.

        A single process keeps the number of threads that torch or OMP_NUM_THREADS chose.
        """
        if self.size > 1:
            affinity = getattr(os, "sched_getaffinity", None)  # exists on Linux only
            cores = len(affinity(0)) if affinity else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // self._local_size))
            # Python objects are exchanged on the CPU; NCCL serves the GPUs themselves.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=JOIN_TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect from the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, make: Callable[[], Shared]) -> Shared:
        """Call a function in the first process and return its result in all of them."""
        made: list[Any] = [make() if self.first else None]
        if self.size > 1:
            with _exchange():
                dist.broadcast_object_list(made, src=0)
        return made[0]

    def select(self, jobs: list[Job], done: Iterable[Job]) -> list[Job]:
        """Return this process's share of the jobs that no process has done."""
        finished = {job for part in self._collect(set(done)) for job in part}
        return [job for job in jobs if job not in finished][self.rank :: self.size]

    def gather(self, runs: dict[Job, Run]) -> dict[Job, Run]:
        """Return the runs of all processes."""
        return {job: run for part in self._collect(runs) for job, run in part.items()}

    def _collect(self, mine: Shared) -> list[Shared]:
        """Return the values of all processes, by rank."""
        everywhere: list[Any] = [mine] * self.size
        if self.size > 1:
            with _exchange():
                dist.all_gather_object(everywhere, mine)
        return everywhere
