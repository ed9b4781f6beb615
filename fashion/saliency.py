"""Saliency maps: which pixels support a prediction, and which oppose it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import fill

from fashion import style
from fashion.activations import Survey
from fashion.checkpoint import Network
from fashion.data import CLASSES, SIZE, Dataset
from fashion.kernels import make_untrained
from fashion.recipe import Model
from fashion.style import GREY, colour, draw_image, label

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

SQUARE = 5  # pixels that occlusion blacks out: about the width of a strap or a heel
STEPS, SHUFFLES = 21, 5  # of a deletion, from the image to black; random orders to compare with
CONFIDENCE = 0.8  # of the images shown: neither obvious nor guessed
OUTLINE = 60  # grey level of the contour of a garment
CLIPPED = 0.5  # percentage of the pixels that a scale may clip, lest outliers make the rest pale
NOTE = (
    "Red pixels support the predicted class, blue ones oppose it; the grey line is the outline of "
    "the image. Each column has its own scale, on which colours follow the square root. "
    f"Support: decrease of the log-odds when the {SQUARE} × {SQUARE} pixels around a pixel are "
    "made black (occlusion). "
)
CHECK = (
    "Untrained: the map of the same class from the network before its training, and Spearman's "
    "correlation with the map beside it over the pixels that are not black. A map that has to do "
    "with what was learned differs. When pixels are made black one after the other, the most "
    "supportive first, the mean probability of the prediction is "
)


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Return ln(p / (1 - p)) of a class, which still changes where p rounds to 1."""
    others = torch.arange(len(CLASSES)) != label
    return logits[:, label].double() - logits[:, others].double().logsumexp(1)


def occlusion(network: Network, image: Tensor, label: int) -> np.ndarray:
    """Return how far a black square around each pixel lowers the log-odds (arXiv:1311.2901)."""
    pixels = torch.arange(SIZE)
    near = (pixels[:, None] - pixels).abs() <= SQUARE // 2
    squares = near[:, None, :, None] & near[:, None, :]  # one (28, 28) around each pixel
    occluded = image.masked_fill(squares, 0).view(-1, SIZE, SIZE)
    changed = (occluded != image).flatten(1).any(1)
    odds = log_odds(network.logits(torch.cat([image[None], occluded[changed]])), label)
    decrease = torch.zeros(SIZE**2, dtype=odds.dtype)
    decrease[changed] = odds[0] - odds[1:]
    return decrease.view(SIZE, SIZE).numpy()


def rank_correlation(maps: np.ndarray, others: np.ndarray, images: Tensor) -> np.ndarray:
    """Return Spearman's correlation of pairs of maps (K, 28, 28) over pixels that are not black."""
    values = []
    for first, second, seen in zip(maps, others, (images > 0).numpy(), strict=True):
        ranks = [one[seen].argsort().argsort() for one in (first, second)]  # without ties
        values.append(np.corrcoef(ranks)[0, 1])
    return np.array(values)


def deletion(network: Network, image: Tensor, label: int, support: np.ndarray) -> float:
    """Return a class's mean probability while pixels become black by support, arXiv:1806.07421."""
    order = torch.from_numpy(np.where(image > 0, support, -np.inf).argsort(axis=None)).flip(0)
    counts = torch.linspace(0, int((image > 0).sum()), STEPS).round().int()
    images = image.flatten().repeat(STEPS, 1)
    for step, count in enumerate(counts.tolist()):
        images[step, order[:count]] = 0
    return float(network.probabilities(images.view(-1, SIZE, SIZE))[:, label].mean())


def choose_images(probabilities: Mapping[str, Tensor], labels: Tensor) -> dict[int, list[str]]:
    """Return images of different classes, with the networks that classify them correctly."""
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
def draw(
    networks: Mapping[str, Network],
    surveys: Mapping[str, Survey],
    dataset: Dataset,
    models: Mapping[str, Model],
) -> Figure:
    """Draw maps for some of the test images, trained and untrained."""
    probabilities = {name: survey.probabilities for name, survey in surveys.items()}
    chosen = choose_images(probabilities, dataset.test_labels)
    images, labels = dataset.test_images[list(chosen)], dataset.test_labels[list(chosen)]
    title = f"Saliency maps, test images of {dataset.title}\n"
    title += f"Images on which a network is about {CONFIDENCE:.0%} sure of its prediction"
    width = max(3.8 * len(networks) + 2.3, 7.6)  # as wide as the longest title
    figure = style.make_figure(title, width, 2.25 * len(chosen) + 2.4)
    panels = figure.subplots(len(chosen), 1 + 2 * len(networks), squeeze=False)
    for axes, image, true, index in zip(panels[:, 0], images, labels, chosen, strict=True):
        correct = ", ".join(map(label, chosen[index])) or "none"
        draw_image(axes, image, f"test image {index}: {CLASSES[true]}\ncorrect: {correct}")
    results, random = [], np.random.default_rng(0)
    trained, untrained = panels.T[1::2], panels.T[2::2]
    for left, right, (name, network) in zip(trained, untrained, networks.items(), strict=True):
        maps = draw_maps(left, network, images)
        guesses = probabilities[name][list(chosen)].argmax(1).tolist()
        before = replace(network, model=make_untrained(network, models))
        others = np.stack([occlusion(before, *pair) for pair in zip(images, guesses, strict=True)])
        texts = [f"correlation {r:.2f}" for r in rank_correlation(maps, others, images)]
        draw_column(right, others, images, texts, f"{label(name)}, untrained", GREY)
        means = [
            np.mean([deletion(network, *each) for each in zip(images, guesses, order, strict=True)])
            for order in (maps, *random.random((SHUFFLES, *maps.shape)))
        ]
        share, by_chance = means[0], np.mean(means[1:])
        results.append(f"{share:.0%} for the {label(name)} ({by_chance:.0%} in random order)")
    text = fill(f"{NOTE}{CHECK}{' and '.join(results)}.", int(12.6 * width))
    figure.supxlabel(text, fontsize=9, color=GREY)
    return figure


def draw_maps(column: np.ndarray, network: Network, images: Tensor) -> np.ndarray:
    """Draw and return the map of each image, titled with the prediction that it explains."""
    predicted = network.probabilities(images)
    guesses = predicted.argmax(1).tolist()
    maps = np.stack([occlusion(network, *pair) for pair in zip(images, guesses, strict=True)])
    texts = [f"{CLASSES[g]} {p[g]:.0%}" for g, p in zip(guesses, predicted, strict=True)]
    draw_column(column, maps, images, texts, label(network.name), colour(network.name))
    return maps


def draw_column(
    column: np.ndarray, maps: np.ndarray, images: Tensor, texts: Sequence[str], head: str, ink: str
) -> None:
    """Draw maps (K, 28, 28) with a title for each, and their common scale below."""
    roots = np.sign(maps) * np.sqrt(np.abs(maps))
    scale = style.colour_scale(roots, CLIPPED)
    for axes, image, root, text in zip(column, images, roots, texts, strict=True):
        shown = axes.imshow(root, **scale)
        if image.max() > OUTLINE > image.min():
            axes.contour(image.numpy(), levels=[OUTLINE], colors=[GREY], linewidths=0.7)
        axes.set_title(text, fontsize=9, color=ink)
    style.hide_axes(*column)
    column[0].set_title(f"{head}\n{texts[0]}", fontsize=9)
    # Inside the last panel, the bar counts as part of its row, and all columns stay in line.
    below, limit = axes.inset_axes((0, -0.16, 1, 0.07)), scale["vmax"]
    look = {"orientation": "horizontal", "extend": "both", "ticks": [-limit, 0, limit]}
    bar = axes.figure.colorbar(shown, below, **look)
    bar.set_ticklabels([f"−{limit**2:.2g}", "0", f"{limit**2:.2g}"], fontsize=8)
    bar.set_label("support (log-odds)", fontsize=8)
