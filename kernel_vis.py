"""Look inside the trained networks: kernels, feature maps, units, saliency and embedding.

    python kernel_vis.py

Reads the models that fashionmnist.py writes to the folder outputs, and writes to the same folder
kernel_grid.png, image_transform_grid.png, feature_progression.png, top_activations.png,
saliency.png, embedding.png, and training.gif if the training was recorded with --record.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cnn import BLOCK_COUNT
from fashion import cli, explain, explain_plots
from fashion.checkpoint import RECORDING_NAME, SUFFIX, Checkpoint, load_recording, load_weights
from fashion.data import CLASS_NAMES, TITLES, Dataset, load_dataset
from fashion.files import RunError, UsageError, prepare_folder
from fashion.layers import conv_blocks
from fashion.photo import prepare, read_photo
from fashion.plots import save_figure
from models import MODELS, STYLES

CONVOLUTIONAL = "cnn"  # the model of --checkpoint
LABEL = STYLES[CONVOLUTIONAL].label
MAX_KERNELS = 64  # more tiles would be too small to read
UNITS_SHOWN = 8
IMAGES_PER_UNIT = 9
# When a model is certain, blacking out a square changes nothing. Saliency shows the images whose
# least confident prediction is nearest to this probability.
SALIENCY_CONFIDENCE = 0.8

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Load the model, then draw and write one figure after the other."""
    inputs = Inputs(arguments, load_model(arguments.checkpoint, CONVOLUTIONAL))
    # Reject invalid requests before writing anything.
    check_units(inputs)
    if {"image_transform_grid", "feature_progression"} & set(arguments.only):
        print(f"{inputs.image[1]}; {inputs.prediction}")
    prepare_folder(arguments.out)
    files = []
    for name in arguments.only:
        print(f"{name} ...", flush=True)
        if name == RECORDING:
            files += write_recording(inputs)
        else:
            files.append(arguments.out / f"{name}.png")
            save_figure(FIGURES[name](inputs), files[-1])
    cli.print_files(files)


def load_model(path: Path, name: str) -> Checkpoint:
    """Load a model of the table from a file; see load_weights for the errors."""
    command = shlex.join(["python", "fashionmnist.py", "--out", str(path.parent)])
    with cli.advise(f"train the models with: {command}", UsageError):
        return load_weights(path, MODELS[name])


@dataclass
class Inputs:
    """What the figures are drawn from. Each part is loaded or computed when first needed.

    Attributes:
        arguments: The command line.
        cnn: The model with convolutions.
    """

    arguments: argparse.Namespace
    cnn: Checkpoint

    @property
    def subject(self) -> str:
        """The model and its dataset, as titles name them."""
        return f"{LABEL} on {TITLES[self.cnn.dataset]}"

    @cached_property
    def models(self) -> dict[str, Checkpoint]:
        """All models in the folder of the checkpoint; UsageError if their datasets differ."""
        models = {}
        for name in MODELS:
            path = self.arguments.checkpoint.with_name(f"{name}{SUFFIX}")
            if name != CONVOLUTIONAL and not path.exists():
                logger.warning("%s does not exist; saliency and embedding omit it", path)
                continue
            models[name] = self.cnn if name == CONVOLUTIONAL else load_model(path, name)
            if models[name].dataset != self.cnn.dataset:
                raise UsageError(
                    f"{self.arguments.checkpoint} was trained on {TITLES[self.cnn.dataset]}, "
                    f"{path} on {TITLES[models[name].dataset]}; train both on the same dataset"
                )
        return models

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the model was trained on; RunError if it cannot be loaded."""
        with cli.advise("--data-dir names another folder", RunError):
            return load_dataset(self.cnn.dataset, self.arguments.data_dir)

    @cached_property
    def image(self) -> tuple[np.ndarray, str]:
        """The image of --image, uint8 (28, 28), and its caption; UsageError if there is none."""
        chosen = self.arguments.image
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
        return explain.follow(self.cnn, self.image[0])

    @property
    def prediction(self) -> str:
        """The predicted class of the image and its probability, in words."""
        probabilities = self.progression.probabilities
        label = int(probabilities.argmax())
        return f"{LABEL} prediction: {CLASS_NAMES[label]} ({probabilities[label]:.0%})"


# Figures


def choose_kernels(checkpoint: Checkpoint, layer: int) -> tuple[np.ndarray, list[str]]:
    """Return the indices of a layer's kernels in display order (K,), and their names.

    Of larger layers, only the MAX_KERNELS kernels with the largest norms are returned.
    """
    weights = conv_blocks(checkpoint.model)[layer - 1].conv.weight
    norms = weights.detach().flatten(1).norm(dim=1).numpy()
    chosen = np.argsort(-norms, kind="stable")[:MAX_KERNELS]
    order, kinds = explain.order_kernels(explain.kernel_tiles(checkpoint.model, layer)[0][chosen])
    return chosen[order], list(map(explain_plots.kernel_name, chosen[order], kinds))


def draw_kernel_grid(inputs: Inputs) -> Figure:
    """Draw the kernels of a layer before and after training."""
    layer = inputs.arguments.layer or 1
    numbers, names = choose_kernels(inputs.cnn, layer)
    tiles, slices = explain.kernel_tiles(inputs.cnn.model, layer)
    before = conv_blocks(explain.untrained_model(inputs.cnn))[layer - 1].conv.weight
    detail = f"{len(numbers)} of {len(tiles)} kernels"
    if before.shape[1] > 1:
        detail += f"; shown: the largest of the {before.shape[1]} slices of each"
    return explain_plots.draw_kernels(
        tiles[numbers],
        before.detach().numpy()[numbers, slices[numbers]],
        names,
        f"Kernels of convolution {layer}, {inputs.subject}\n{detail}",
    )


def draw_image_transform_grid(inputs: Inputs) -> Figure:
    """Draw the feature maps of the same kernels for the image."""
    layer, after = inputs.arguments.layer or 1, inputs.arguments.after
    numbers, names = choose_kernels(inputs.cnn, layer)
    image, caption = inputs.image
    progression = inputs.progression
    maps = (progression.rectified if after else progression.responses)[layer - 1]
    stage = " after batch norm and ReLU, without pooling" if after else ""
    return explain_plots.draw_image_transform(
        image,
        maps[numbers],
        names,
        not after,
        f"Feature maps of convolution {layer}{stage}, {inputs.subject}\n"
        f"{caption}; {len(numbers)} of {len(maps)} kernels",
    )


def draw_feature_progression(inputs: Inputs) -> Figure:
    """Draw the activations of the image layer by layer."""
    image, caption = inputs.image
    title = f"Activations layer by layer, {inputs.subject}\n{caption}; {inputs.prediction}"
    return explain_plots.draw_progression(image, inputs.progression, STYLES[CONVOLUTIONAL], title)


def check_units(inputs: Inputs) -> tuple[int, int]:
    """Return layer and number of units of top_activations; UsageError if --units has others."""
    layer = inputs.arguments.layer or BLOCK_COUNT
    count = conv_blocks(inputs.cnn.model)[layer - 1].conv.out_channels
    for unit in inputs.arguments.units or ():
        if unit >= count:
            raise UsageError(f"--units {unit}: layer {layer} has the units 0 to {count - 1}")
    return layer, count


def draw_top_activations(inputs: Inputs) -> Figure:
    """Draw the test images that activate each unit of a layer most."""
    images, labels = inputs.dataset.test_images, inputs.dataset.test_labels
    (layer, count), wanted = check_units(inputs), inputs.arguments.units
    units = explain.find_units(
        inputs.cnn, images, labels, layer, UNITS_SHOWN, IMAGES_PER_UNIT, wanted
    )
    shown = f"{len(units)}" if wanted else f"the {len(units)} most class-selective"
    title = (
        f"The {IMAGES_PER_UNIT} test images that activate each unit most, {inputs.subject}\n"
        f"{shown} of {count} units of block {layer}; bright: the patch that causes the activation\n"
        "above each image: true class and activation"
    )
    return explain_plots.draw_top_activations(units, images.numpy(), labels.numpy(), title)


def draw_saliency(inputs: Inputs) -> Figure:
    """Draw saliency maps of images that the models classify correctly or not."""
    images, labels = inputs.dataset.test_images.numpy(), inputs.dataset.test_labels.numpy()
    probabilities = {
        name: explain.class_probabilities(model, images) for name, model in inputs.models.items()
    }
    examples = choose_saliency_examples(probabilities, labels)
    captions = []
    for index, names in examples.items():
        correct = ", ".join(STYLES[name].label for name in names) or "none"
        captions.append(f"test image {index}: {CLASS_NAMES[labels[index]]}\ncorrect: {correct}")
    explanations = [
        {name: explain_image(model, images[index]) for name, model in inputs.models.items()}
        for index in examples
    ]
    title = f"Saliency maps, {TITLES[inputs.cnn.dataset]}\n"
    title += "red pixels support the predicted class, blue ones oppose it"
    return explain_plots.draw_saliency(
        images[list(examples)], captions, explanations, STYLES, title
    )


def choose_saliency_examples(
    probabilities: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[int, tuple[str, ...]]:
    """Choose images of different classes that all models, one, or none classifies correctly.

    Args:
        probabilities: Class probabilities (N, 10) by model.
        labels: True classes (N,).

    Returns:
        The index of each image, with the models that classify it correctly.
    """
    names = tuple(probabilities)
    cases: dict[tuple[str, ...], int] = {names: 3, (): 3}  # numbers of images
    if len(names) > 1:
        cases = {names: 2, **{(name,): 1 for name in names}, (): 1}
    correct = {name: values.argmax(1) == labels for name, values in probabilities.items()}
    confidence = np.min([values.max(1) for values in probabilities.values()], axis=0)
    nearest = np.argsort(np.abs(confidence - SALIENCY_CONFIDENCE), kind="stable")
    chosen: dict[int, tuple[str, ...]] = {}
    for case, wanted in cases.items():
        fits = np.all([correct[name] == (name in case) for name in names], axis=0)
        target = len(chosen) + wanted
        for index in map(int, nearest[fits[nearest]]):
            if len(chosen) < target and labels[index] not in labels[list(chosen)]:
                chosen[index] = case
    return chosen


def explain_image(checkpoint: Checkpoint, image: np.ndarray) -> explain_plots.Explanation:
    """Return the saliency maps of an image, uint8 (28, 28), for its predicted class."""
    probabilities = explain.class_probabilities(checkpoint, image[None])[0]
    label = int(probabilities.argmax())
    return explain_plots.Explanation(
        label,
        float(probabilities[label]),
        explain.occlusion(checkpoint, image, label),
        explain.integrated_gradients(checkpoint, image, label),
    )


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


FIGURES: dict[str, Callable[[Inputs], Figure]] = {
    "kernel_grid": draw_kernel_grid,
    "image_transform_grid": draw_image_transform_grid,
    "feature_progression": draw_feature_progression,
    "top_activations": draw_top_activations,
    "saliency": draw_saliency,
    "embedding": draw_embedding,
}
FIGURES_OF_ONE_IMAGE = ["kernel_grid", "image_transform_grid", "feature_progression"]
RECORDING = "training"


def write_recording(inputs: Inputs) -> list[Path]:
    """Write training.gif, the first kernels during training, and return its path in a list.

    Without a recording, print a note and return an empty list, or raise UsageError if nothing else
    was requested.
    """
    path = inputs.arguments.checkpoint.with_name(RECORDING_NAME)
    recording = load_recording(path, inputs.cnn.model)
    if recording is None:
        problem = (
            f"there is no recording of this {LABEL} in {path}; make one with: "
            "python fashionmnist.py --record"
        )
        if inputs.arguments.only == [RECORDING]:
            raise UsageError(problem)
        print(f"  skipped: {problem}")
        return []
    numbers, names = choose_kernels(inputs.cnn, 1)
    epochs = [step / recording.steps_per_epoch for step in recording.steps]
    title = f"First kernels, {inputs.subject}"
    images = explain_plots.draw_recording(
        list(recording.kernels[:, numbers, 0].numpy()),
        names,
        [f"{title}\nepoch {epoch:.1f} of {epochs[-1]:.0f}" for epoch in epochs],
    )
    out = inputs.arguments.out / f"{RECORDING}.gif"
    explain_plots.save_gif(images, out)
    return [out]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "kernel_vis.py",
        "Look inside the trained networks: kernels, feature maps, units, saliency and embedding.",
    )
    figures = [*FIGURES, RECORDING]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=figures,
        metavar="NAME",
        help=f"figures to draw, of: {', '.join(figures)} (default: all; with --image FILE the "
        "first three)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=cli.OUTPUT_FOLDER / f"{CONVOLUTIONAL}{SUFFIX}",
        metavar="FILE",
        help=f"weights of the {LABEL}; other models are read from its folder "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        type=parse_image,
        default=0,
        metavar="N|FILE",
        help="number of a test image, from 0, or an image file (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        choices=range(1, BLOCK_COUNT + 1),
        help=f"convolution to show (default: 1; {BLOCK_COUNT} in top_activations)",
    )
    help_after = "show the feature maps of image_transform_grid after batch norm and ReLU"
    parser.add_argument("--after", action="store_true", help=help_after)
    parser.add_argument(
        "--units",
        type=cli.number_type(int, 0, 1_000_000),
        nargs="+",
        metavar="K",
        help=f"units of top_activations (default: the {UNITS_SHOWN} most class-selective)",
    )
    cli.add_data_dir_option(parser)
    cli.add_out_option(parser, "the figures")
    arguments = parser.parse_args(argv)
    if not arguments.only:
        arguments.only = FIGURES_OF_ONE_IMAGE if isinstance(arguments.image, Path) else figures
    arguments.only = list(dict.fromkeys(arguments.only))
    return arguments


def parse_image(text: str) -> int | Path:
    """Convert the value of --image for argparse: an integer, or else a path."""
    try:
        return int(text)
    except ValueError:
        return Path(text)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
