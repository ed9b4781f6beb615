"""A training as a file: its state after each epoch, and what it reached. Loading runs no code."""

import hashlib
import inspect
import io
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fashion import data, dropout, optim
from fashion.data import Dataset
from fashion.evaluation import accuracy, predict
from fashion.files import write
from fashion.recipe import Recipe
from fashion.script import UserError

import torch
from torch import Tensor, nn


@dataclass
class Run:
    """A network that is trained with a recipe and a seed, and what it has reached."""

    name: str
    seed: int
    recipe: Recipe
    model: nn.Module
    environment: dict[str, Any]  # see device.environment, and the precision
    path: Path | None = None  # where the run is saved
    history: list[dict[str, float]] = field(default_factory=list)  # a row for each epoch
    logits: dict[str, Tensor] = field(default_factory=dict)  # of validation, test, mirrored test
    tested_at: str = ""  # time in UTC

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) == self.recipe.epochs

    @property
    def seconds(self) -> float:
        """Time of the training, validation included."""
        return sum(row["seconds"] for row in self.history)

    @property
    def probabilities(self) -> Tensor:
        """Probabilities (N, 10) of the test images, before calibration."""
        return self.logits["test"].softmax(1)

    def score(self, dataset: Dataset) -> None:
        """Predict validation and test images once, save the logits, and print the test accuracy."""
        if not self.logits:
            parts = {"validation": dataset.images[dataset.validation], "test": dataset.test_images}
            parts["mirrored"] = dataset.test_images.flip(2)
            for name, images in parts.items():
                self.logits[name] = predict(self.model, images, dataset.mean, dataset.std).cpu()
            self.tested_at = datetime.now(UTC).isoformat(timespec="seconds")
            if self.path:
                save(self)
        reached = accuracy(self.logits["test"], dataset.test_labels.cpu())
        print(f"{self.name.upper()}, seed {self.seed}: test accuracy {reached:.2%}")


@cache  # an edit during a training must not change its key
def source(part: Any) -> str:
    """Return the code of a module or function."""
    return inspect.getsource(part)


def key(run: Run, dataset: Dataset, train: Any) -> str:
    """Return a short hash of all that determines the weights: settings, data, precision and code.

    `train` is the function that trains. An edit of it, of the file of the network, or of data.py,
    dropout.py or optim.py gives another key, so that results of old code are never reused.
    """
    modules = [sys.modules[type(run.model).__module__], data, dropout, optim]
    code = [source(part) for part in (*modules, train)]
    settings = [asdict(run.recipe), run.seed, run.environment["precision"]]
    parts = [settings, dataset.fingerprint, dataset.images.device.type, code]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def save(run: Run, *optimizers: torch.optim.Optimizer) -> None:
    """Write a run; before its end with the optimizers that continue it."""
    content = {
        "weights": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": run.history,
        "logits": run.logits,
        "tested_at": run.tested_at,
        "environment": run.environment,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    assert run.path
    write(run.path, buffer.getvalue())


def resume(run: Run, *optimizers: torch.optim.Optimizer) -> None:
    """Load the state of a run and its optimizers from its file, if there is one."""
    if not run.path or not run.path.exists():
        return
    try:
        saved = torch.load(run.path, map_location="cpu", weights_only=True)
        run.model.load_state_dict(saved["weights"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=False):
            optimizer.load_state_dict(state)
        run.history, run.logits = saved["history"], saved["logits"]
        run.tested_at = saved["tested_at"]
        if run.finished:
            run.environment = saved["environment"]
    # torch documents no errors for damaged files, which can fail anywhere in its reader.
    except Exception as error:
        raise UserError(f"{run.path} is damaged: remove it, or train again with --fresh") from error
    done = "is finished already" if run.finished else f"continues after epoch {len(run.history)}"
    print(f"{run.name.upper()}, seed {run.seed}, {done}: {run.path}", flush=True)
