"""Look inside trained models: kernels, feature maps, units, saliency and embeddings.

This module computes; explain_plots draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from openTSNE import TSNE
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fashion.checkpoint import Checkpoint
from fashion.data import CLASS_COUNT, IMAGE_SIZE, normalize
from fashion.evaluation import predict_logits
from fashion.layers import ConvBlock, Network, conv_blocks

# Side in pixels of the square that occlusion blacks out: about the width of a strap or a heel.
OCCLUSION_SIZE = 5
# Points on the path from black to the image; the authors recommend 20 to 300.
GRADIENT_STEPS = 64
# Share of a kernel's energy above which one component determines its kind.
MAJORITY = 0.5
UNITS_SHOWN, IMAGES_PER_UNIT = 8, 9
KINDS = ("edge", "spot", "area", "other")
# Three fifths of openTSNE's default iterations, after which the picture no longer changes visibly.
EMBEDDING = {"early_exaggeration_iter": 150, "n_iter": 300, "random_state": 0}


# Kernels


@dataclass(frozen=True)
class KernelKind:
    """What a small kernel detects.

    Attributes:
        kind: One of KINDS.
        angle: Direction from dark to light of an edge, in degrees from 0 to 360, counter-clockwise
            from the right; 0 for other kinds.
        sign: 1 for a light spot or area, -1 for a dark one; 0 for other kinds.
    """

    kind: str
    angle: float = 0.0
    sign: int = 0


def kernel_tiles(model: Network, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the slice (height, width) with the largest weights of each kernel, and its index.

    Layers are numbered from 1. Kernels after the first layer have one slice per input channel.
    """
    weights = conv_blocks(model)[layer - 1].conv.weight.detach().numpy()
    slices = np.abs(weights).sum(axis=(2, 3)).argmax(axis=1)
    return weights[np.arange(len(weights)), slices], slices


def untrained_model(checkpoint: Checkpoint) -> Network:
    """Return the model as it was initialized before training, recreated from the seed."""
    model = checkpoint.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint.seed)
        return type(model)(**model.arguments).eval()


def classify_kernel(kernel: np.ndarray) -> KernelKind:
    """Classify a kernel (size, size) as an edge, spot, area or other detector.

    Every kernel is the sum of an odd part, which changes its sign under a rotation by 180 degrees,
    and an even part, which does not change. A mostly odd kernel is light on one side and dark on
    the other: an edge detector. A mostly constant kernel detects light or dark areas. A kernel
    whose weights depend mostly on the distance from its centre alone detects spots. The rest are
    lines, corners and saddles.
    """
    energy = (kernel**2).sum()
    odd = (kernel - kernel[::-1, ::-1]) / 2
    offsets = np.arange(len(kernel)) - (len(kernel) - 1) / 2
    if (odd**2).sum() > MAJORITY * energy:
        right, down = (odd * offsets).sum(), (odd * offsets[:, None]).sum()
        return KernelKind("edge", angle=float(np.degrees(np.arctan2(-down, right))) % 360)
    if kernel.size * kernel.mean() ** 2 > MAJORITY * energy:
        return KernelKind("area", sign=int(np.sign(kernel.mean())))
    distance = np.hypot(offsets, offsets[:, None]).round(6)
    rings = [distance == each for each in np.unique(distance)]
    if sum(ring.sum() * kernel[ring].mean() ** 2 for ring in rings) > MAJORITY * energy:
        centre, around = kernel[rings[0]].mean(), kernel[~rings[0]].mean()
        return KernelKind("spot", sign=1 if centre > around else -1)
    return KernelKind("other")


def order_kernels(kernels: np.ndarray) -> tuple[np.ndarray, list[KernelKind]]:
    """Return a display order for kernels (K, size, size), and the kinds in that order.

    Edges come first, by direction, then spots and areas, light before dark, then the rest. Ties are
    ordered by descending norm.
    """
    kinds = [classify_kernel(kernel) for kernel in kernels]
    norms = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    order = sorted(
        range(len(kernels)),
        key=lambda k: (KINDS.index(kinds[k].kind), kinds[k].angle, -kinds[k].sign, -norms[k]),
    )
    return np.array(order), [kinds[k] for k in order]


# Activations of one image


@dataclass(frozen=True)
class Progression:
    """The activations of one image, from the first layer to the last.

    Attributes:
        responses: Output of each convolution (K, size, size), signed.
        activations: Output of each block (K, size // 2, size // 2).
        rectified: The same without pooling (K, size, size).
        hidden: Output of each hidden linear layer (width,), after ReLU.
        probabilities: Calibrated class probabilities (10,).
    """

    responses: list[np.ndarray]
    activations: list[np.ndarray]
    rectified: list[np.ndarray]
    hidden: list[np.ndarray]
    probabilities: np.ndarray


@torch.inference_mode()
def record_activations(checkpoint: Checkpoint, image: np.ndarray) -> Progression:
    """Return the activations of all layers for an image, uint8 (28, 28)."""
    outputs: dict[nn.Module, Tensor] = {}

    def store(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[layer] = output[0]

    with register_module_forward_hook(store):
        logits = checkpoint.model(_to_input(checkpoint, image))
    blocks = conv_blocks(checkpoint.model)
    return Progression(
        responses=[outputs[block.conv].numpy() for block in blocks],
        activations=[outputs[block].numpy() for block in blocks],
        rectified=[
            block.relu(block.norm(outputs[block.conv][None]))[0].numpy() for block in blocks
        ],
        hidden=[
            output.numpy()
            for layer, output in outputs.items()
            if isinstance(layer, nn.ReLU) and output.ndim == 1
        ],
        probabilities=(logits[0] / checkpoint.temperature).softmax(0).numpy(),
    )


def _to_input(checkpoint: Checkpoint, image: np.ndarray) -> Tensor:
    """Return the model's input (1, 1, 28, 28) for an image, uint8 (28, 28)."""
    return normalize(torch.tensor(image)[None], checkpoint.mean, checkpoint.std)


def class_probabilities(checkpoint: Checkpoint, images: np.ndarray) -> np.ndarray:
    """Return the calibrated class probabilities (N, 10) of images, uint8 (N, 28, 28)."""
    return _predict(checkpoint, torch.tensor(images)).softmax(1).numpy()


def _predict(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    """Return the calibrated logits (N, 10) of images, uint8 (N, 28, 28)."""
    logits = predict_logits(checkpoint.model, images, checkpoint.mean, checkpoint.std)
    return logits / checkpoint.temperature


# Units


@dataclass(frozen=True)
class Unit:
    """One kernel of a convolution, and the images that activate it most.

    Attributes:
        number: Index in the layer, from 0.
        selectivity: See class_selectivity.
        images: Indices of the images (IMAGES_PER_UNIT,), the highest activation first.
        activations: The unit's activation for each of them.
        patches: Top, left and size in pixels of the square in each of them that the activation
            depends on. It may extend beyond the image.
    """

    number: int
    selectivity: float
    images: np.ndarray
    activations: np.ndarray
    patches: list[tuple[int, int, int]]


def class_selectivity(strongest: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each unit's class selectivity (K,), from 0 (none) to 1 (active for one class only).

    For activations (N, K) of images of the true classes (N,), the selectivity is (a - b) / (a + b),
    where a is the mean activation for the class that activates the unit most, and b the mean over
    all other classes (Morcos et al., 2018, https://arxiv.org/abs/1803.06959). A unit that is never
    active scores 0.
    """
    means = np.stack([strongest[labels == label].mean(axis=0) for label in range(CLASS_COUNT)])
    best = means.max(axis=0)
    others = (means.sum(axis=0) - best) / (CLASS_COUNT - 1)
    return (best - others) / np.maximum(best + others, np.finfo(np.float32).tiny)


def receptive_field(blocks: Sequence[ConvBlock], row: int, column: int) -> tuple[int, int, int]:
    """Return the receptive field (top, left, size), in pixels, of one value after these blocks.

    Each block's convolution extends the field by one value on every side. Without padding, the
    first field starts at the border instead of outside. Pooling then joins two neighbours and
    doubles the distance between values.
    """
    size, stride, start = 1, 1, 0
    for block in blocks:
        padding = int(block.conv.padding[0])
        start, size = start - padding * stride, size + 3 * stride
        stride *= 2
    return start + stride * row, start + stride * column, size


def find_units(
    checkpoint: Checkpoint,
    images: Tensor,
    labels: Tensor,
    layer: int,
    wanted: Sequence[int] | None = None,
) -> list[Unit]:
    """Return units of a convolution, each with the IMAGES_PER_UNIT images that activate it most.

    The activation is the maximum of the unit's map after pooling, batch norm and ReLU.

    Args:
        checkpoint: The model.
        images: The images to choose from, uint8 (N, 28, 28).
        labels: Their classes (N,).
        layer: Number of the convolution, from 1.
        wanted: Indices of the units; by default, those of the UNITS_SHOWN most selective.
    """
    blocks = conv_blocks(checkpoint.model)[:layer]
    block = blocks[-1]
    maxima: list[tuple[Tensor, Tensor, Tensor]] = []  # of each batch: values, rows, columns (N, K)

    def store(_: nn.Module, __: tuple[Tensor, ...], maps: Tensor) -> None:
        values, places = maps.flatten(2).max(dim=2)
        maxima.append((values, places // maps.shape[-1], places % maps.shape[-1]))

    with block.register_forward_hook(store):
        _predict(checkpoint, images)
    strongest, rows, columns = (torch.cat(batches).numpy() for batches in zip(*maxima, strict=True))
    selectivity = class_selectivity(strongest, labels.numpy())
    numbers = np.argsort(-selectivity, kind="stable")[:UNITS_SHOWN] if wanted is None else wanted
    units = []
    for number in map(int, numbers):
        chosen = np.argsort(-strongest[:, number], kind="stable")[:IMAGES_PER_UNIT]
        patches = [
            receptive_field(blocks, int(rows[index, number]), int(columns[index, number]))
            for index in chosen
        ]
        activations = strongest[chosen, number]
        units.append(Unit(number, float(selectivity[number]), chosen, activations, patches))
    return units


# Saliency


def occlusion(checkpoint: Checkpoint, image: np.ndarray, label: int) -> np.ndarray:
    """Return the decrease of a class's log-odds when a square around each pixel is black.

    The image is uint8 (28, 28), the result float64 (28, 28), positive where pixels support the
    class. From Zeiler and Fergus, 2014 (https://arxiv.org/abs/1311.2901).
    """
    pixels = np.arange(IMAGE_SIZE)
    near = abs(pixels[:, None] - pixels) <= OCCLUSION_SIZE // 2
    squares = near[:, None, :, None] & near[:, None, :]  # one (28, 28) around each pixel
    occluded = np.where(squares, np.uint8(0), image).reshape(-1, *image.shape)
    logits = _predict(checkpoint, torch.tensor(np.stack([image, *occluded])))
    odds = log_odds(logits, label).numpy()
    return (odds[0] - odds[1:]).reshape(image.shape)


def integrated_gradients(checkpoint: Checkpoint, image: np.ndarray, label: int) -> np.ndarray:
    """Return each pixel's contribution to a class's log-odds, relative to a black image.

    The contribution is the gradient, averaged along the straight path from black to the image,
    times the pixel. All contributions add up to the difference of the two log-odds. The image is
    uint8 (28, 28), the result (28, 28), positive where a pixel supports the class. From
    Sundararajan et al., 2017 (https://arxiv.org/abs/1703.01365).
    """
    shares = (torch.arange(GRADIENT_STEPS) + 0.5) / GRADIENT_STEPS  # midpoint rule
    black = _to_input(checkpoint, np.zeros_like(image))
    difference = _to_input(checkpoint, image) - black
    points = (black + shares.view(-1, 1, 1, 1) * difference).requires_grad_()
    total = log_odds(checkpoint.model(points) / checkpoint.temperature, label).sum()
    (gradient,) = torch.autograd.grad(total, points)
    return (gradient.mean(dim=0) * difference[0])[0].numpy()


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Return a class's log-odds ln(p / (1 - p)), float64 (N,), from logits (N, 10).

    Where the model is certain, p hardly changes, but the log-odds do. They are finite even if p
    rounds to 1, since they are not computed from it.
    """
    others = torch.arange(CLASS_COUNT) != label
    return logits[:, label].double() - logits[:, others].double().logsumexp(1)


# Embedding


def last_hidden(checkpoint: Checkpoint, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the input of the last linear layer (N, width), and the predicted classes (N,)."""
    *_, output = (layer for layer in checkpoint.model.modules() if isinstance(layer, nn.Linear))
    features: list[Tensor] = []
    with output.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
        logits = _predict(checkpoint, images)
    return torch.cat(features).numpy(), logits.argmax(1).numpy()


def embed(features: np.ndarray) -> np.ndarray:
    """Return positions in the plane (N, 2) that preserve the neighbours of features (N, width).

    The method is t-SNE (van der Maaten and Hinton, JMLR 9, 2008) with a fixed seed. Distances
    between separate groups have no meaning.
    """
    # openTSNE's default perplexity. It requires three times as many points.
    perplexity = min(30, (len(features) - 1) // 3)
    return np.asarray(TSNE(perplexity=perplexity, **EMBEDDING).fit(features))
