"""Trained networks as files: weights as safetensors, which cannot contain code."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fashion.data import TITLE, Dataset
from fashion.evaluation import accuracy, energy, fit_temperature, predict
from fashion.files import write
from fashion.recipe import Model
from fashion.runs import Run
from fashion.script import OUTPUTS, PRETRAINED, UserError

import safetensors.torch
import torch
from torch import Tensor, nn

SUFFIX = ".safetensors"
FAMILIAR = 0.95  # share of the validation images whose energy is below the limit


@dataclass(frozen=True)
class Network:
    """A trained network with everything needed to use it, on the CPU, in evaluation mode."""

    name: str
    model: nn.Module
    mean: float  # of the pixels that it was trained on
    std: float
    temperature: float  # divides the logits, see evaluation.fit_temperature
    energy_limit: float  # images of higher energy are unlike the training images
    dataset: str  # its title
    seed: int
    path: Path
    metadata: dict[str, Any]  # everything that the file says

    def logits(self, images: Tensor) -> Tensor:
        """Return calibrated logits (N, 10) for images uint8 (N, 28, 28)."""
        return predict(self.model, images, self.mean, self.std) / self.temperature

    def probabilities(self, images: Tensor) -> Tensor:
        """Return calibrated probabilities (N, 10) for images uint8 (N, 28, 28)."""
        return self.logits(images).softmax(1)

    def excess_energy(self, images: Tensor) -> Tensor:
        """Return by how much the energy (N,) of images exceeds the limit."""
        return energy(predict(self.model, images, self.mean, self.std)) - self.energy_limit


def export(path: Path, run: Run, dataset: Dataset, dtype: torch.dtype = torch.float32) -> None:
    """Write the weights of a run, and what kernel_vis.py and predict.py need to know."""
    logits, labels = run.logits["validation"], dataset.labels[dataset.validation].cpu()
    metadata = {
        "name": run.name,
        "seed": run.seed,
        "dataset": dataset.title,
        "mean": dataset.mean,
        "std": dataset.std,
        "temperature": fit_temperature(logits, labels),
        "energy_limit": energy(logits).quantile(FAMILIAR).item(),
        "recipe": asdict(run.recipe),
        "environment": run.environment,
        "validation_accuracy": accuracy(logits, labels),
        "test_accuracy": accuracy(run.logits["test"], dataset.test_labels.cpu()),
    }
    weights = {
        key: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in run.model.state_dict().items()
    }
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    write(path, safetensors.torch.save(weights, texts))


def load(path: Path, models: Mapping[str, Model]) -> Network:
    """Load a trained network of the table; UserError if the file does not hold one."""
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")  # of the header, which is JSON
        texts = json.loads(content[8 : 8 + size])["__metadata__"]
        metadata = {key: json.loads(text) for key, text in texts.items()}
        weights = safetensors.torch.load(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not a weights file of this project") from error
    if "class" in metadata:
        raise UserError(f"{path} was written by an earlier version of this project; train it again")
    name = str(metadata.get("name"))
    if name not in models:
        raise UserError(f"{path} holds a network that models.py does not list: {', '.join(models)}")
    network = models[name].network
    try:
        model = network(**metadata["recipe"]["model"])
        model.load_state_dict(weights)  # shipped weights, of 16 bits, become float32
        numbers = ("mean", "std", "temperature", "energy_limit")
        values = {key: float(metadata[key]) for key in numbers}
        title, seed = str(metadata["dataset"]), int(metadata["seed"])
    except Exception as error:
        text = f"{path} does not fit the network in {network.__module__}.py, which may have been "
        raise UserError(f"{text}edited since; train it again, or undo the edit") from error
    model = model.to(memory_format=torch.channels_last).eval()
    return Network(name, model, **values, dataset=title, seed=seed, path=path, metadata=metadata)


def load_networks(given: Path | None, models: Mapping[str, Model]) -> dict[str, Network]:
    """Load the networks from a folder or a file, or else those in the output folder or shipped.

    Without `given`, a network in the output folder is taken if it was trained on all of
    Fashion-MNIST, and otherwise the shipped one. Prints which files are used, and why.
    """
    if given and given.is_file():
        networks = [load(given, models)]
    elif given:
        paths = [path for name in models if (path := given / f"{name}{SUFFIX}").exists()]
        if not paths:
            expected = ", ".join(f"{name}{SUFFIX}" for name in models)
            raise UserError(f"{given} is neither a file nor a folder with one of {expected}")
        networks = [load(path, models) for path in paths]
    else:
        networks = [network for name in models if (network := choose(name, models))]
    print("Networks:", *(f"  {network.path}" for network in networks), sep="\n")
    return {network.name: network for network in networks}


def choose(name: str, models: Mapping[str, Model]) -> Network | None:
    """Return the network in the output folder, or else the shipped one, or None."""
    trained, shipped = (folder / f"{name}{SUFFIX}" for folder in (OUTPUTS, PRETRAINED))
    if trained.exists():
        try:
            network = load(trained, models)
            if network.dataset == TITLE or not shipped.exists():
                return network
            reason = f"{trained} was trained on {network.dataset}"
        except UserError as error:
            if not shipped.exists():
                raise
            reason = str(error)
        print(f"{reason}; using the shipped network instead")
    return load(shipped, models) if shipped.exists() else None
