"""Show what the networks learned: kernels, feature maps, and the pixels that decided.

    python kernel_vis.py

Reads outputs/cnn.pt and outputs/ffn.pt, which fashionmnist.py writes, and writes to the same folder
kernel_grid.png, image_transform_grid.png, feature_progression.png, top_activations.png,
saliency.png and embedding.png; and training.gif where fashionmnist.py --record kept one.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import explain
import explain_plots
import plots
from cnn import BLOCK_COUNT
from data import CLASS_NAMES, TITLES, Dataset, load_dataset
from explain_plots import Explanation
from fashionmnist import RECORDING, Parser, number_type, print_files, run_script, warn
from files import UserMistake, prepare_folder
from photo import prepare, read_photo
from training import Checkpoint, load_checkpoint, load_recording

# More tiles than this are too small to read; of a larger layer the strongest are shown.
MAX_TILES = 64
UNITS_SHOWN = 8  # rows of the strongest activations, if no units are asked for
IMAGES_PER_UNIT = 9
NETWORK_TIMEOUT = 20  # seconds, as in fashionmnist.py
# Examples of the saliency maps: which model is right, and how many. Where a model is all but
# certain no single square changes anything, so the less sure one shall be about so sure:
SALIENCY_SURETY = 0.8
SALIENCY_CASES = (
    ("both right", (True, True), 2),
    ("only the CNN right", (False, True), 2),
    ("only the FFN right", (True, False), 1),
    ("both wrong", (False, False), 1),
)


@dataclass
class Scene:
    """What the pictures are made from; a part that no picture needs is not loaded.

    Attributes:
        arguments: the command line.
        cnn: the trained CNN.
    """

    arguments: argparse.Namespace
    cnn: Checkpoint

    @property
    def trained_on(self) -> str:
        """The end of every title."""
        return f"trained on {TITLES[self.cnn.dataset]}"

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the model was trained on.

        Raises:
            WorldFault: when it cannot be had.
        """
        return load_dataset(
            self.cnn.dataset, self.arguments.data_dir, None, NETWORK_TIMEOUT, None, warn
        )

    @cached_property
    def models(self) -> dict[str, Checkpoint]:
        """The CNN, and before it the FFN where one lies beside it.

        Raises:
            UserMistake, WorldFault: when the FFN's file is none, or of other data.
        """
        path = self.arguments.checkpoint.with_name("ffn.pt")
        if not path.exists():
            warn(f"there is no {path}: saliency and embedding show the CNN alone")
            return {"cnn": self.cnn}
        ffn = load_checkpoint(path, expected="ffn")
        if ffn.dataset != self.cnn.dataset:
            raise UserMistake(
                f"{path} was trained on {TITLES[ffn.dataset]}, {self.arguments.checkpoint} on "
                f"{TITLES[self.cnn.dataset]}; train both again with: python fashionmnist.py"
            )
        return {"ffn": ffn, "cnn": self.cnn}

    @cached_property
    def picture(self) -> tuple[np.ndarray, str]:
        """The picture to look at, uint8 (28, 28), and a caption that says which it is.

        Raises:
            UserMistake: when there is no such image or file, or the file is no picture.
            WorldFault: when the file or the dataset cannot be read.
        """
        wanted = self.arguments.image
        try:
            index = int(wanted)
        except ValueError:
            name = f"--image {wanted}"
            return prepare(read_photo(Path(wanted), name), name), Path(wanted).name
        last = len(self.dataset.test_images) - 1
        if not 0 <= index <= last:
            raise UserMistake(f"--image {index}: the test images are numbered 0 to {last}")
        label = CLASS_NAMES[self.dataset.test_labels[index]]
        return self.dataset.test_images[index].numpy(), f"test image {index}, {label}"

    @cached_property
    def progression(self) -> explain.Progression:
        """What the CNN makes of the picture."""
        return explain.follow(self.cnn, self.picture[0])

    @property
    def verdict(self) -> str:
        """What the CNN takes the picture for."""
        probabilities = self.progression.probabilities
        guess = int(probabilities.argmax())
        return f"{CLASS_NAMES[guess]} {probabilities[guess]:.0%}"

    @cached_property
    def kernels(self) -> "KernelChoice":
        """The kernels to show, in their order."""
        return choose_kernels(self.cnn, self.arguments.layer or 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, checkpoint, and one picture after the other.

    Raises:
        UserMistake, WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    scene = Scene(arguments, load_checkpoint(arguments.checkpoint, expected="cnn"))
    # What is asked for amiss is refused before anything is written.
    check_units(scene)
    looks_at_picture = {"image_transform_grid", "feature_progression"} & set(arguments.only)
    if looks_at_picture:
        caption = scene.picture[1]
    prepare_folder(arguments.out)
    files = []
    for name in arguments.only:
        print(f"{name} ...", flush=True)
        files += PICTURES[name](scene)
    if looks_at_picture:
        print(f"{caption}: the CNN, {scene.trained_on}, takes it for {scene.verdict}")
    print_files(files)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown, malformed or out of range.
    """
    parser = Parser(
        prog="kernel_vis.py",
        description="Show what the trained networks learned, and why they say what they say.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PICTURES,
        metavar="NAME",
        help=f"which pictures to make, of: {', '.join(PICTURES)} (default: all; with --image FILE "
        "those of that picture)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("outputs/cnn.pt"),
        help="CNN that fashionmnist.py wrote; ffn.pt beside it is the FFN (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        default="0",
        metavar="N|FILE",
        help="number of a test image, from 0, or a picture of your own (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        choices=range(1, BLOCK_COUNT + 1),
        help="which convolution to show (default: 1, and 3 for top_activations)",
    )
    parser.add_argument(
        "--after",
        action="store_true",
        help="show in image_transform_grid what is left after batch norm and ReLU",
    )
    parser.add_argument(
        "--units",
        type=number_type(int, 0, 1_000_000),
        nargs="+",
        metavar="K",
        help=f"which units top_activations shows (default: the {UNITS_SHOWN} most selective)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder that holds FashionMNIST/raw (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder for the pictures (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.only:
        own = not arguments.image.lstrip("-").isdigit()
        arguments.only = PICTURES_OF_ONE_IMAGE if own else list(PICTURES)
    arguments.only = list(dict.fromkeys(arguments.only))
    return arguments


@dataclass(frozen=True)
class KernelChoice:
    """The kernels of a layer that are shown, in the order in which they are.

    Attributes:
        layer: of the convolutions, from 1.
        numbers: (K,) in their layer.
        names: (K,) what stands above each.
        trained, untrained: (K, height, width) tiles.
        shown: how many of how many, in words.
    """

    layer: int
    numbers: np.ndarray
    names: list[str]
    trained: np.ndarray
    untrained: np.ndarray
    shown: str


def choose_kernels(checkpoint: Checkpoint, layer: int) -> KernelChoice:
    """Choose the kernels of a layer to show, all or the largest by their norm, and order them."""
    weights = checkpoint.model.blocks[layer - 1].conv.weight.detach().numpy()
    norms = np.linalg.norm(weights.reshape(len(weights), -1), axis=1)
    chosen = np.sort(np.argsort(-norms, kind="stable")[:MAX_TILES])
    tiles, slices = explain.kernel_tiles(checkpoint.model, layer)
    order, kinds = explain.order_kernels(tiles[chosen])
    numbers = chosen[order]
    before = explain.untrained_model(checkpoint).blocks[layer - 1].conv.weight.detach().numpy()
    shown = f"{len(numbers)} kernels"
    if len(numbers) < len(weights):
        shown = f"the {len(numbers)} largest of {len(weights)} kernels"
    if weights.shape[1] > 1:
        shown += f", each by the strongest of its {weights.shape[1]} slices"
    return KernelChoice(
        layer=layer,
        numbers=numbers,
        names=[
            explain_plots.kernel_name(number, kind)
            for number, kind in zip(numbers, kinds, strict=True)
        ],
        trained=tiles[numbers],
        untrained=before[numbers, slices[numbers]],
        shown=shown,
    )


def save(scene: Scene, name: str, figure: plots.Figure) -> list[Path]:
    """Write a figure to the output folder; return the file in a list."""
    path = scene.arguments.out / name
    plots.save_figure(figure, path)
    return [path]


def make_kernel_grid(scene: Scene) -> list[Path]:
    """Write what the kernels of a layer look for."""
    kernels = scene.kernels
    figure = explain_plots.draw_kernels(
        kernels.trained,
        kernels.untrained,
        kernels.names,
        f"What does convolution {kernels.layer} look for?\n{kernels.shown}; {scene.trained_on}",
    )
    return save(scene, "kernel_grid.png", figure)


def make_image_transform_grid(scene: Scene) -> list[Path]:
    """Write what each of these kernels sees in the picture."""
    kernels, progression = scene.kernels, scene.progression
    picture, caption = scene.picture
    after = scene.arguments.after
    maps = (progression.rectified if after else progression.responses)[kernels.layer - 1]
    question = f"What does each kernel of convolution {kernels.layer} see in this picture?"
    if after:
        question += "\nWhat is left after batch norm and ReLU, before pooling"
    figure = explain_plots.draw_image_transform(
        picture,
        maps[kernels.numbers],
        kernels.names,
        not after,
        f"{question}\n{caption}; {kernels.shown.split(',')[0]}; {scene.trained_on}",
    )
    return save(scene, "image_transform_grid.png", figure)


def make_feature_progression(scene: Scene) -> list[Path]:
    """Write how the picture turns into a decision."""
    picture, caption = scene.picture
    figure = explain_plots.draw_progression(
        picture,
        scene.progression,
        "How does the picture turn into a decision?\n"
        f"{caption}, taken for {scene.verdict}; {scene.trained_on}",
    )
    return save(scene, "feature_progression.png", figure)


def check_units(scene: Scene) -> int:
    """Return how many units the layer of the strongest activations has.

    Raises:
        UserMistake: when one is asked for that is not among them.
    """
    layer = scene.arguments.layer or BLOCK_COUNT
    count = scene.cnn.model.blocks[layer - 1].conv.out_channels
    for unit in scene.arguments.units or ():
        if unit >= count:
            raise UserMistake(f"--units {unit}: those of layer {layer} are 0 to {count - 1}")
    return count


def make_top_activations(scene: Scene) -> list[Path]:
    """Write which test images excite the units of a layer most."""
    arguments, dataset = scene.arguments, scene.dataset
    layer, count = arguments.layer or BLOCK_COUNT, check_units(scene)
    units = explain.find_units(
        scene.cnn,
        dataset.test_images,
        dataset.test_labels,
        layer,
        UNITS_SHOWN,
        IMAGES_PER_UNIT,
        arguments.units,
    )
    which = "" if arguments.units else f"the {len(units)} most selective of "
    figure = explain_plots.draw_top_activations(
        units,
        dataset.test_images.numpy(),
        dataset.test_labels.numpy(),
        f"What does each unit of block {layer} look for?\n"
        f"{which}{count} units, and the {IMAGES_PER_UNIT} test images that excite each most; "
        f"bright: the patch that does\n"
        f"(above each: the true class and the activation; {scene.trained_on})",
    )
    return save(scene, "top_activations.png", figure)


def make_saliency(scene: Scene) -> list[Path]:
    """Write which pixels decided, for images that the models get right and wrong."""
    dataset = scene.dataset
    images, labels = dataset.test_images.numpy(), dataset.test_labels.numpy()
    probabilities = {
        name: explain.class_probabilities(model, images) for name, model in scene.models.items()
    }
    examples = choose_saliency_examples(probabilities, labels)
    pictures = images[[index for index, _ in examples]]
    explanations = [
        {
            name: explain_picture(model, images[index], probabilities[name][index])
            for name, model in scene.models.items()
        }
        for index, _ in examples
    ]
    heads = [
        f"test image {index}: {CLASS_NAMES[labels[index]]}\n{case}" for index, case in examples
    ]
    figure = explain_plots.draw_saliency(
        pictures,
        heads,
        explanations,
        "Which pixels decided?\n"
        f"red speaks for the class that a model sees, blue against it; {scene.trained_on}",
    )
    return save(scene, "saliency.png", figure)


def choose_saliency_examples(
    probabilities: dict[str, np.ndarray], labels: np.ndarray
) -> list[tuple[int, str]]:
    """Choose test images that show the cases of SALIENCY_CASES, or right and wrong of one model.

    Of each case those that are nearest to SALIENCY_SURETY, of different classes.

    Args:
        probabilities: (N, 10) of each model.
        labels: (N,), the true classes.

    Returns:
        The images' numbers, each with its case in words.
    """
    right = {name: values.argmax(1) == labels for name, values in probabilities.items()}
    surety = np.min([values.max(1) for values in probabilities.values()], axis=0)
    cases = [
        (case, (right["ffn"] == ffn) & (right["cnn"] == cnn), count)
        for case, (ffn, cnn), count in SALIENCY_CASES
        if "ffn" in right
    ] or [("right", right["cnn"], 3), ("wrong", ~right["cnn"], 3)]
    chosen: list[tuple[int, str]] = []
    for case, fits, count in cases:
        seen: set[int] = {int(labels[index]) for index, _ in chosen}
        candidates = np.flatnonzero(fits)
        distance = np.abs(surety[candidates] - SALIENCY_SURETY)
        for index in candidates[np.argsort(distance, kind="stable")]:
            if count and int(labels[index]) not in seen:
                chosen.append((int(index), case))
                seen.add(int(labels[index]))
                count -= 1
    return chosen


def explain_picture(
    checkpoint: Checkpoint, picture: np.ndarray, probabilities: np.ndarray
) -> Explanation:
    """Explain a model's likeliest class for a picture, uint8 (28, 28), by its pixels."""
    label = int(probabilities.argmax())
    return Explanation(
        label,
        float(probabilities[label]),
        explain.occlusion(checkpoint, picture, label),
        explain.integrated_gradients(checkpoint, picture, label),
    )


def make_embedding(scene: Scene) -> list[Path]:
    """Write how the classes lie in the last hidden layer of each model."""
    places, predictions = {}, {}
    for name, model in scene.models.items():
        features, predictions[name] = explain.last_hidden(model, scene.dataset.test_images)
        places[name] = explain.embed(features)
    labels = scene.dataset.test_labels.numpy()
    figure = explain_plots.draw_embedding(
        places,
        predictions,
        labels,
        f"How do the classes lie?\nthe last hidden layer over {len(labels):,} test images; "
        f"{scene.trained_on}",
    )
    return save(scene, "embedding.png", figure)


def make_training(scene: Scene) -> list[Path]:
    """Write the first kernels from the first step to the last, if the training kept them.

    Raises:
        UserMistake: when it did not, and the picture was asked for by name.
    """
    path = scene.arguments.checkpoint.with_name(RECORDING)
    recording = load_recording(path, scene.cnn)
    if recording is None:
        advice = f"{path} holds no recording of this CNN; python fashionmnist.py --record makes one"
        if scene.arguments.only == ["training"]:
            raise UserMistake(advice)
        print(f"  left out: {advice}")
        return []
    kernels = choose_kernels(scene.cnn, 1)
    heads = [
        f"The first kernels while learning {TITLES[scene.cnn.dataset]}\n"
        f"epoch {step / recording.steps_per_epoch:.1f} of "
        f"{recording.steps[-1] / recording.steps_per_epoch:.0f}"
        for step in recording.steps
    ]
    frames = recording.kernels[:, kernels.numbers, 0].numpy()
    images = explain_plots.draw_recording(frames, kernels.names, heads)
    out = scene.arguments.out / "training.gif"
    explain_plots.save_gif(images, out)
    return [out]


PICTURES: dict[str, Callable[[Scene], list[Path]]] = {
    "kernel_grid": make_kernel_grid,
    "image_transform_grid": make_image_transform_grid,
    "feature_progression": make_feature_progression,
    "top_activations": make_top_activations,
    "saliency": make_saliency,
    "embedding": make_embedding,
    "training": make_training,
}
# Those that are about one image, and need no dataset when that is a file.
PICTURES_OF_ONE_IMAGE = ["kernel_grid", "image_transform_grid", "feature_progression"]


if __name__ == "__main__":
    sys.exit(main())
