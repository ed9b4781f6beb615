"""Maps of the last hidden layer, on which images that a network finds similar are neighbours."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from fashion.activations import Survey
from fashion.checkpoint import Network
from fashion.data import CLASSES, Dataset
from fashion.style import CLASS_COLOURS, GREY, colour, hide_axes, label, make_figure, styled

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

POINTS = 2000  # more would take longer and overlap
NOTE = (
    "t-SNE: each point is an image, coloured by its true class; errors are circled in black. Names "
    "mark the median of each class. Images close together are similar in the last hidden layer; "
    "distances between groups have no meaning."
)


def embed(features: np.ndarray) -> np.ndarray:
    """Return positions (N, 2) from t-SNE (van der Maaten and Hinton, JMLR 9, 2008)."""
    from openTSNE import TSNE  # takes a second to load, which other figures need not wait for

    perplexity = min(30, (len(features) - 1) // 3)  # openTSNE wants three times as many points
    # More steps or exacter forces take longer and hardly change the picture.
    quick = {"early_exaggeration_iter": 100, "n_iter": 150, "theta": 1}
    tsne = TSNE(perplexity=perplexity, neighbors="exact", random_state=0, **quick)
    return np.asarray(tsne.fit(features))


@styled()
def draw(networks: Sequence[Network], surveys: Mapping[str, Survey], dataset: Dataset) -> Figure:
    """Draw a map for each network, from surveys of the test images."""
    step = -(-len(dataset.test_labels) // POINTS)
    labels = dataset.test_labels[::step].numpy()
    colours = np.array(CLASS_COLOURS)[labels]
    title = f"Embedding of the last hidden layer, {len(labels):,} test images of {dataset.title}"
    figure = make_figure(title, max(9, 6.3 * len(networks) + 0.4), 7.2)
    figure.supxlabel(fill(NOTE, max(110, 80 * len(networks))), fontsize=9, color=GREY)
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    halo = [withStroke(linewidth=3, foreground="white")]
    text = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
    for axes, network in zip(panels, networks, strict=True):
        points = embed(surveys[network.name].features[::step].numpy())
        wrong = surveys[network.name].probabilities[::step].argmax(1).numpy() != labels
        axes.scatter(*points[~wrong].T, s=7, c=colours[~wrong], linewidths=0)
        axes.scatter(*points[wrong].T, s=13, c=colours[wrong], edgecolors="black", linewidths=0.6)
        for number in np.unique(labels):
            place = np.median(points[labels == number], axis=0)
            axes.text(*place, CLASSES[number], **text)
        axes.set_title(f"{label(network.name)}: {wrong.sum()} errors", color=colour(network.name))
        axes.set(box_aspect=1, xmargin=0.03, ymargin=0.03)
        axes.set_aspect("equal", "datalim")
    hide_axes(*panels)
    return figure
