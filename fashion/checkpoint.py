"""Files of a training: weights as safetensors, recorded kernels, and the state to resume from.

None of the readers runs code from a file.
"""

import contextlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fashion.data import CLASS_COUNT, TITLES
from fashion.files import RunError, UsageError, write_file
from fashion.layers import Network, conv_blocks

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
RECORDING_NAME = f"recording{SUFFIX}"
# What reading damaged or hostile metadata and weights can raise.
CONTENT_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Report errors of a block that reads a file of this kind."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except CONTENT_ERRORS as error:
        raise UsageError(f"{path} is damaged or not a {kind} of this project") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and metadata, values that JSON can represent, as a safetensors file.

    Raises:
        RunError: If the file cannot be written.
    """
    contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    write_file(path, save(contiguous, texts))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save_tensors wrote.

    Raises:
        UsageError: If the file is damaged.
        RunError: If it cannot be read.
    """
    with _reading(path, "file"), safe_open(path, framework="pt") as file:
        # Clones do not depend on the file, which is mapped into memory.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        return tensors, {key: json.loads(text) for key, text in (file.metadata() or {}).items()}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything needed to use it.

    Attributes:
        model: On the CPU, in evaluation mode.
        mean, std: Pixel statistics that the model was trained with.
        dataset: Name of the dataset that it was trained on, a key of data.TITLES.
        seed: Seed of its initial weights.
        temperature: Divides the logits before softmax, see evaluation.fit_temperature.
        energy_limit: Images of higher energy are unlike the training images, see evaluation.energy.
        metadata: Everything that the file says, see Trainer.metadata and runs.score.
    """

    model: Network
    mean: float
    std: float
    dataset: str
    seed: int
    temperature: float
    energy_limit: float
    metadata: dict[str, Any]


def load_weights(path: Path, network: type[Network]) -> Checkpoint:
    """Read the weights of a model of this class and rebuild it from the metadata.

    Raises:
        UsageError: If the file is missing, damaged, or belongs to another class.
        RunError: If it cannot be read.
    """
    if not path.exists():
        raise UsageError(_describe_missing(path))
    weights, metadata = load_tensors(path)
    with _reading(path, "checkpoint"):
        if (name := metadata["class"]) != network.__name__:
            raise UsageError(f"{path} holds a model of class {name}, not {network.__name__}")
        # Shipped weights are rounded to 16 bits.
        weights = {k: v.float() if v.dtype == torch.float16 else v for k, v in weights.items()}
        # No memory is allocated before the weights fit: arguments can ask for any size.
        with torch.device("meta"):
            model = network(**metadata["arguments"])
        if "temperature" not in metadata or model.arguments.keys() != metadata["arguments"].keys():
            raise UsageError(f"{path} was written by an earlier version of this project")
        dtypes = [value.dtype for value in model.state_dict().values()]
        model.load_state_dict(weights, assign=True)
        model.to(memory_format=torch.channels_last)
        seed = int(metadata["seed"])
        mean, std, temperature, energy_limit = numbers = [
            float(metadata[key]) for key in ("mean", "std", "temperature", "energy_limit")
        ]
        values = list(model.state_dict().values())
        if not (
            metadata["dataset"] in TITLES
            and len(metadata["class_names"]) == CLASS_COUNT
            and min(std, temperature) > 0
            and 0 <= seed < 2**63
            and dtypes == [value.dtype for value in values]
            and all(value.isfinite().all() for value in (*values, torch.tensor(numbers)))
        ):
            raise ValueError("contradictory content")
        dataset = metadata["dataset"]
        return Checkpoint(
            model.eval(), mean, std, dataset, seed, temperature, energy_limit, metadata
        )


def load_models(
    paths: Mapping[str, Path], networks: Mapping[str, type[Network]]
) -> dict[str, Checkpoint]:
    """Load models by name. One whose file is missing is left out with a warning in the log.

    Raises:
        UsageError: If all files are missing, if one is damaged, or if the models were trained on
            different datasets.
        RunError: If a file cannot be read.
    """
    missing = [path for path in paths.values() if not path.exists()]
    if len(missing) == len(paths):
        raise UsageError(" and ".join(map(_describe_missing, missing)))
    for path in missing:
        logger.warning("%s; this model is left out", _describe_missing(path))
    models = {
        name: load_weights(path, networks[name])
        for name, path in paths.items()
        if path not in missing
    }
    if len({model.dataset for model in models.values()}) > 1:
        trained = (f"{paths[name]} on {TITLES[model.dataset]}" for name, model in models.items())
        raise UsageError(f"the models were trained on different data: {', '.join(trained)}")
    return models


def _describe_missing(path: Path) -> str:
    """Say that a file is missing, and why, if an earlier version of the project wrote it."""
    old = path.with_suffix(".pt")
    if old.exists():
        return f"{old} has a format that is no longer read, and {path.name} does not exist"
    return f"{path} does not exist"


@dataclass(frozen=True)
class Recording:
    """How the kernels of the first convolution changed during a training.

    Attributes:
        steps: Numbers of training steps, ascending from 0 to all.
        kernels: The averaged weights after each of these, (F, K, 1, height, width).
        steps_per_epoch: Steps of each epoch.
    """

    steps: list[int]
    kernels: Tensor
    steps_per_epoch: int


def save_recording(path: Path, frames: Mapping[int, Tensor], steps_per_epoch: int) -> None:
    """Write recorded kernels, by the number of steps; see Recording.

    Raises:
        RunError: If the file cannot be written.
    """
    metadata = {"steps": list(frames), "steps_per_epoch": steps_per_epoch}
    save_tensors(path, {"kernels": torch.stack(list(frames.values()))}, metadata)


def load_recording(path: Path, model: Network) -> Recording | None:
    """Read recorded kernels; None if the file is missing or belongs to another model.

    Raises:
        UsageError: If the file is damaged.
        RunError: If it cannot be read.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    with _reading(path, "recording"):
        recording = Recording(kernels=tensors["kernels"], **metadata)
        if not (
            len(recording.steps) == len(recording.kernels)
            and all(isinstance(step, int) and 0 <= step < 2**63 for step in recording.steps)
            and recording.steps_per_epoch > 0
            and recording.kernels.isfinite().all()
        ):
            raise ValueError("contradictory content")
        belongs = torch.equal(recording.kernels[-1], conv_blocks(model)[0].conv.weight)
        return recording if belongs else None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state to resume from: tensors, numbers and strings, nested as needed.

    Raises:
        RunError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote. Files with anything but data are rejected.

    Raises:
        UsageError: If the file is damaged.
        RunError: If it cannot be read.
    """
    with _reading(path, "file"):
        content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            if archive.testzip():  # torch does not compare the checksums
                raise ValueError("wrong checksum")
        content.seek(0)
        return {**torch.load(content, map_location="cpu", weights_only=True)}
    # torch documents no errors for damaged files, which can fail anywhere in its reader.
    except Exception as error:
        raise UsageError(f"{path} is damaged or not a file to resume from") from error
