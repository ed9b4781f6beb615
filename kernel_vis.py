"""Look inside the trained networks: kernels, feature maps, units, saliency and embedding.

    python kernel_vis.py

Reads the models that fashionmnist.py writes to the folder outputs, or else the ones shipped with
this project. Writes kernel_grid.png, image_transform_grid.png, feature_progression.png,
top_activations.png, saliency.png, embedding.png, and training.gif if the training was recorded with
--record, to the folder outputs, and adds them to its page report.html. Without the dataset, it
leaves out what needs test images.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cnn import BLOCK_COUNT
from fashion import cli, explain, explain_plots
from fashion.checkpoint import (
    RECORDING_NAME,
    SUFFIX,
    Checkpoint,
    Recording,
    load_models,
    load_recording,
)
from fashion.data import CLASS_NAMES, TITLES, Dataset, load_dataset
from fashion.explain import IMAGES_PER_UNIT, UNITS_SHOWN
from fashion.files import RunError, UsageError, prepare_folder
from fashion.layers import conv_blocks
from fashion.page import write_page
from fashion.photo import prepare, read_photo
from fashion.plots import save_figure
from models import MODELS, STYLES

# Shown in place of a test image where there is no dataset.
EXAMPLE_PICTURE = Path(__file__).parent / "docs" / "drawings" / "boot.png"
MAX_KERNELS = 64  # more tiles would be too small to read
# Saliency shows the images whose least confident prediction is nearest to this probability: neither
# obvious to all models nor guessed.
SALIENCY_CONFIDENCE = 0.8


def main(arguments: argparse.Namespace) -> None:
    """Draw and write one figure after the other."""
    inputs = Inputs(arguments)
    wanted = choose_figures(inputs)
    check_units(inputs)  # reports mistakes before anything is written
    print(f"Models: {arguments.checkpoint.parent}")
    if OF_IMAGE & set(wanted):
        print(f"{inputs.image[1]}; {inputs.prediction}")
    prepare_folder(arguments.out)
    files = []
    for name in wanted:
        print(f"{name} ...", flush=True)
        if name == RECORDING and inputs.recording:
            files.append(write_recording(inputs.recording, inputs))
        else:
            files.append(arguments.out / f"{name}.png")
            save_figure(FIGURES[name](inputs), files[-1])
    cli.print_files([*files, write_page(arguments.out)])


def choose_figures(inputs: "Inputs") -> list[str]:
    """Return the names of the figures to draw: those requested, or all that can be drawn.

    Raises:
        UsageError: If training.gif is requested and there is no recording.
        RunError: If a test image is requested and there is no dataset.
    """
    arguments = inputs.arguments
    if arguments.only:
        if RECORDING in arguments.only and not inputs.recording:
            raise UsageError(
                f"{inputs.recording_path} holds no recording of this CNN; make one with: "
                "python fashionmnist.py --record"
            )
        return list(dict.fromkeys(arguments.only))
    figures = [*FIGURES, *([RECORDING] if inputs.recording else [])]
    if isinstance(arguments.image, Path):
        return [name for name in FIGURES if name not in OF_TEST_SET]
    try:
        _ = inputs.dataset
    except RunError:
        if arguments.image is not None:
            raise
        title = TITLES[inputs.cnn.dataset]
        print(
            f"Left out, because {title} is incomplete in {arguments.data_dir} and not online: "
            f"{', '.join(sorted(OF_TEST_SET))}"
        )
        arguments.image = EXAMPLE_PICTURE
        return [name for name in figures if name not in OF_TEST_SET]
    return figures


# Options


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser("kernel_vis.py", "Look inside the trained networks.")
    figures = [*FIGURES, RECORDING]
    help_only = f"figures to draw: {', '.join(figures)} "
    help_only += f"(default: all, including {RECORDING} if it was recorded; with --image FILE only "
    help_only += "the first three, which need no test images)"
    parser.add_argument("--only", nargs="+", choices=figures, metavar="NAME", help=help_only)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help=f"weights of the CNN; other models are read from its folder (default: the one "
        f"in {cli.OUTPUT_FOLDER} if it holds models, else the one shipped with this project)",
    )
    help_image = "number of a test image, from 0, or an image file (default: 0)"
    parser.add_argument("--image", type=parse_image, metavar="N|FILE", help=help_image)
    help_layer = f"convolution to show (default: 1; {BLOCK_COUNT} in top_activations)"
    parser.add_argument("--layer", type=int, choices=range(1, BLOCK_COUNT + 1), help=help_layer)
    help_after = "show the feature maps of image_transform_grid after batch norm and ReLU"
    parser.add_argument("--after", action="store_true", help=help_after)
    help_units = f"units of top_activations (default: the {UNITS_SHOWN} most class-selective)"
    number = cli.number_type(int, 0, 1_000_000)
    parser.add_argument("--units", type=number, nargs="+", metavar="K", help=help_units)
    cli.add_data_dir_option(parser)
    cli.add_out_option(parser, "the figures")
    arguments = parser.parse_args(argv)
    arguments.checkpoint = arguments.checkpoint or cli.find_models(MODELS) / f"cnn{SUFFIX}"
    return arguments


def parse_image(text: str) -> int | Path:
    """Convert the value of --image for argparse: an integer, or else a path."""
    try:
        return int(text)
    except ValueError:
        return Path(text)


# Inputs


@dataclass
class Inputs:
    """What the figures are drawn from. Each part is loaded or computed when first needed."""

    arguments: argparse.Namespace

    def load(self, names: Iterable[str]) -> dict[str, Checkpoint]:
        """Load the CNN from --checkpoint, and models of these names from its folder."""
        path = self.arguments.checkpoint
        paths = {name: path.with_name(f"{name}{SUFFIX}") for name in names} | {"cnn": path}
        command = shlex.join(["python", "fashionmnist.py", "--out", str(path.parent)])
        with cli.advise(f"train the models with: {command}", UsageError):
            return load_models(paths, MODELS)

    @cached_property
    def cnn(self) -> Checkpoint:
        """The model of most figures."""
        return self.load([])["cnn"]

    @cached_property
    def models(self) -> dict[str, Checkpoint]:
        """All models, of the figures that compare them."""
        return self.load(MODELS)

    @property
    def recording_path(self) -> Path:
        """Where the training of the CNN would have been recorded."""
        return self.arguments.checkpoint.with_name(RECORDING_NAME)

    @cached_property
    def recording(self) -> Recording | None:
        """The recorded training of the CNN, if there is one."""
        return load_recording(self.recording_path, self.cnn.model)

    @property
    def subject(self) -> str:
        """The CNN and its dataset, as titles name them."""
        return f"CNN on {TITLES[self.cnn.dataset]}"

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the CNN was trained on."""
        with cli.advise("choose another folder with --data-dir", RunError):
            return load_dataset(self.cnn.dataset, self.arguments.data_dir)

    @cached_property
    def image(self) -> tuple[np.ndarray, str]:
        """The image of --image, uint8 (28, 28), and its caption; UsageError if there is none."""
        chosen = self.arguments.image or 0
        if isinstance(chosen, Path):
            name = f"--image {chosen}"
            return prepare(read_photo(chosen, name), name), explain_plots.shorten(chosen.name)
        images, labels = self.dataset.test_images, self.dataset.test_labels
        if not 0 <= chosen < len(images):
            last = len(images) - 1
            raise UsageError(f"--image {chosen}: test images are numbered from 0 to {last}")
        return images[chosen].numpy(), f"test image {chosen} ({CLASS_NAMES[labels[chosen]]})"

    @cached_property
    def progression(self) -> explain.Progression:
        """The activations of the image."""
        return explain.record_activations(self.cnn, self.image[0])

    @property
    def prediction(self) -> str:
        """The predicted class of the image and its probability, in words."""
        probabilities = self.progression.probabilities
        return f"CNN prediction: {CLASS_NAMES[probabilities.argmax()]} ({probabilities.max():.0%})"


# Figures


def choose_kernels(checkpoint: Checkpoint, layer: int) -> tuple[np.ndarray, list[str]]:
    """Return the indices of a layer's kernels in display order (K,), and their names.

    Of larger layers, only the MAX_KERNELS kernels with the largest norms are returned.
    """
    norms = conv_blocks(checkpoint.model)[layer - 1].conv.weight.detach().flatten(1).norm(dim=1)
    chosen = np.argsort(-norms.numpy(), kind="stable")[:MAX_KERNELS]
    order, kinds = explain.order_kernels(explain.kernel_tiles(checkpoint.model, layer)[0][chosen])
    return chosen[order], list(map(explain_plots.kernel_name, chosen[order], kinds))


def _describe_number(shown: int, count: int) -> str:
    """Return how many of the kernels a figure shows, in words."""
    return f"all {count} kernels" if shown == count else f"{shown} of {count} kernels"


def draw_kernel_grid(inputs: Inputs) -> Figure:
    """Draw the kernels of a layer before and after training."""
    layer = inputs.arguments.layer or 1
    numbers, names = choose_kernels(inputs.cnn, layer)
    tiles, slices = explain.kernel_tiles(inputs.cnn.model, layer)
    before = conv_blocks(explain.untrained_model(inputs.cnn))[layer - 1].conv.weight.detach()
    title = f"Kernels of convolution {layer}, {inputs.subject}\n"
    title += _describe_number(len(numbers), len(tiles))
    if before.shape[1] > 1:
        title += f"; shown: the largest of the {before.shape[1]} slices of each"
    before_tiles = before[numbers, slices[numbers]].numpy()
    return explain_plots.draw_kernels(tiles[numbers], before_tiles, names, title)


def draw_image_transform_grid(inputs: Inputs) -> Figure:
    """Draw the feature maps of the same kernels for the image."""
    layer, after = inputs.arguments.layer or 1, inputs.arguments.after
    numbers, names = choose_kernels(inputs.cnn, layer)
    image, caption = inputs.image
    maps = (inputs.progression.rectified if after else inputs.progression.responses)[layer - 1]
    stage = " after batch norm and ReLU, without pooling" if after else ""
    title = f"Feature maps of convolution {layer}{stage}, {inputs.subject}\n"
    title += f"{caption}; {_describe_number(len(numbers), len(maps))}"
    return explain_plots.draw_image_transform(image, maps[numbers], names, not after, title)


def draw_feature_progression(inputs: Inputs) -> Figure:
    """Draw the activations of the image layer by layer."""
    image, caption = inputs.image
    title = f"Activations layer by layer, {inputs.subject}\n{caption}; {inputs.prediction}"
    return explain_plots.draw_progression(image, inputs.progression, STYLES["cnn"], title)


def check_units(inputs: Inputs) -> tuple[int, int]:
    """Return layer and number of units of top_activations; UsageError if --units has others."""
    layer = inputs.arguments.layer or BLOCK_COUNT
    count = conv_blocks(inputs.cnn.model)[layer - 1].conv.out_channels
    for unit in inputs.arguments.units or ():
        if unit >= count:
            raise UsageError(f"--units {unit}: block {layer} has units 0 to {count - 1}")
    return layer, count


def draw_top_activations(inputs: Inputs) -> Figure:
    """Draw the test images that activate each unit of a layer most."""
    images, labels = inputs.dataset.test_images, inputs.dataset.test_labels
    (layer, count), wanted = check_units(inputs), inputs.arguments.units
    units = explain.find_units(inputs.cnn, images, labels, layer, wanted)
    shown = f"{len(units)}" if wanted else f"the {len(units)} most class-selective"
    title = (
        f"The {IMAGES_PER_UNIT} test images that activate each unit most, {inputs.subject}\n"
        f"{shown} of {count} units of block {layer}; framed: the patch that causes the activation\n"
        "above each image: true class and activation\n"
        "selectivity: 0 if a unit is equally active for all classes, 1 if for one class only"
    )
    return explain_plots.draw_top_activations(units, images.numpy(), labels.numpy(), title)


def draw_saliency(inputs: Inputs) -> Figure:
    """Draw saliency maps of images that the models classify correctly or not."""
    images, labels = inputs.dataset.test_images.numpy(), inputs.dataset.test_labels.numpy()
    probabilities = {
        name: explain.class_probabilities(model, images) for name, model in inputs.models.items()
    }
    examples = choose_saliency_examples(probabilities, labels)
    captions, explanations = [], []
    for index, names in examples.items():
        correct = ", ".join(STYLES[name].label for name in names) or "none"
        captions.append(f"test image {index}: {CLASS_NAMES[labels[index]]}\ncorrect: {correct}")
        by_model = {}
        for name, model in inputs.models.items():
            label = int(probabilities[name][index].argmax())
            by_model[name] = explain_plots.Explanation(
                label,
                float(probabilities[name][index, label]),
                explain.occlusion(model, images[index], label),
                explain.integrated_gradients(model, images[index], label),
            )
        explanations.append(by_model)
    title = (
        f"Saliency maps, {TITLES[inputs.cnn.dataset]}\n"
        f"images whose least confident prediction is nearest to {SALIENCY_CONFIDENCE:.0%}"
    )
    chosen = images[list(examples)]
    return explain_plots.draw_saliency(chosen, captions, explanations, STYLES, title)


def choose_saliency_examples(
    probabilities: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[int, tuple[str, ...]]:
    """Choose images of different classes that all models, one, or none classifies correctly.

    From class probabilities (N, 10) by model and true classes (N,), return the index of each image
    with the models that classify it correctly.
    """
    names = tuple(probabilities)
    cases: list[tuple[str, ...]] = [names, names, *((name,) for name in names), ()]
    if len(names) == 1:
        cases = [names] * 3 + [()] * 3
    correct = {name: values.argmax(1) == labels for name, values in probabilities.items()}
    confidence = np.min([values.max(1) for values in probabilities.values()], axis=0)
    nearest = np.argsort(np.abs(confidence - SALIENCY_CONFIDENCE), kind="stable")
    chosen: dict[int, tuple[str, ...]] = {}
    for case in cases:
        fits = np.all([correct[name] == (name in case) for name in names], axis=0)
        fits &= ~np.isin(labels, labels[list(chosen)])
        for index in nearest[fits[nearest]][:1]:  # none if no image is left
            chosen[int(index)] = case
    return chosen


def draw_embedding(inputs: Inputs) -> Figure:
    """Draw the embedding of the test images in the last hidden layer of each model."""
    places, predictions = {}, {}
    for name, model in inputs.models.items():
        features, predictions[name] = explain.last_hidden(model, inputs.dataset.test_images)
        places[name] = explain.embed(features)
    labels = inputs.dataset.test_labels.numpy()
    title = f"Embedding of the last hidden layer, {len(labels):,} test images\n"
    title += f"models trained on {TITLES[inputs.cnn.dataset]}"
    return explain_plots.draw_embedding(places, predictions, labels, STYLES, title)


def write_recording(recording: Recording, inputs: Inputs) -> Path:
    """Write training.gif, the first kernels during training, and return its path."""
    numbers, names = choose_kernels(inputs.cnn, 1)
    epochs = [step / recording.steps_per_epoch for step in recording.steps]
    title = f"Kernels of convolution 1, {inputs.subject}\nepoch"
    titles = [f"{title} {epoch:.1f} of {epochs[-1]:.0f}" for epoch in epochs]
    frames = list(recording.kernels[:, numbers, 0].numpy())
    out = inputs.arguments.out / f"{RECORDING}.gif"
    explain_plots.save_gif(explain_plots.draw_recording(frames, names, titles), out)
    return out


FIGURES: dict[str, Callable[[Inputs], Figure]] = {
    "kernel_grid": draw_kernel_grid,
    "image_transform_grid": draw_image_transform_grid,
    "feature_progression": draw_feature_progression,
    "top_activations": draw_top_activations,
    "saliency": draw_saliency,
    "embedding": draw_embedding,
}
RECORDING = "training"
OF_IMAGE = {"image_transform_grid", "feature_progression"}
OF_TEST_SET = {"top_activations", "saliency", "embedding"}


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
