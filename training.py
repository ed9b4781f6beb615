"""Train a model, keep what a later run needs, and evaluate it.

Everything that a training draws at random comes from two generators: the trainer's own one for
order and augmentation, torch's default one for dropout. Evaluation draws from neither, so looking
in between changes nothing.
"""

import copy
import ctypes
import hashlib
import io
import math
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cnn import CNN
from data import (
    CLASS_COUNT,
    CLASS_NAMES,
    IMAGE_SIZE,
    TITLES,
    Dataset,
    augment,
    cut_out,
    normalize,
    pad,
)
from ffn import FFN
from files import UserMistake, WorldFault, write_file
from muon import Muon

MODELS: dict[str, type[FFN] | type[CNN]] = {"ffn": FFN, "cnn": CNN}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        model: arguments of the model's class, by name.
        epochs: times that each training image is seen.
        batch_size: images a step.
        optimizer: of the hidden layers' weights, "muon" or "adamw"; AdamW trains all else.
        learning_rate: of that optimizer at its peak, see learning_rate_factor.
        weight_decay: of AdamW (Loshchilov and Hutter, arXiv:1711.05101).
        warmup: share of the steps in which the learning rate rises, in [0, 1).
        label_smoothing: share of each label spread over all classes (Szegedy et al.,
            arXiv:1512.00567), in [0, 1).
        shift: images are shifted by up to so many pixels, both ways.
        shifted: share of the images that are, in [0, 1].
        flip: whether half of the images is mirrored.
        cutout: side in pixels of the square that is blacked out in each image; 0 for none.
        ema_steps: the weights that are evaluated and kept are an exponential moving average over
            about so many last steps, but never over more than a tenth of the training.
    """

    model: dict[str, Any]

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    shift: int
    shifted: float
    flip: bool
    cutout: int
    ema_steps: int


# Chosen on the validation images, for the best accuracy of both together in five minutes of two
# CPU cores.
RECIPES = {
    "ffn": Recipe(
        model={"widths": (512, 256, 128, 64), "dropout": 0.15},
        epochs=120,  # an epoch takes less than half a second, so it can have many
        batch_size=1024,  # large products are quick ones, and twice as large is no quicker
        # Muon learns more in an epoch, and its products take longer than all others here together:
        # the same time of AdamW learns as much, by a network half as wide.
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=0.01,  # AdamW's default
        warmup=0.1,  # the first steps are full of what all pictures share
        label_smoothing=0.05,  # some labels are wrong; it also keeps probabilities modest
        # Without locality, a shifted picture is another picture: some of them keep the network
        # from learning the others by heart, and all of them would be a harder task.
        shift=1,
        shifted=0.7,
        flip=True,  # clothes look the same in a mirror
        cutout=0,
        ema_steps=100,  # two epochs: smooth, and close to the last weights
    ),
    "cnn": Recipe(
        model={"channels": (32, 64, 128), "widths": (256, 128), "dropout": 0.3},
        epochs=32,  # what five minutes leave beside the FFN
        batch_size=512,  # as accurate as 256, and Muon's share of the time is half as large
        optimizer="muon",
        learning_rate=0.015,  # in batches of 256 half and twice of 0.01 were no better
        weight_decay=0.01,
        warmup=0.1,
        label_smoothing=0.05,
        shift=1,  # the pictures are centred already, two pixels cost accuracy
        shifted=1.0,
        flip=True,
        cutout=0,
        ema_steps=100,
    ),
}

# Chosen on the same images for accuracy alone, in less than 45 minutes of two CPU cores for both.
BEST_RECIPES = {
    # Made for --teacher: what a CNN says of a shifted picture is worth learning, and hard enough
    # that little dropout is needed on top.
    "ffn": replace(
        RECIPES["ffn"],
        model={"widths": (1024, 512, 256, 128), "dropout": 0.1},
        epochs=60,
        optimizer="muon",
        learning_rate=0.03,  # more than the CNN's, as the batches are larger
        shifted=1.0,
    ),
    # More kernels learn more, and by heart too: cutout is against that.
    "cnn": replace(
        RECIPES["cnn"],
        model={"channels": (64, 128, 256), "widths": (256, 128), "dropout": 0.3},
        epochs=40,
        cutout=7,
    ),
}

# Muon's momentum, as its authors use it.
MUON_MOMENTUM = 0.95
# AdamW's learning rate beside Muon as a share of Muon's, whose steps are of another size.
ADAMW_SHARE = 0.3

# Kernels that Trainer keeps from first step to last, if asked to: ten seconds of moving pictures.
RECORDED_FRAMES = 100

# Images of one evaluation step: so few that the CNN's maps fit into a processor's cache, which
# makes it twice as fast as with 1,000.
EVALUATION_BATCH_SIZE = 250


# The largest file that is read: a hundred times what the networks here need.
MAX_CHECKPOINT_BYTES = 1_000_000_000

# Numbers of two settings in glibc's malloc.h, see mallopt(3).
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" takes CUDA, else MPS, else the CPU.

    Raises:
        UserMistake: when this machine or this build of torch has no such device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise UserMistake(f"--device {name}: torch finds no such device here; use --device cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that products are computed in: float32 or bfloat16.

    "auto" takes bfloat16 where the hardware multiplies in it; elsewhere it is emulated, and slower.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        in_hardware = any(
            capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "sve_bf16")
        )
    else:
        in_hardware = False
    return torch.bfloat16 if in_hardware else torch.float32


def choose_deterministic_algorithms() -> None:
    """Let a GPU give the same bits for the same seed, where torch has a way to; a CPU always does.

    Call it before the GPU is first used: cuBLAS reads its setting then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def set_malloc(mmap_max: int, trim_threshold: int) -> None:
    """Set how this process gets memory from the system and gives it back; only glibc has this.

    Args:
        mmap_max: how many large blocks may be got each by itself, to be given back when freed.
        trim_threshold: bytes at the heap's end that are kept when free; -1 keeps all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, mmap_max)
        mallopt(M_TRIM_THRESHOLD, trim_threshold)


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def summarize(model: nn.Module) -> str:
    """Return the model's layers as a table: name, kind, output shape, parameters."""
    rows: list[tuple[str, str, str, str]] = []

    def note_layer(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            shape = " × ".join(map(str, output.shape[1:]))
            rows.append((name, type(layer).__name__, shape, f"{count_parameters(layer):,}"))

        return hook

    leaves = [(name, part) for name, part in model.named_modules() if not list(part.children())]
    hooks = [part.register_forward_hook(note_layer(name)) for name, part in leaves]
    training = model.training
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    model.train(training)
    for hook in hooks:
        hook.remove()

    rows = [
        ("layer", "kind", "output", "parameters"),
        *rows,
        ("", "", "total", f"{count_parameters(model):,}"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  {count:>{widths[3]}}"
        for name, kind, shape, count in rows
    )


def learning_rate_factor(total_steps: int, warmup: float, step: int) -> float:
    """Return the share of the peak learning rate to use at a step.

    It rises in a line over the first steps, then falls in a line to zero.

    Args:
        total_steps: of the whole training, at least 1.
        warmup: share of them in which the learning rate rises, in [0, 1).
        step: from 0; one after the last is allowed, and gives 0.
    """
    rising = math.floor(warmup * total_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total_steps - step) / (total_steps - rising)


def recorded_steps(total_steps: int) -> set[int]:
    """Return after how many steps kernels are kept: often at first, when they change most."""
    return {
        round(total_steps * (frame / RECORDED_FRAMES) ** 2) for frame in range(RECORDED_FRAMES + 1)
    }


def make_optimizers(
    model: nn.Module, recipe: Recipe, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Return AdamW alone, or Muon for the weights of all hidden layers and AdamW for all else.

    The output layer goes to AdamW, as Muon's authors advise: its rows are the ten classes, and no
    hidden directions among which balance would pay.
    """
    adamw = partial(torch.optim.AdamW, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "adamw":
        return [adamw(model.parameters(), lr=recipe.learning_rate)]
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1][:-1]
    chosen = set(map(id, weights))
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon(weights, recipe.learning_rate, MUON_MOMENTUM, precision),
        adamw(others, lr=ADAMW_SHARE * recipe.learning_rate),
    ]


def _floating_tensors(model: nn.Module) -> list[Tensor]:
    """Return weights and the batch norms' statistics, without their counters of batches."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


class Trainer:
    """One model's training: all that changes while it goes on, and the step from epoch to epoch.

    Two trainers of equal arguments end with equal weights, bit for bit on the same machine, however
    often each was stopped, saved and resumed in between.

    Args:
        name: a key of MODELS.
        dataset: what to train and validate on.
        recipe: how.
        seed: of the first weights, order, augmentation and dropout.
        precision: torch.float32 or torch.bfloat16, in which products are computed.
        teacher: a trained model whose probabilities take the place of the labels (Hinton et al.,
            arXiv:1503.02531), or None.
        record: whether to keep the first convolution's kernels on the way, see recorded_steps.

    Attributes:
        model: the weights in training.
        averaged: their moving average, which is evaluated and kept.
        history: one entry a finished epoch, see train_epoch. It holds nothing that a clock says.
        epoch_seconds: wall-clock time of each finished epoch.
        frames: the averaged kernels that were kept, by the number of steps done.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        precision: torch.dtype,
        teacher: "Checkpoint | None" = None,
        record: bool = False,
    ) -> None:
        # By default the large feature maps of each step come from the system anew, page by page
        # and filled with zeros, which is a quarter of the CNN's time.
        set_malloc(mmap_max=0, trim_threshold=-1)
        self.name, self.dataset, self.recipe = name, dataset, recipe
        self.seed, self.precision, self.teacher = seed, precision, teacher
        if teacher:
            teacher.model.to(dataset.images.device)
        self.device = dataset.images.device

        # With fewer images than a batch they are one batch; else the last, incomplete batch is left
        # out, other images each time.
        image_count = len(dataset.train_indices)
        self.batch_size = min(recipe.batch_size, image_count)
        self.steps = image_count // self.batch_size
        self.total_steps = recipe.epochs * self.steps

        torch.manual_seed(seed)
        self.model = MODELS[name](**recipe.model)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        window = max(1, min(recipe.ema_steps, self.total_steps // 10))
        self._average = get_ema_multi_avg_fn(1 - 1 / window)
        self.optimizers = make_optimizers(self.model, recipe, precision)
        factor = partial(learning_rate_factor, self.total_steps, recipe.warmup)
        self.schedules = [LambdaLR(optimizer, factor) for optimizer in self.optimizers]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.padded = pad(dataset.images, recipe.shift)
        self.history: list[dict[str, float]] = []
        self.epoch_seconds: list[float] = []
        self.recorded_steps = recorded_steps(self.total_steps) if record else set()
        self.frames: dict[int, Tensor] = {}
        self._keep_frame(0)

    @property
    def finished(self) -> bool:
        """Whether all epochs of the recipe are done."""
        return len(self.history) == self.recipe.epochs

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of the finished epochs, validation included."""
        return sum(self.epoch_seconds)

    def train_epoch(self, progress: Callable[[Iterator], Iterator] = iter) -> dict[str, float]:
        """Train one epoch, validate, and return the new entry of the history.

        Args:
            progress: wraps the iterator over steps, which yields the loss of each as a tensor, to
                show a bar.

        Returns:
            epoch (from 1), train_loss and train_accuracy (running means over the epoch, with
            dropout, augmentation and label smoothing on), validation_loss and validation_accuracy
            (of the averaged weights, nothing of that on), learning_rate (of the last step).
            Accuracies are fractions.

        Raises:
            WorldFault: when the loss is no longer a number.
        """
        start = time.perf_counter()
        losses = torch.zeros(self.steps, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        learning_rate = 0.0
        self.model.train()
        for step, (loss, hits) in enumerate(progress(self.train_steps())):
            losses[step] = loss
            correct += hits
            learning_rate = self.optimizers[0].param_groups[0]["lr"]
        self._check_finite(losses)

        dataset = self.dataset
        chosen = dataset.validation_indices
        validation = evaluate(
            predict_logits(
                self.averaged, dataset.images[chosen], dataset.mean, dataset.std, self.precision
            ),
            dataset.labels[chosen],
        )
        entry = {
            "epoch": len(self.history) + 1,
            "train_loss": losses.mean().item(),
            "train_accuracy": correct.item() / (self.steps * self.batch_size),
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "learning_rate": learning_rate,
        }
        self.history.append(entry)
        self.epoch_seconds.append(time.perf_counter() - start)
        return entry

    def train_steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Train one epoch step by step; yield each one's loss and number of correct predictions.

        Both stay on the device: reading them here would make the CPU wait for a GPU at every step.
        """
        indices = self.dataset.train_indices
        order = torch.randperm(len(indices), generator=self.generator, device=self.device)
        order = order[: self.steps * self.batch_size]
        done = len(self.history) * self.steps
        for step, chosen in enumerate(indices[order].split(self.batch_size), start=done + 1):
            recipe, generator = self.recipe, self.generator
            images = augment(self.padded, chosen, recipe.shifted, recipe.flip, generator)
            if recipe.cutout:
                images = cut_out(images, recipe.cutout, generator)
            labels = self.dataset.labels[chosen]
            with _autocast(self.device, self.precision):
                logits = self.model(normalize(images, self.dataset.mean, self.dataset.std))
                loss = self._loss(logits, images, labels)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self._average(*map(_floating_tensors, (self.averaged, self.model)), None)
            self._keep_frame(step)
            yield loss.detach(), (logits.argmax(1) == labels).sum()
            for schedule in self.schedules:
                schedule.step()

    def _keep_frame(self, step: int) -> None:
        """Keep the first convolution's kernels after so many steps, if they are wanted then."""
        if step in self.recorded_steps:
            self.frames[step] = self.averaged.blocks[0].conv.weight.detach().clone()

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy with the labels, or with what the teacher says of images.

        The teacher sees the images as augmented, and so has something to say that no label does.
        """
        if not self.teacher:
            return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        teacher = self.teacher
        answers = predict_logits(teacher.model, images, teacher.mean, teacher.std, self.precision)
        return F.cross_entropy(logits, answers.softmax(1))

    def _check_finite(self, losses: Tensor) -> None:
        """Raise WorldFault when one of an epoch's losses is not a finite number."""
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            raise WorldFault(
                f"{self.name}: the loss became {losses[broken[0]].item()} in epoch "
                f"{len(self.history) + 1}, step {broken[0].item() + 1} of {self.steps}, with a "
                f"peak learning rate of {self.recipe.learning_rate:g}; try a lower --lr, say "
                f"{self.recipe.learning_rate / 10:.1g}"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide every weight, by the name of their option."""
        recipe = asdict(self.recipe)
        recipe.pop("model")  # the model itself says all its arguments, defaults included
        return {
            "model": self.name,
            "dataset": self.dataset.name,
            "images": len(self.dataset.train_indices),
            "pixel mean": self.dataset.mean,
            "seed": self.seed,
            "device": self.device.type,
            "precision": str(self.precision).removeprefix("torch."),
            "teacher": self.teacher.fingerprint if self.teacher else None,
            "epochs": recipe.pop("epochs"),
            "batch-size": recipe.pop("batch_size"),
            "lr": recipe.pop("learning_rate"),
            "weight-decay": recipe.pop("weight_decay"),
            **recipe,
            **self.model.arguments,
        }

    def save(self, path: Path) -> None:
        """Write all that resume needs to go on from here as if nothing had happened.

        Raises:
            WorldFault: when the file cannot be written.
        """
        state = {
            "identity": self.identity(),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "generator": self.generator.get_state(),
            "default_generator": _default_generator_state(self.device),
            "history": self.history,
            "epoch_seconds": self.epoch_seconds,
            "frames": self.frames,
        }
        write_tensors(path, state)

    def resume(self, path: Path) -> None:
        """Take up the state that save wrote.

        Raises:
            UserMistake: when it comes from other settings, or is no such file.
            WorldFault: when it cannot be read.
        """
        state = read_tensors(path)
        advice = f"{path} is damaged or no file to resume from; train again without --resume"
        if not isinstance(state.get("identity"), dict):
            raise UserMistake(advice)
        then, now = state["identity"], self.identity()
        for setting, value in now.items():
            if then.get(setting) != value:
                raise UserMistake(
                    f"--resume: {path} was trained with {setting} {then.get(setting)}, this run "
                    f"has {value}; use the same settings, or train again without --resume"
                )
        if self.recorded_steps and not state.get("frames"):
            raise UserMistake(
                f"--record: the first epochs in {path} were trained without it; leave it out, or "
                "train again without --resume"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            for kind in ("optimizers", "schedules"):
                for part, content in zip(getattr(self, kind), state[kind], strict=True):
                    part.load_state_dict(content)
            self.generator.set_state(state["generator"])
            _set_default_generator_state(self.device, state["default_generator"])
            self.history = list(state["history"])
            self.epoch_seconds = list(state["epoch_seconds"])
            self.frames = dict(state["frames"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserMistake(advice) from error


def _default_generator_state(device: torch.device) -> Tensor:
    """Return the state of the generator that dropout on this device draws from."""
    return torch.get_rng_state() if device.type == "cpu" else _device_module(device).get_rng_state()


def _set_default_generator_state(device: torch.device, state: Tensor) -> None:
    """Set the state of the generator that dropout on this device draws from."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        _device_module(device).set_rng_state(state)


def _device_module(device: torch.device) -> Any:
    return {"cuda": torch.cuda, "mps": torch.mps}[device.type]


def _autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Compute products in that precision; with float32 nothing changes."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: Tensor, mean: float, std: float, precision: torch.dtype
) -> Tensor:
    """Return the model's logits (N, 10), float32, for uint8 images (N, 28, 28).

    The model is in evaluation mode meanwhile, and again in its own one after.
    """
    training = model.training
    model.eval()
    with _autocast(images.device, precision):
        logits = [
            model(normalize(batch, mean, std)).float()
            for batch in images.split(EVALUATION_BATCH_SIZE)
        ]
    model.train(training)
    return torch.cat(logits)


def average_over_flip(
    model: nn.Module, images: Tensor, mean: float, std: float, precision: torch.dtype
) -> Tensor:
    """Return logits (N, 10) of the mean probabilities of each image and its mirror image.

    The mean of two views is often better than either, for twice the time (see predict_logits for
    the arguments).
    """
    views = [
        predict_logits(model, view, mean, std, precision).log_softmax(1)
        for view in (images, images.flip(2))
    ]
    # A common factor, here the half of a mean, changes no probability of a softmax.
    return torch.logaddexp(*views)


@dataclass(frozen=True)
class Evaluation:
    """How predictions compare with the labels.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: fraction of correct predictions.
        accuracy_by_class: the same for each true class; NaN for a class without images.
        confusion_matrix: rows the true class, columns the predicted one, in images.
    """

    loss: float
    accuracy: float
    accuracy_by_class: list[float]
    confusion_matrix: list[list[int]]


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compare logits (N, 10) with labels (N,)."""
    pairs = labels * CLASS_COUNT + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=CLASS_COUNT**2).view(CLASS_COUNT, CLASS_COUNT)
    correct = confusion.diagonal()
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=(correct.sum() / confusion.sum()).item(),
        accuracy_by_class=(correct / confusion.sum(1)).tolist(),
        confusion_matrix=confusion.tolist(),
    )


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with all that is needed to use it.

    Attributes:
        name: a key of MODELS.
        model: on the CPU, in evaluation mode.
        mean, std: the normalisation that it was trained with.
        class_names: of its ten outputs.
        dataset: a key of data.TITLES, what it was trained on.
        seed: of its first weights.
        fingerprint: MD5 of the file, which tells one checkpoint from another.
    """

    name: str
    model: FFN | CNN
    mean: float
    std: float
    class_names: list[str]
    dataset: str
    seed: int
    fingerprint: str


def checkpoint_content(trainer: Trainer) -> dict[str, Any]:
    """Return the averaged weights with what is needed to rebuild the model and use it."""
    model = trainer.averaged
    return {
        "model": trainer.name,
        "arguments": model.arguments,
        "weights": {key: value.cpu() for key, value in model.state_dict().items()},
        "mean": trainer.dataset.mean,
        "std": trainer.dataset.std,
        "class_names": list(CLASS_NAMES),
        "dataset": trainer.dataset.name,
        "title": trainer.dataset.title,
        "seed": trainer.seed,
    }


def load_checkpoint(path: Path, expected: str) -> Checkpoint:
    """Read a file of checkpoint_content, as data only: no code in the file is run.

    Args:
        path: the file.
        expected: the model that it must hold, a key of MODELS.

    Raises:
        UserMistake: when there is no file, or it is damaged, another model's, or none of ours.
        WorldFault: when it cannot be read.
    """
    if not path.exists():
        raise UserMistake(
            f"there is no checkpoint {path}; make one with: python fashionmnist.py"
            + ("" if path.parent == Path("outputs") else f" --out {path.parent}")
        )
    state = read_tensors(path)
    name = str(state.get("model"))
    if name in MODELS and name != expected:
        raise UserMistake(f"{path} holds model {name}, and {expected} is needed")
    try:
        # Without memory of its own until the weights fit: the arguments may ask for any size.
        with torch.device("meta"):
            model = MODELS[name](**state["arguments"])
        kinds = [value.dtype for value in model.state_dict().values()]
        model.load_state_dict(state["weights"], assign=True)
        model.to(memory_format=torch.channels_last)
        checkpoint = Checkpoint(
            name=name,
            model=model.eval(),
            mean=float(state["mean"]),
            std=float(state["std"]),
            class_names=[str(name) for name in state["class_names"]],
            dataset=state["dataset"],
            seed=int(state["seed"]),
            fingerprint=hashlib.md5(path.read_bytes()).hexdigest(),
        )
        numbers = [*model.state_dict().values(), torch.tensor([checkpoint.mean, checkpoint.std])]
        usable = (
            checkpoint.dataset in TITLES
            and len(checkpoint.class_names) == CLASS_COUNT
            and checkpoint.std > 0
            and kinds == [value.dtype for value in model.state_dict().values()]
            and all(tensor.isfinite().all() for tensor in numbers)
        )
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserMistake(_not_a_checkpoint(path)) from error
    if not usable:
        raise UserMistake(_not_a_checkpoint(path))
    return checkpoint


@dataclass(frozen=True)
class Recording:
    """How the first convolution's kernels changed while a CNN learned.

    Attributes:
        steps: numbers of training steps, ascending from 0 to all.
        kernels: (F, K, 1, height, width), the averaged weights after each of these.
        steps_per_epoch: of the training.
    """

    steps: list[int]
    kernels: Tensor
    steps_per_epoch: int


def save_recording(trainer: Trainer, path: Path) -> None:
    """Write the frames that a finished trainer kept, see load_recording.

    Raises:
        WorldFault: when the file cannot be written.
    """
    content = {
        "steps": list(trainer.frames),
        "kernels": torch.stack(list(trainer.frames.values())).cpu(),
        "steps_per_epoch": trainer.steps,
    }
    write_tensors(path, content)


def load_recording(path: Path, checkpoint: Checkpoint) -> Recording | None:
    """Read what save_recording wrote; None when there is no file, or it is of another training.

    Raises:
        UserMistake: when the file is damaged or none of ours.
        WorldFault: when it cannot be read.
    """
    if not path.exists():
        return None
    try:
        recording = Recording(**read_tensors(path))
        belongs = torch.equal(recording.kernels[-1], checkpoint.model.blocks[0].conv.weight)
        usable = (
            len(recording.steps) == len(recording.kernels)
            and all(isinstance(step, int) for step in recording.steps)
            and recording.steps_per_epoch > 0
        )
    except (TypeError, IndexError, AttributeError) as error:
        raise UserMistake(f"{path} is damaged or no recording; remove it") from error
    if not usable or not recording.kernels.isfinite().all():
        raise UserMistake(f"{path} is damaged or no recording; remove it")
    return recording if belongs else None


def _not_a_checkpoint(path: Path) -> str:
    return (
        f"{path} is damaged or no checkpoint of this project; make one with: python fashionmnist.py"
    )


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors, numbers and strings, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors, numbers and strings; anything else in the file is refused.

    Raises:
        UserMistake: when the file is damaged or holds anything but data.
        WorldFault: when it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_CHECKPOINT_BYTES:
            raise UserMistake(f"{path} has {size:,} bytes, which is no checkpoint of this project")
        content = path.read_bytes()
    except OSError as error:
        raise WorldFault(f"cannot read {path}: {error.strerror or error}") from error
    try:
        _check_sizes(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        usable = isinstance(state, dict) and all(map(_is_stored_whole, _tensors_in(state)))
    except pickle.UnpicklingError as error:
        raise UserMistake(
            f"{path} is damaged, or holds something that is not data and was not loaded"
        ) from error
    # A damaged file can fail in any way: torch's reader promises no kind of error.
    except Exception as error:
        raise UserMistake(_not_a_checkpoint(path)) from error
    if not usable:
        raise UserMistake(_not_a_checkpoint(path))
    return state


def _check_sizes(content: bytes) -> None:
    """Raise ValueError when a file unpacks to more than it holds: torch.save never packs."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("the entries are larger than the file")


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for part in value.values() for tensor in _tensors_in(part))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in _tensors_in(part))


def _is_stored_whole(tensor: Tensor) -> bool:
    """Whether a file holds all of a tensor's elements; if not, copying it could fill the memory."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def format_duration(seconds: float) -> str:
    """Return a time as one reads it: "8.4 s", "2 min 5 s" or "1 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
