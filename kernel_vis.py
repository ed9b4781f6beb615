"""Look inside the trained networks: kernels, feature maps, units, saliency and embedding.

    python kernel_vis.py

Reads the networks that fashionmnist.py writes to the folder outputs, or else the ones shipped with
this project. Writes pictures to the folder outputs, adds them to its page report.html, and writes
live.html, a page on which the networks run in the browser.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fashion import options

if __name__ == "__main__":  # --help and mistakes are answered before torch is loaded
    options.kernel_vis()

from fashion import activations, architecture, embedding, kernels, live, page, saliency, units
from fashion.checkpoint import Network, load_networks
from fashion.data import CLASSES, SIZE, Dataset, load
from fashion.photo import prepare, read_photo
from fashion.script import UserError, list_files, make_folder, run
from fashion.style import save_figure, shorten

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from models import MODELS

CONFIDENCE = 0.6  # of the prediction for the default image: the network hesitates


def main() -> None:
    """Draw and write one figure after the other."""
    args = options.kernel_vis()
    inputs = Inputs(args, load_networks(args.checkpoint, MODELS))
    inputs.check()
    figures = {name: inputs.suited(name) for name in args.only or FIGURES}
    if left_out := [name for name, shown in figures.items() if not shown]:
        print(f"No network has the layers of these figures: {', '.join(left_out)}")
    make_folder(args.out)
    files = []
    for name, shown in figures.items():
        if shown:
            print(f"{name} ...", flush=True)
            origin = "; ".join(page.source(n.name, n.dataset, [n.metadata]) for n in shown)
            figure = FIGURES[name](inputs, shown)
            files.append(save_figure(figure, args.out / f"{name}.png", origin))
    if not args.only:
        files.append(args.out / page.LIVE)
        answers = torch.stack([s.probabilities.argmax(1) for s in inputs.surveys.values()])
        for line in live.write(files[-1], inputs.networks, answers, inputs.dataset):
            print(line)
    list_files([*files, page.write_page(args.out)])


@dataclass
class Inputs:
    """What the figures are drawn from. Each part is loaded or computed when first needed."""

    args: argparse.Namespace
    networks: dict[str, Network]

    def suited(self, figure: str) -> list[Network]:
        """Return the networks of a figure: those that have its layers."""
        pairs = [(n, activations.find_layers(n.model)) for n in self.networks.values()]
        if figure in ("architectures", "saliency", "embedding"):
            return [n for n, layers in pairs if figure != "embedding" or len(layers) > 1]
        if figure == "ffn_weights":
            return [n for n, layers in pairs if layers[0].weight[0].numel() == SIZE**2][:1]
        return [n for n, _ in pairs if activations.find_convolutions(n.model)][-1:]

    @property
    def architectures(self) -> dict[str, nn.Module]:
        """The networks of the table, those that are not loaded as their recipes build them."""
        built = {name: m.network(**m.recipe.model) for name, m in MODELS.items()}
        return built | {name: network.model for name, network in self.networks.items()}

    def check(self) -> None:
        """Raise UserError if there is no such --image or --layer."""
        if self.args.image is not None:
            _ = self.image
        for network in self.suited("kernel_grid"):
            if (self.args.layer or 0) > (n := len(activations.find_convolutions(network.model))):
                raise UserError(f"--layer {self.args.layer}: this network has {n} convolutions")

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset whose test images are shown."""
        return load(self.args.data_dir, sample=self.args.sample)

    @cached_property
    def surveys(self) -> dict[str, activations.Survey]:
        """What the networks return for the test images."""
        images, layer = self.dataset.test_images, self.args.layer
        return {name: activations.survey(n, images, layer) for name, n in self.networks.items()}

    @cached_property
    def image(self) -> tuple[Tensor, str]:
        """The image of --image, uint8 (28, 28), and its caption."""
        chosen, name = self.args.image, f"--image {self.args.image}"
        if isinstance(chosen, Path):
            pixels, _ = prepare(read_photo(chosen, name), name)
            return torch.from_numpy(pixels), shorten(chosen.name)
        labels = self.dataset.test_labels
        if chosen is None:
            (network,) = self.suited("feature_progression")
            confidence, guesses = self.surveys[network.name].probabilities.max(1)
            distance = (confidence - CONFIDENCE).abs().masked_fill(guesses != labels, 1)
            chosen = int(distance.argmin())
        if not 0 <= chosen < len(labels):
            raise UserError(f"{name}: test images are numbered from 0 to {len(labels) - 1}")
        caption = f"{CLASSES[labels[chosen]]}, test image {chosen} of {self.dataset.title}"
        return self.dataset.test_images[chosen], caption


FIGURES: dict[str, Callable[[Inputs, list[Network]], Figure]] = {
    "architectures": lambda i, _: architecture.draw(i.architectures),
    "kernel_grid": lambda i, n: kernels.draw_kernels(n[0], MODELS, i.args.layer or 1),
    "ffn_weights": lambda _, n: kernels.draw_weights(n[0], MODELS),
    "image_transform_grid": lambda i, n: activations.draw_maps(n[0], *i.image, i.args.layer or 1),
    "feature_progression": lambda i, n: activations.draw_progression(n[0], *i.image),
    "top_activations": lambda i, n: units.draw(n[0], i.surveys[n[0].name], i.args.layer, i.dataset),
    "saliency": lambda i, _: saliency.draw(i.networks, i.surveys, i.dataset, MODELS),
    "embedding": lambda i, n: embedding.draw(n, i.surveys, i.dataset),
}


if __name__ == "__main__":
    sys.exit(run(main))
