"""Saliency maps: which pixels support a prediction, and which oppose it.

Both methods explain the log-odds ln(p / (1 - p)) of a class, which still change where the
probability p hardly does.
"""

from collections.abc import Mapping
from textwrap import fill

from fashion import style
from fashion.activations import Survey
from fashion.checkpoint import Network
from fashion.data import CLASSES, SIZE, Dataset, normalize
from fashion.style import GREY, colour, draw_image, label

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

SQUARE = 5  # pixels that occlusion blacks out: about the width of a strap or a heel
STEPS = 64  # from black to the image; the authors recommend 20 to 300
CONFIDENCE = 0.8  # of the images shown: neither obvious nor guessed
OUTLINE = 60  # grey level of the contour of a garment
CLIPPED = 0.5  # percentage of the pixels that a scale may clip, lest outliers make the rest pale
NOTE = (
    "Red pixels support the predicted class, blue ones oppose it; the grey line is the outline of "
    "the image. Each column has its own scale, on which colours follow the square root. "
    f"Occlusion: decrease of the log-odds when the {SQUARE} × {SQUARE} pixels around a pixel are "
    "made black. "
)
GRADIENTS = "Integrated gradients: contribution of a pixel to the log-odds, relative to black."


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Return ln(p / (1 - p)) of a class, finite even where p rounds to 1."""
    others = torch.arange(len(CLASSES)) != label
    return logits[:, label].double() - logits[:, others].double().logsumexp(1)


def occlusion(network: Network, image: Tensor, label: int) -> np.ndarray:
    """Return how far a black square around each pixel lowers the log-odds (arXiv:1311.2901)."""
    pixels = torch.arange(SIZE)
    near = (pixels[:, None] - pixels).abs() <= SQUARE // 2
    squares = near[:, None, :, None] & near[:, None, :]  # one (28, 28) around each pixel
    occluded = image.masked_fill(squares, 0).view(-1, SIZE, SIZE)
    odds = log_odds(network.logits(torch.cat([image[None], occluded])), label)
    return (odds[0] - odds[1:]).view(SIZE, SIZE).numpy()


def integrated_gradients(network: Network, image: Tensor, label: int) -> np.ndarray:
    """Return each pixel's contribution to the log-odds (arXiv:1703.01365).

    It is the pixel times its gradient, averaged on the way from a black image.
    """
    shares = (torch.arange(STEPS) + 0.5) / STEPS
    pair = torch.stack([torch.zeros_like(image), image])
    black, target = normalize(pair, network.mean, network.std).split(1)
    points = (black + shares.view(-1, 1, 1, 1) * (target - black)).requires_grad_()
    total = log_odds(network.model(points) / network.temperature, label).sum()
    (gradient,) = torch.autograd.grad(total, points)
    return (gradient.mean(0) * (target - black)[0])[0].numpy()


METHODS = {"occlusion": occlusion, "integrated gradients": integrated_gradients}


def choose_images(probabilities: Mapping[str, Tensor], labels: Tensor) -> dict[int, list[str]]:
    """Return images of different classes that all networks, one, or none classifies correctly.

    From probabilities (N, 10) and true classes (N,), return indices of images with the names of the
    networks that are right.
    """
    names = list(probabilities)
    confidence, guesses = torch.stack(list(probabilities.values())).max(2)
    nearest = (confidence.amin(0) - CONFIDENCE).abs().argsort(stable=True)
    chosen: dict[int, list[str]] = {}
    for case in [names, names, *([name] for name in names), [], []]:
        expected = torch.tensor([[name in case] for name in names])
        fits = ((guesses == labels) == expected).all(0)
        fits &= ~torch.isin(labels, labels[list(chosen)])
        for index in nearest[fits[nearest]][:1].tolist():  # none if no image is left
            chosen[index] = case
    return chosen


@style.styled()
def draw(networks: Mapping[str, Network], surveys: dict[str, Survey], dataset: Dataset) -> Figure:
    """Draw maps of both methods for some of the test images."""
    probabilities = {name: survey.probabilities for name, survey in surveys.items()}
    chosen = choose_images(probabilities, dataset.test_labels)
    images, labels = dataset.test_images[list(chosen)], dataset.test_labels[list(chosen)]
    columns = [(method, name) for method in METHODS for name in networks]
    title = f"Saliency maps, test images of {dataset.title}\n"
    title += f"The least confident network gives its prediction about {CONFIDENCE:.0%}"
    figure = style.make_figure(title, 1.9 * len(columns) + 2.3, 2.25 * len(chosen) + 2)
    text = fill(NOTE + GRADIENTS, 25 * len(columns) + 25)
    figure.supxlabel(text, fontsize=9, color=GREY)
    panels = figure.subplots(len(chosen), 1 + len(columns), squeeze=False)
    for axes, image, true, index in zip(panels[:, 0], images, labels, chosen, strict=True):
        right = ", ".join(map(label, chosen[index])) or "none"
        draw_image(axes, image, f"test image {index}: {CLASSES[true]}\ncorrect: {right}")
    for column, (method, name) in zip(panels.T[1:], columns, strict=True):
        draw_maps(column, networks[name], method, images)
    return figure


def draw_maps(column: np.ndarray, network: Network, method: str, images: Tensor) -> None:
    """Draw a map for each image, titled with the prediction, and their common scale below."""
    predicted = network.probabilities(images)
    guesses = predicted.argmax(1).tolist()
    pairs = zip(images, guesses, strict=True)
    maps = np.stack([METHODS[method](network, image, guess) for image, guess in pairs])
    roots = np.sign(maps) * np.sqrt(np.abs(maps))
    scale = style.colour_scale(roots, CLIPPED)
    for axes, image, root, p, guess in zip(column, images, roots, predicted, guesses, strict=True):
        shown = axes.imshow(root, **scale)
        if image.max() > OUTLINE > image.min():
            axes.contour(image.numpy(), levels=[OUTLINE], colors=[GREY], linewidths=0.7)
        axes.set_title(f"{CLASSES[guess]} {p[guess]:.0%}", fontsize=9, color=colour(network.name))
    style.hide_axes(*column)
    heading = f"{label(network.name)}, {method}\n{column[0].get_title()}"
    column[0].set_title(heading, fontsize=9)
    # Inside the last panel, the bar counts as part of its row, and all columns stay in line.
    below, limit = axes.inset_axes((0, -0.16, 1, 0.07)), scale["vmax"]
    look = {"orientation": "horizontal", "extend": "both", "ticks": [-limit, 0, limit]}
    bar = axes.figure.colorbar(shown, below, **look)
    bar.set_ticklabels([f"−{limit**2:.2g}", "0", f"{limit**2:.2g}"], fontsize=8)
    bar.set_label("support (log-odds)", fontsize=8)
