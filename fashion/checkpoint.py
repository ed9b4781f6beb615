"""Files of a training: weights as safetensors, recorded kernels, and the state to resume from.

None of the readers runs code from a file.
"""

import io
import json
import logging
import zipfile
from collections.abc import Mapping
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
OLD_SUFFIX = ".pt"  # of weights that earlier versions wrote with torch.save
RECORDING_NAME = f"recording{SUFFIX}"
# What reading damaged or hostile metadata and weights can raise.
CONTENT_ERRORS = (
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    SafetensorError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything needed to use it.

    Attributes:
        model: On the CPU, in evaluation mode.
        mean, std: Pixel statistics that the model was trained with.
        class_names: Names of its ten outputs.
        dataset: Name of the dataset that it was trained on, a key of data.TITLES.
        seed: Seed of its initial weights.
        metadata: Everything that the file says, see Trainer.metadata.
    """

    model: Network
    mean: float
    std: float
    class_names: list[str]
    dataset: str
    seed: int
    metadata: dict[str, Any]


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
    try:
        with safe_open(path, framework="pt") as file:
            # Clones do not depend on the file, which is mapped into memory.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            metadata = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (*CONTENT_ERRORS, RecursionError) as error:
        raise UsageError(f"{path} is damaged or not a file of this project") from error
    return tensors, metadata


def load_weights(path: Path, network: type[Network]) -> Checkpoint:
    """Read the weights of a model and rebuild it from the metadata.

    Args:
        path: The file.
        network: The class that the file must belong to.

    Raises:
        UsageError: If the file is missing, damaged, or belongs to another class.
        RunError: If it cannot be read.
    """
    if not path.exists():
        raise UsageError(_describe_missing(path))
    weights, metadata = load_tensors(path)
    name = metadata.get("class")
    if isinstance(name, str) and name != network.__name__:
        raise UsageError(f"{path} holds a model of class {name}, not {network.__name__}")
    try:
        # No memory is allocated before the weights fit: arguments can ask for any size.
        with torch.device("meta"):
            model = network(**metadata["arguments"])
        dtypes = [value.dtype for value in model.state_dict().values()]
        model.load_state_dict(weights, assign=True)
        model.to(memory_format=torch.channels_last)
        checkpoint = Checkpoint(
            model=model.eval(),
            mean=float(metadata["mean"]),
            std=float(metadata["std"]),
            class_names=[str(each) for each in metadata["class_names"]],
            dataset=metadata["dataset"],
            seed=int(metadata["seed"]),
            metadata=metadata,
        )
        numbers = [*model.state_dict().values(), torch.tensor([checkpoint.mean, checkpoint.std])]
        valid = (
            name == network.__name__
            and checkpoint.dataset in TITLES
            and len(checkpoint.class_names) == CLASS_COUNT
            and checkpoint.std > 0
            and 0 <= checkpoint.seed < 2**63
            and dtypes == [value.dtype for value in model.state_dict().values()]
            and all(tensor.isfinite().all() for tensor in numbers)
        )
    except CONTENT_ERRORS as error:
        raise UsageError(f"{path} is damaged or not a checkpoint of this project") from error
    if not valid:
        raise UsageError(f"{path} is damaged or not a checkpoint of this project")
    return checkpoint


def load_models(folder: Path, networks: Mapping[str, type[Network]]) -> dict[str, Checkpoint]:
    """Load the trained models of a folder, in the order of the networks.

    A missing model is left out with a warning in the log.

    Args:
        folder: Holds a file NAME.safetensors for each model.
        networks: The class of each model by name.

    Raises:
        UsageError: If the folder holds none of the models, if a file is damaged, or if the models
            were trained on different datasets.
        RunError: If a file cannot be read.
    """
    paths = {name: folder / f"{name}{SUFFIX}" for name in networks}
    present = {name: path for name, path in paths.items() if path.exists()}
    if not present:
        raise UsageError(" and ".join(_describe_missing(path) for path in paths.values()))
    for name, path in paths.items():
        if name not in present:
            logger.warning("%s; this model is left out", _describe_missing(path))
    models = {name: load_weights(path, networks[name]) for name, path in present.items()}
    datasets = {name: TITLES[model.dataset] for name, model in models.items()}
    if len(set(datasets.values())) > 1:
        trained = ", ".join(f"{name} on {title}" for name, title in datasets.items())
        raise UsageError(f"the models in {folder} were trained on different data: {trained}")
    return models


def _describe_missing(path: Path) -> str:
    """Say that a file is missing, and why, if an earlier version of the project wrote it."""
    old = path.with_suffix(OLD_SUFFIX)
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
    kernels = torch.stack(list(frames.values()))
    save_tensors(
        path, {"kernels": kernels}, {"steps": list(frames), "steps_per_epoch": steps_per_epoch}
    )


def load_recording(path: Path, model: Network) -> Recording | None:
    """Read recorded kernels; None if the file is missing or belongs to another model.

    Raises:
        UsageError: If the file is damaged.
        RunError: If it cannot be read.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        recording = Recording(kernels=tensors["kernels"], **metadata)
        belongs = torch.equal(recording.kernels[-1], conv_blocks(model)[0].conv.weight)
        valid = (
            len(recording.steps) == len(recording.kernels)
            and all(isinstance(step, int) and 0 <= step < 2**63 for step in recording.steps)
            and recording.steps_per_epoch > 0
            and bool(recording.kernels.isfinite().all())
        )
    except CONTENT_ERRORS as error:
        raise UsageError(f"{path} is damaged or not a recording of this project") from error
    if not valid:
        raise UsageError(f"{path} is damaged or not a recording of this project")
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
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip():  # torch does not compare the checksums
                raise ValueError("wrong checksum")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {**state}
    # torch documents no errors for damaged files, which can fail anywhere in its reader.
    except Exception as error:
        raise UsageError(f"{path} is damaged or not a file to resume from") from error
