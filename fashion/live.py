"""live.html: a page on which the networks run in the browser, on pictures that one can disturb."""

import base64
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion import style
from fashion.checkpoint import Network
from fashion.data import CLASSES, Dataset, normalize
from fashion.files import write as write_file

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

PER_CLASS, DIFFICULT = 4, 2  # images, and how many of them the networks may disagree on
CLIPPED = 0.2  # percentage of a layer's activations that its colour scale may clip
SIMPLE = (nn.Linear, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
# The layers that the page computes, and the settings that they must have; 1 also stands for (1, 1).
LAYERS: dict[type[nn.Module], dict[str, Any]] = {
    nn.Conv2d: {"groups": 1, "dilation": 1, "padding_mode": "zeros"},
    nn.BatchNorm1d: {"affine": True, "track_running_stats": True},
    nn.BatchNorm2d: {"affine": True, "track_running_stats": True},
    nn.MaxPool2d: {"dilation": 1, "ceil_mode": False},
    nn.AvgPool2d: {"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    nn.AdaptiveAvgPool2d: {"output_size": 1},
    nn.GELU: {"approximate": "none"},
    **{kind: {} for kind in SIMPLE},
}
IGNORED = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
SETTINGS = ("kernel_size", "stride", "padding", "eps", "negative_slope", "alpha")
TENSORS = ("weight", "bias", "running_mean", "running_var")
MORE_THAN_LAYERS = "its forward method does more than call its layers one after another; "
MORE_THAN_LAYERS += "functions such as F.relu can be replaced with layers such as nn.ReLU"


def write(
    path: Path, networks: Mapping[str, Network], answers: Tensor, dataset: Dataset
) -> list[str]:
    """Write the page; return a line for each network that it cannot run.

    answers: Classes that the networks predict for the test images, (networks, N).
    """
    chosen = choose(answers, dataset.test_labels)
    images = dataset.test_images[chosen]
    entries, omitted = [], []
    for network in networks.values():
        try:
            entries.append(export(network, images))
        except ValueError as error:
            omitted.append(f"{path.name} does not run the {style.label(network.name)}: {error}")
    maps = [matplotlib.colormaps[name] for name in (style.DIVERGING, style.SEQUENTIAL)]
    content = {
        "title": dataset.title,
        "classes": CLASSES,
        "images": encode(images.numpy()),
        "indices": chosen.tolist(),
        "labels": dataset.test_labels[chosen].tolist(),
        "networks": entries,
        "omitted": omitted,
        "colours": [encode(m(np.arange(256), bytes=True)[:, :3]) for m in maps],
    }
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    data = json.dumps(content).replace("<", "\\u003c")  # a name could end the script element
    write_file(path, page.replace("{{data}}", data).encode())
    return omitted


def choose(answers: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of four test images of each class; the networks disagree on the last two.

    The others are the first that all networks classify correctly.
    """
    disagree, correct = (answers != answers[0]).any(0), (answers == labels).all(0)
    chosen = []
    for label in range(len(CLASSES)):
        members = (labels == label).nonzero()[:, 0]
        difficult = members[disagree[members]][:DIFFICULT]
        others = members[~torch.isin(members, difficult)]
        easy = others[correct[others].int().argsort(descending=True, stable=True)]
        chosen += [easy[: PER_CLASS - len(difficult)], difficult]
    return torch.cat(chosen)


@torch.inference_mode()
def export(network: Network, images: Tensor) -> dict[str, Any]:
    """Return a network for the page; ValueError if it is no chain of layers that the page knows."""
    model = copy.deepcopy(network.model).half().float()  # the page gets 16 bits of each weight
    inputs = values = normalize(images, network.mean, network.std)
    called: list[nn.Module] = []
    with register_module_forward_hook(lambda module, *_: called.append(module)):
        logits = model(inputs)
    layers, weights = [], []
    for module in called:
        if isinstance(module, IGNORED) or any(module.children()):
            continue
        layers.append(convert(module))
        try:  # the page stores maps as vectors, so it needs no flattening
            values = module(values.flatten(1) if isinstance(module, nn.Linear) else values)
        except (RuntimeError, ValueError) as error:  # a shape that does not fit
            raise ValueError(MORE_THAN_LAYERS) from error
        layers[-1]["limit"] = float(np.percentile(values.abs(), 100 - CLIPPED)) or 1.0
        layers[-1]["signed"] = bool(values.min() < 0)
        weights += [getattr(module, name).half().numpy() for name in layers[-1]["shapes"]]
    values = values.flatten(1)
    if values.shape != logits.shape or not torch.allclose(values, logits, rtol=1e-4, atol=1e-4):
        raise ValueError(MORE_THAN_LAYERS)
    return {
        "label": style.label(network.name),
        "colour": style.colour(network.name),
        "mean": network.mean,
        "std": network.std,
        "temperature": network.temperature,
        "energyLimit": network.energy_limit,
        "layers": layers,
        "weights": encode(np.concatenate([tensor.ravel() for tensor in weights])),
        "logits": logits.tolist(),
    }


def convert(module: nn.Module) -> dict[str, Any]:
    """Return the settings of a layer and the shapes of its tensors."""
    required = LAYERS.get(type(module), {"": "unknown"})
    for name, value in required.items():
        if getattr(module, name, None) not in (value, (value, value)):
            raise ValueError(f"it has a layer that the page does not know, {module}")
    tensors = {name: getattr(module, name, None) for name in TENSORS}
    return {
        "kind": type(module).__name__,
        "shapes": {name: tensor.shape for name, tensor in tensors.items() if tensor is not None},
        **{name: getattr(module, name) for name in SETTINGS if hasattr(module, name)},
    }


def encode(array: np.ndarray) -> str:
    """Return the bytes of an array in base64."""
    return base64.b64encode(array.tobytes()).decode()
