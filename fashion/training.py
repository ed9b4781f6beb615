"""Train one network.

The order and augmentation of the images draw from the trainer's own generator, initial weights and
dropout from torch's default generators. Evaluation draws no random numbers, so it does not affect
training.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fashion.checkpoint import load_state, save_state
from fashion.data import (
    CLASS_NAMES,
    Dataset,
    augment,
    normalize,
    pad,
    schedule_views,
    view_count,
)
from fashion.environment import (
    autocast,
    collect_versions,
    describe_environment,
    set_malloc,
    warn_of_differences,
)
from fashion.evaluation import evaluate, predict_logits
from fashion.files import RunError, UsageError
from fashion.layers import Network, conv_blocks
from fashion.muon import Muon
from fashion.recipe import Recipe

MUON_MOMENTUM = 0.95  # as in Jordan et al., see muon.py
# AdamW's learning rate when used with Muon, as a fraction of Muon's. Chosen on validation images.
ADAMW_SHARE = 0.3
RECORDED_FRAMES = 100  # after the initial one; ten seconds of animation


class DivergenceError(RunError):
    """The loss is no longer a finite number."""


def learning_rate_factor(total_steps: int, warmup: float, step: int) -> float:
    """Return the learning rate of a step as a share of its peak.

    It rises linearly over the first steps and falls linearly to zero after them.

    Args:
        total_steps: Steps of the whole training, at least 1.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        step: Counted from 0; total_steps, for which LambdaLR asks at the end, returns 0.
    """
    rising = math.floor(warmup * total_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total_steps - step) / (total_steps - rising)


def average_decay(window: int, step: int) -> float:
    """Return the decay of the moving average of the weights at a step, counted from 1.

    The decay rises with the steps, as in TensorFlow's ExponentialMovingAverage, so that the average
    of a short training does not consist of initial weights.

    Args:
        window: Number of steps that the average covers later, at least 1.
        step: Number of steps done.
    """
    return min(1 - 1 / window, (1 + step) / (10 + step))


def recorded_steps(total_steps: int) -> set[int]:
    """Return the step counts at which to record kernels: often at first, when they change most."""
    return {
        round(total_steps * (frame / RECORDED_FRAMES) ** 2) for frame in range(RECORDED_FRAMES + 1)
    }


def make_optimizers(
    model: nn.Module, recipe: Recipe, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Return AdamW alone, or Muon for the hidden layers' weights and AdamW for all else.

    AdamW updates the output layer, the last weight matrix, as Muon's authors recommend. The weight
    decay applies to AdamW's parameters only.

    Args:
        model: The model, on its device.
        recipe: Selects the optimizer, its peak learning rate and the weight decay.
        precision: Data type of Muon's matrix products.
    """
    adamw = partial(torch.optim.AdamW, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "adamw":
        return [adamw(model.parameters(), lr=recipe.learning_rate)]
    # The last weight matrix belongs to the output layer.
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1][:-1]
    chosen = set(map(id, weights))
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon(weights, recipe.learning_rate, MUON_MOMENTUM, precision),
        adamw(others, lr=ADAMW_SHARE * recipe.learning_rate),
    ]


class Trainer:
    """Trains one model and holds the state needed to resume.

    An epoch is one pass of step over batches, followed by validate. On the same CPU, two trainings
    with equal arguments end with equal weights, bit by bit, however often each was interrupted and
    resumed. Train one at a time in a process, since dropout draws from torch's global generator.

    Args:
        network: The class of the model.
        dataset: Training and validation images; its device is where the model is trained.
        recipe: Settings.
        seed: Seed of the initial weights, the order of the images, augmentation and dropout.
        precision: Data type of matrix products, torch.float32 or torch.bfloat16.
        record: Whether to record the kernels of the first convolution, see recorded_steps.

    Attributes:
        model: The model being trained.
        averaged: A copy of it with exponentially averaged weights, which is evaluated and saved.
        steps_per_epoch: Steps per epoch.
        batch_size: Images per step.
        learning_rate: Learning rate of the last step, of the first optimizer.
        history: One row per finished epoch, see validate. Excludes timings.
        epoch_seconds: Wall-clock time of each finished epoch, validation included.
        frames: Recorded averaged kernels (K, 1, height, width) by the number of steps.
    """

    def __init__(
        self,
        network: type[Network],
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        precision: torch.dtype,
        record: bool = False,
    ) -> None:
        # Keep freed memory. By default, glibc returns the large feature maps of every step to the
        # system and gets them back page by page, filled with zeros.
        set_malloc(mmap_max=0, trim_threshold=-1)
        self.network, self.dataset, self.recipe = network, dataset, recipe
        self.seed, self.precision = seed, precision
        self.device = dataset.images.device

        # The last, incomplete batch of an epoch is left out; shuffling changes its images.
        image_count = len(dataset.train_indices)
        self.batch_size = min(recipe.batch_size, image_count)
        self.steps_per_epoch = image_count // self.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch

        torch.manual_seed(seed)
        self.model = network(**recipe.model)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        self._window = max(1, min(recipe.ema_steps, self.total_steps // 10))
        self.optimizers = make_optimizers(self.model, recipe, precision)
        factor = partial(learning_rate_factor, self.total_steps, recipe.warmup)
        self.schedules = [LambdaLR(optimizer, factor) for optimizer in self.optimizers]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.padded = pad(dataset.images, recipe.shift)
        self._view_count = view_count(recipe.shift, recipe.flip)
        self._first_views, self._view_steps = schedule_views(
            len(dataset.images), self._view_count, self.generator
        )

        self.history: list[dict[str, float]] = []
        self.epoch_seconds: list[float] = []
        self.frames: dict[int, Tensor] = {}
        self.learning_rate = 0.0
        self._recorded_steps = recorded_steps(self.total_steps) if record else set()
        self._start_epoch()
        self._record_kernels()

    @property
    def finished(self) -> bool:
        """Whether all epochs of the recipe are done."""
        return len(self.history) == self.recipe.epochs

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of the finished epochs, validation included."""
        return sum(self.epoch_seconds)

    @property
    def _steps_done(self) -> int:
        """Number of steps since the start of the training."""
        return self.schedules[0].last_epoch

    def _start_epoch(self) -> None:
        """Reset what is collected over an epoch."""
        self._started = time.perf_counter()
        self._losses: list[Tensor] = []
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Start an epoch and yield its batches, shuffled and augmented.

        Yields:
            uint8 images of shape (N, 28, 28) and their int64 labels of shape (N,).
        """
        self._start_epoch()
        self.model.train()
        indices = self.dataset.train_indices
        order = torch.randperm(len(indices), generator=self.generator, device=self.device)
        order = order[: self.steps_per_epoch * self.batch_size]
        for chosen in indices[order].split(self.batch_size):
            yield self.show(chosen), self.dataset.labels[chosen]

    def show(self, indices: Tensor) -> Tensor:
        """Return the images with these indices, uint8 (N, 28, 28), as this epoch shows them."""
        recipe, views = self.recipe, self.choose_views(indices)
        return augment(self.padded, indices, views, recipe.shifted, recipe.flip, self.generator)

    def choose_views(self, indices: Tensor) -> Tensor:
        """Return the views, int64 (N,), in which this epoch shows these images; see augment."""
        passed = len(self.history) * self._view_steps[indices]
        return (self._first_views[indices] + passed) % self._view_count

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch: update the weights, then the learning rate, then the average.

        Args:
            images: uint8 images of shape (N, 28, 28), as batches yields them.
            labels: int64 labels of shape (N,).

        Returns:
            The loss, on the device: reading it makes the CPU wait for a GPU.
        """
        self._freeze_blocks()
        with autocast(self.device, self.precision):
            logits = self.model(normalize(images, self.dataset.mean, self.dataset.std))
            loss = self.loss(logits, images, labels)
        loss.backward()
        self.learning_rate = self.optimizers[0].param_groups[0]["lr"]
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        # The state_dict shares the model's memory, so this updates the average in place.
        averaged, current = _floating_tensors(self.averaged), _floating_tensors(self.model)
        update = get_ema_multi_avg_fn(average_decay(self._window, self._steps_done))
        update(averaged, current, None)
        self._losses.append(loss.detach())
        self._correct += (logits.argmax(1) == labels).sum()
        self._record_kernels()
        return self._losses[-1]

    def _freeze_blocks(self) -> None:
        """Freeze the convolutional blocks that the recipe trains only up to this step."""
        for block, share in zip(conv_blocks(self.model), self.recipe.freeze, strict=False):
            if self._steps_done >= share * self.total_steps:
                block.requires_grad_(False)

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (N, 10) and labels (N,), with label smoothing.

        The augmented images, uint8 (N, 28, 28), are for subclasses that need them.
        """
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def validate(self) -> dict[str, float]:
        """Finish an epoch: evaluate the averaged weights and append a row to the history.

        Returns:
            The row: epoch (from 1); train_loss and train_accuracy, means over the epoch of the
            weights in training, with dropout and augmentation, and label smoothing in the loss;
            validation_loss and validation_accuracy of the averaged weights, without any of these;
            learning_rate of the last step. Accuracies are fractions.

        Raises:
            DivergenceError: If the loss of a step, or of the validation images, is not finite.
        """
        losses = torch.stack(self._losses)
        self._check_finite(losses)
        dataset, chosen = self.dataset, self.dataset.validation_indices
        images, labels = dataset.images[chosen], dataset.labels[chosen]
        validation = evaluate(
            predict_logits(self.averaged, images, dataset.mean, dataset.std), labels
        )
        if not math.isfinite(validation.loss):
            raise DivergenceError(
                f"the validation loss of the {self.network.__name__} became {validation.loss} in "
                f"epoch {len(self.history) + 1}, {self._describe_learning_rate()}"
            )
        row = {
            "epoch": len(self.history) + 1,
            "train_loss": losses.mean().item(),
            "train_accuracy": self._correct.item() / (self.steps_per_epoch * self.batch_size),
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "learning_rate": self.learning_rate,
        }
        self.history.append(row)
        self.epoch_seconds.append(time.perf_counter() - self._started)
        return row

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch and return its row of the history; see validate."""
        for images, labels in self.batches():
            self.step(images, labels)
        return self.validate()

    def _check_finite(self, losses: Tensor) -> None:
        """Raise DivergenceError if one of an epoch's losses is not finite."""
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            step = int(broken[0])
            raise DivergenceError(
                f"the loss of the {self.network.__name__} became {losses[step].item()} in epoch "
                f"{len(self.history) + 1}, step {step + 1} of {self.steps_per_epoch}, "
                f"{self._describe_learning_rate()}"
            )

    def _describe_learning_rate(self) -> str:
        """Return the peak learning rate, in words for an error."""
        return f"with a peak learning rate of {self.recipe.learning_rate:g}"

    def _record_kernels(self) -> None:
        """Record the kernels of the first convolution if they are wanted at this step."""
        step = self._steps_done
        if step in self._recorded_steps:
            self.frames[step] = conv_blocks(self.averaged)[0].conv.weight.detach().cpu().clone()

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine every weight."""
        recipe = asdict(self.recipe)
        recipe.pop("model")  # the model's own arguments include the defaults
        return {
            "model": self.network.__name__,
            "dataset": self.dataset.name,
            "images": len(self.dataset.train_indices),
            "pixel_mean": self.dataset.mean,
            "seed": self.seed,
            "device": self.device.type,
            "precision": str(self.precision).removeprefix("torch."),
            **recipe,
            **self.model.arguments,
        }

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint says about the training; runs.score adds the results."""
        return {
            "class": self.network.__name__,
            "arguments": self.model.arguments,
            "mean": self.dataset.mean,
            "std": self.dataset.std,
            "class_names": list(CLASS_NAMES),
            "dataset": self.dataset.name,
            "seed": self.seed,
            "recipe": asdict(self.recipe) | {"model": self.model.arguments},
            "versions": collect_versions(),
            "environment": describe_environment(self.device),
        }

    def save(self, path: Path) -> None:
        """Write the state that resume needs to continue exactly.

        Raises:
            RunError: If the file cannot be written.
        """
        state = {
            "identity": self.identity(),
            "environment": describe_environment(self.device),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "generator": self.generator.get_state(),
            "default_generator": _rng_module(self.device).get_rng_state(),
            "history": self.history,
            "epoch_seconds": self.epoch_seconds,
            "frames": self.frames,
        }
        save_state(path, state)

    def resume(self, path: Path) -> None:
        """Restore the state that save wrote.

        Raises:
            UsageError: If the file is damaged or was written with other settings.
            RunError: If it cannot be read.
        """
        state = load_state(path)
        damaged = f"{path} is damaged or not a file to resume from"
        saved = state.get("identity")
        if not isinstance(saved, dict):
            raise UsageError(damaged)
        identity = self.identity()
        for setting in identity | saved:
            value = identity.get(setting)
            if saved.get(setting) != value:
                raise UsageError(
                    f"{path} is from a run with {setting} {saved.get(setting)}, "
                    f"but this run has {value}"
                )
        warn_of_differences(path, state.get("environment"), self.device)
        if self._recorded_steps and not state.get("frames"):
            raise UsageError(f"{path} is from a run that did not record kernels")
        try:
            self.model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            for kind in ("optimizers", "schedules"):
                for part, content in zip(getattr(self, kind), state[kind], strict=True):
                    part.load_state_dict(content)
            self.generator.set_state(state["generator"])
            _rng_module(self.device).set_rng_state(state["default_generator"])
            self.history = list(state["history"])
            self.epoch_seconds = list(state["epoch_seconds"])
            self.frames = dict(state["frames"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(damaged) from error


def describe_unfinished(path: Path) -> str | None:
    """Return what a file to resume from holds, or None if its training is finished or lost.

    Args:
        path: Where Trainer.save writes.

    Raises:
        RunError: If the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        state = load_state(path)
        identity, done = state["identity"], len(state["history"])
        if done >= identity["epochs"]:
            return None
        return f"{done} of {identity['epochs']} epochs of a run with seed {identity['seed']}"
    except (UsageError, KeyError, TypeError):
        return None  # nothing can be resumed from a damaged file


def _floating_tensors(model: nn.Module) -> list[Tensor]:
    """Return the weights and statistics of a model, without batch norm's counters."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def _rng_module(device: torch.device) -> Any:
    """Return the module that holds the state of the generator for dropout on this device."""
    return {"cpu": torch, "cuda": torch.cuda, "mps": torch.mps}[device.type]
