"""The report on a picture of the user, and the figure prediction.png."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from fashion import saliency
from fashion.checkpoint import Network
from fashion.data import CLASSES
from fashion.options import TOP
from fashion.script import printable
from fashion.style import GREY, colour, draw_image, label, make_figure, shorten, styled

import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


@dataclass
class Report:
    """A picture and what the networks, by name, say about it."""

    name: str
    photo: Image.Image
    image: Tensor  # the input of the networks, uint8 (28, 28)
    doubt: str | None  # why the garment may not have been found
    probabilities: dict[str, Tensor]  # calibrated (10,)
    excess: dict[str, float]  # of the energy above the limit

    def top(self, network: str) -> list[tuple[str, float]]:
        """Return the most probable classes and their probabilities, in descending order."""
        values, indices = self.probabilities[network].topk(TOP)
        return [(CLASSES[i], p) for i, p in zip(indices, values.tolist(), strict=True)]

    def strange(self) -> str:
        """Return the networks to which the picture looks unlike their training images."""
        return " and ".join(label(name) for name, excess in self.excess.items() if excess > 0)


@styled()
def draw(reports: Sequence[Report], networks: Mapping[str, Network], title: str) -> Figure:
    """Draw a row for each picture: the input of the networks, top classes and saliency maps."""
    figure = make_figure(title, 8 + 2 * len(networks), 2.6 * len(reports) + 1.6)
    figure.supxlabel(fill(saliency.NOTE, 95 + 25 * len(networks)), fontsize=9, color=GREY)
    ratios = (1, 1, 1.1, *[1] * len(networks))
    panels = figure.subplots(len(reports), len(ratios), squeeze=False, width_ratios=ratios)
    for (picture, seen, bars, *_), report in zip(panels, reports, strict=True):
        title, families = find_fonts(one_line(shorten(Path(report.name).name)))
        draw_image(picture, report.photo, title)
        picture.title.set_family(families)
        picture.set_xlabel(fill(report.doubt or "", 28), fontsize=8)
        draw_image(seen, report.image)
        if strange := report.strange():
            seen.set_xlabel(f"unlike the training\nimages of {strange}", fontsize=8)
        draw_probabilities(bars, report)
    panels[0, 1].set_title("input of the networks", fontsize=9)
    panels[0, 2].set_title("most probable classes", fontsize=9)
    images = torch.stack([report.image for report in reports])
    for column, network in zip(panels.T[3:], networks.values(), strict=True):
        saliency.draw_maps(column, network, images)
    return figure


def draw_probabilities(axes: Axes, report: Report) -> None:
    """Draw bars of each network's most probable classes, with the probabilities as text."""
    for number, name in enumerate(report.probabilities):
        top = report.top(name)
        places = [number * (TOP + 1) + rank for rank in range(TOP)]
        bars = axes.barh(places, [p for _, p in top], color=colour(name), label=label(name))
        axes.bar_label(bars, [f"{title} {p:.1%}" for title, p in top], fontsize=8, padding=3)
        text = axes.text(-0.05, places[TOP // 2], label(name), rotation=90, color=colour(name))
        text.set(ha="right", va="center")
    axes.invert_yaxis()
    axes.set(xlim=(0, 2.3), xticks=[], yticks=[])  # as wide as the longest label needs
    axes.spines["bottom"].set_visible(False)


def one_line(text: str) -> str:
    """Return the text with control characters and line breaks escaped."""
    return printable(text).replace("\n", "\\n")


def find_fonts(text: str) -> tuple[str, list[str]]:
    """Return the text with ? for characters that no font has, and fonts that have the others."""
    # First the font of all other text.
    fonts: dict[str, Any] = {"DejaVu Sans": font_manager.findfont("DejaVu Sans")}
    for entry in font_manager.fontManager.ttflist:
        if "Color" not in entry.name and "Last Resort" not in entry.name:  # emoji as images; boxes
            fonts.setdefault(entry.name, entry.fname)
    missing, families = set(text), []
    for family, path in fonts.items():
        with contextlib.suppress(RuntimeError):  # a damaged font
            known = missing & set(map(chr, font_manager.get_font(path).get_charmap()))
            families += [family] if known else []
            missing -= known
        if not missing:
            break
    return "".join("?" if character in missing else character for character in text), families
