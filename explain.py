"""What a trained model learned, and why it says what it says: the numbers behind the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from openTSNE import TSNE
from torch import Tensor, nn

from cnn import CNN
from data import CLASS_COUNT, normalize
from training import EVALUATION_BATCH_SIZE, MODELS, Checkpoint

# Side in pixels of the square that occlusion blacks out: as wide as a strap or a heel.
OCCLUSION_SIZE = 5
# Points on the way from black to the picture, for integrated gradients; the authors need 20 to 300.
GRADIENT_STEPS = 64
# Share of its energy from which on a kernel is called by a kind.
MAJORITY = 0.5
KINDS = ("edge", "spot", "area", "other")
# t-SNE with the library's 30 neighbours, and half of its steps: by then nothing moves that a reader
# would see. Interpolation by FFT is the quickest of its methods for thousands of points.
PERPLEXITY = 30
EMBEDDING = {
    "early_exaggeration_iter": 150,
    "n_iter": 300,
    "negative_gradient_method": "fft",
    "random_state": 0,
}


# Kernels


@dataclass(frozen=True)
class KernelKind:
    """What a small kernel responds to.

    Attributes:
        kind: one of KINDS.
        angle: of an edge, in degrees from 0 to 360, counter-clockwise from the right: the direction
            towards light; of others 0.
        sign: 1 of a light spot amid dark or a light area, -1 of a dark one; of others 0.
    """

    kind: str
    angle: float
    sign: int


def kernel_tiles(model: CNN, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one tile (height, width) of each kernel of a layer, and the number of its slice.

    A first-layer kernel is its own tile. A deeper one has a slice for each map before it; its tile
    is the slice with the largest weights.

    Args:
        model: a CNN.
        layer: of the convolutions, from 1.
    """
    weights = model.blocks[layer - 1].conv.weight.detach().cpu().numpy()
    slices = np.abs(weights).sum(axis=(2, 3)).argmax(axis=1)
    return weights[np.arange(len(weights)), slices], slices


def untrained_model(checkpoint: Checkpoint) -> nn.Module:
    """Return the model as it was before its first step, made anew from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint.seed)
        return MODELS[checkpoint.name](**checkpoint.model.arguments).eval()


def classify_kernel(kernel: np.ndarray) -> KernelKind:
    """Tell what a kernel (size, size) detects: an edge, a spot, an area or something else.

    Every kernel is the sum of an odd part, which turns into its negative when rotated by half a
    turn, and an even part, which stays. What is mostly odd is light on one side and dark on the
    other: an edge. What is mostly the same everywhere sees light or dark areas; what is mostly the
    same in all directions, but not from the centre outwards, is a spot. The rest are lines, corners
    and saddles.
    """
    energy = (kernel**2).sum()
    odd = (kernel - kernel[::-1, ::-1]) / 2
    offsets = np.arange(len(kernel)) - (len(kernel) - 1) / 2
    if (odd**2).sum() > MAJORITY * energy:
        right, down = (odd * offsets).sum(), (odd * offsets[:, None]).sum()
        return KernelKind("edge", float(np.degrees(np.arctan2(-down, right))) % 360, 0)
    if kernel.size * kernel.mean() ** 2 > MAJORITY * energy:
        return KernelKind("area", 0.0, int(np.sign(kernel.mean())))
    distance = np.hypot(offsets, offsets[:, None]).round(6)
    rings = [distance == each for each in np.unique(distance)]
    if sum(ring.sum() * kernel[ring].mean() ** 2 for ring in rings) > MAJORITY * energy:
        centre, around = kernel[rings[0]].mean(), kernel[~rings[0]].mean()
        return KernelKind("spot", 0.0, 1 if centre > around else -1)
    return KernelKind("other", 0.0, 0)


def order_kernels(kernels: np.ndarray) -> tuple[np.ndarray, list[KernelKind]]:
    """Return the order in which to show kernels (K, size, size), and each one's kind in that order.

    Edges come first, by the direction they face, then spots and areas, the light ones first, then
    the rest; what is alike in that comes by size of its weights, the largest first.
    """
    kinds = [classify_kernel(kernel) for kernel in kernels]
    norms = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    order = sorted(
        range(len(kernels)),
        key=lambda k: (KINDS.index(kinds[k].kind), kinds[k].angle, -kinds[k].sign, -norms[k]),
    )
    return np.array(order), [kinds[k] for k in order]


# What a picture turns into


@dataclass(frozen=True)
class Progression:
    """All that a CNN makes of one picture, from first to last layer.

    Attributes:
        responses: of each convolution (K, size, size), signed, before anything else.
        activations: of each block (K, size // 2, size // 2), after pooling, batch norm and ReLU.
        rectified: of each convolution (K, size, size), after batch norm and ReLU but before any
            pooling: what the kernel passes on, at full size.
        hidden: of each hidden linear layer (width,), after ReLU.
        probabilities: of the classes, (10,).
    """

    responses: list[np.ndarray]
    activations: list[np.ndarray]
    rectified: list[np.ndarray]
    hidden: list[np.ndarray]
    probabilities: np.ndarray


@torch.inference_mode()
def follow(checkpoint: Checkpoint, picture: np.ndarray) -> Progression:
    """Follow a picture, uint8 (28, 28), through a CNN."""
    model = checkpoint.model
    maps = to_input(checkpoint, picture)
    responses, activations, rectified = [], [], []
    for block in model.blocks:
        response = block.conv(maps)
        responses.append(response[0].numpy())
        rectified.append(block.relu(block.norm(response))[0].numpy())
        maps = block(maps)
        activations.append(maps[0].numpy())
    hidden, values = [], maps
    for layer in model.classifier:
        values = layer(values)
        if isinstance(layer, nn.ReLU):
            hidden.append(values[0].numpy())
    return Progression(responses, activations, rectified, hidden, values[0].softmax(0).numpy())


def to_input(checkpoint: Checkpoint, pictures: np.ndarray) -> Tensor:
    """Return the model's input (N, 1, 28, 28) for pictures, uint8 (28, 28) or (N, 28, 28)."""
    images = torch.from_numpy(pictures.copy()).reshape(-1, *pictures.shape[-2:])
    return normalize(images, checkpoint.mean, checkpoint.std)


@torch.inference_mode()
def class_probabilities(checkpoint: Checkpoint, pictures: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, 10) that a model gives pictures, uint8 (N, 28, 28)."""
    parts = to_input(checkpoint, pictures).split(EVALUATION_BATCH_SIZE)
    return torch.cat([checkpoint.model(part).softmax(1) for part in parts]).numpy()


# What the units look for


@dataclass(frozen=True)
class Unit:
    """One kernel of a convolution, and the images that excite it most.

    Attributes:
        number: in its layer, from 0.
        selectivity: see class_selectivity.
        images: (N,) numbers of the images, the most exciting first.
        activations: (N,) of the unit there.
        patches: for each image (top, left, size) of the square that the unit looks at there, in
            pixels; it may reach over the image's border.
    """

    number: int
    selectivity: float
    images: np.ndarray
    activations: np.ndarray
    patches: list[tuple[int, int, int]]


@torch.inference_mode()
def strongest_responses(
    checkpoint: Checkpoint, images: Tensor, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each unit's largest activation in each image (N, K), and where in its map it is.

    The activation is the block's, after pooling, batch norm and ReLU; where is (N, K), row times
    the map's side plus column.
    """
    blocks = checkpoint.model.blocks[:layer]
    values, places = [], []
    for batch in images.split(EVALUATION_BATCH_SIZE):
        maps = blocks(normalize(batch, checkpoint.mean, checkpoint.std)).flatten(2)
        value, place = maps.max(dim=2)
        values.append(value)
        places.append(place)
    return torch.cat(values).numpy(), torch.cat(places).numpy()


def class_selectivity(strongest: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how far each unit (N, K) answers to one class only, from 0 (to all) to 1 (to one).

    (a - b) / (a + b) with the mean activation a for the class that excites the unit most, and b for
    all other classes (Morcos et al., 2018, https://arxiv.org/abs/1803.06959). A unit that never
    answers has 0.
    """
    means = np.stack([strongest[labels == label].mean(axis=0) for label in range(CLASS_COUNT)])
    best = means.max(axis=0)
    others = (means.sum(axis=0) - best) / (CLASS_COUNT - 1)
    return (best - others) / np.maximum(best + others, np.finfo(np.float32).tiny)


def receptive_field(layer: int, row: int, column: int) -> tuple[int, int, int]:
    """Return (top, left, size), in pixels, of what one value after a block of the CNN depends on.

    Each block adds the kernel's rim of one value on each side, then halves: its values lie twice as
    far apart, and each sees two of the former.
    """
    size, stride, start = 1, 1, 0
    for _ in range(layer):
        start, size = start - stride, size + 3 * stride
        stride *= 2
    return start + stride * row, start + stride * column, size


def find_units(
    checkpoint: Checkpoint,
    images: Tensor,
    labels: Tensor,
    layer: int,
    count: int,
    examples: int,
    wanted: Sequence[int] | None = None,
) -> list[Unit]:
    """Return units of a convolution with the images that excite them most.

    Args:
        checkpoint: a trained CNN.
        images: uint8 (N, 28, 28), where to look.
        labels: (N,), their classes.
        layer: of the convolutions, from 1.
        count: how many units, the most selective first.
        examples: how many images of each.
        wanted: numbers of the units to return instead, in that order.
    """
    strongest, places = strongest_responses(checkpoint, images, layer)
    selectivity = class_selectivity(strongest, labels.numpy())
    numbers = np.argsort(-selectivity, kind="stable")[:count] if wanted is None else wanted
    side = images.shape[1] // 2**layer
    units = []
    for number in map(int, numbers):
        chosen = np.argsort(-strongest[:, number], kind="stable")[:examples]
        patches = [receptive_field(layer, *divmod(int(places[i, number]), side)) for i in chosen]
        activations = strongest[chosen, number]
        units.append(Unit(number, float(selectivity[number]), chosen, activations, patches))
    return units


# Which pixels decided


def occlusion(checkpoint: Checkpoint, picture: np.ndarray, label: int) -> np.ndarray:
    """Return by how much the label's probability falls when a square around each pixel is black.

    From Zeiler and Fergus, 2014 (https://arxiv.org/abs/1311.2901).

    Args:
        checkpoint: a trained model.
        picture: uint8 (28, 28).
        label: the class to explain.

    Returns:
        (28, 28), from -1 to 1; positive where the pixels speak for the label.
    """
    height, width = picture.shape
    rows, columns = np.ogrid[:height, :width]
    covered = [
        np.where(
            (abs(rows - row) <= OCCLUSION_SIZE // 2)
            & (abs(columns - column) <= OCCLUSION_SIZE // 2),
            np.uint8(0),
            picture,
        )
        for row in range(height)
        for column in range(width)
    ]
    probabilities = class_probabilities(checkpoint, np.stack([picture, *covered]))[:, label]
    return (probabilities[0] - probabilities[1:]).reshape(height, width)


def integrated_gradients(checkpoint: Checkpoint, picture: np.ndarray, label: int) -> np.ndarray:
    """Return what each pixel contributes to the label's probability, counted from a black picture.

    The gradient, averaged over the way from black to the picture, times the pixel. All
    contributions add up to the difference of the two probabilities. From Sundararajan et al., 2017
    (https://arxiv.org/abs/1703.01365).

    Args:
        checkpoint: a trained model.
        picture: uint8 (28, 28).
        label: the class to explain.

    Returns:
        (28, 28), positive where a pixel speaks for the label.
    """
    shares = (torch.arange(GRADIENT_STEPS) + 0.5) / GRADIENT_STEPS  # midpoints of equal parts
    black = to_input(checkpoint, np.zeros_like(picture))
    way = to_input(checkpoint, picture) - black
    points = (black + shares.view(-1, 1, 1, 1) * way).requires_grad_()
    probabilities = checkpoint.model(points).softmax(1)[:, label]
    (gradient,) = torch.autograd.grad(probabilities.sum(), points)
    return (gradient.mean(dim=0) * way[0])[0].numpy()


# How the classes lie


@torch.inference_mode()
def last_hidden(checkpoint: Checkpoint, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the last hidden layer's activations (N, width), and the predicted classes (N,)."""
    *_, output = (layer for layer in checkpoint.model.modules() if isinstance(layer, nn.Linear))
    inputs: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda _, values: inputs.append(values[0]))
    try:
        logits = [
            checkpoint.model(normalize(batch, checkpoint.mean, checkpoint.std))
            for batch in images.split(EVALUATION_BATCH_SIZE)
        ]
    finally:
        hook.remove()
    return torch.cat(inputs).numpy(), torch.cat(logits).argmax(1).numpy()


def embed(features: np.ndarray) -> np.ndarray:
    """Return places (N, 2) at which neighbours among the features (N, width) are neighbours again.

    t-SNE (van der Maaten and Hinton, JMLR 9, 2008), always with the same seed. Distances between
    far groups mean nothing.
    """
    # The library wants three times as many points as neighbours.
    perplexity = min(PERPLEXITY, (len(features) - 1) // 3)
    return np.asarray(TSNE(perplexity=perplexity, **EMBEDDING).fit(features))
