"""Show what the convolutional network learned: its kernels, and what they make of a picture.

    python kernel_vis.py

Reads outputs/cnn.pt, which fashionmnist.py writes; writes kernel_grid.png, image_transform_grid.png
and feature_progression.png beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

import plots
from cnn import BLOCK_COUNT, CNN
from data import (
    CLASS_NAMES,
    IMAGE_SIZE,
    TITLES,
    UserMistake,
    WorldFault,
    load_dataset,
    normalize,
    prepare_folder,
)
from fashionmnist import Parser, print_files, run_script, warn
from training import Checkpoint, load_checkpoint

# More tiles than this are too small to read; of a larger layer the strongest are shown.
MAX_TILES = 64
NETWORK_TIMEOUT = 20  # seconds, as in fashionmnist.py
# A picture of more pixels than this has no business here, and could fill the memory.
MAX_PIXELS = 50_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, checkpoint, picture, feature maps, figures.

    Raises:
        UserMistake, WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    checkpoint = load_checkpoint(arguments.checkpoint, expected="cnn")
    prepare_folder(arguments.out)
    picture, caption = load_picture(arguments.image, checkpoint, arguments.data_dir)

    responses, activations = feature_maps(checkpoint, picture)
    probabilities = class_probabilities(checkpoint, picture)
    guess = int(probabilities.argmax())
    verdict = f"{CLASS_NAMES[guess]} {probabilities[guess]:.0%}"

    layer = arguments.layer
    kernels, explanation = kernel_tiles(checkpoint.model, layer)
    numbers = strongest_kernels(checkpoint.model, layer)
    shown = f"{len(numbers)} kernels"
    if len(numbers) < len(kernels):
        shown = f"the {len(numbers)} largest of {len(kernels)} kernels"
    trained_on = TITLES[checkpoint.dataset]
    figures = {
        "kernel_grid.png": plots.draw_kernels(
            kernels[numbers],
            numbers,
            f"What does convolution {layer} look for?\n"
            f"{shown}{explanation}; trained on {trained_on}",
        ),
        "image_transform_grid.png": plots.draw_image_transform(
            picture,
            responses[layer - 1][numbers],
            numbers,
            f"What does each kernel of convolution {layer} see?\n"
            f"{caption}; {shown}; trained on {trained_on}",
        ),
        "feature_progression.png": plots.draw_progression(
            picture,
            activations,
            f"How does the picture turn into features?\n"
            f"{caption}, taken for {verdict}; trained on {trained_on}",
        ),
    }
    files = [arguments.out / name for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        plots.save_figure(figure, file)
    print(f"{caption}: the CNN, trained on {trained_on}, takes it for {verdict}")
    print_files(files)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown, malformed or out of range.
    """
    parser = Parser(
        prog="kernel_vis.py",
        description="Show the kernels of a trained CNN and what they make of a picture.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("outputs/cnn.pt"),
        help="model that fashionmnist.py wrote (default: %(default)s)",
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
        default=1,
        help="which convolution's kernels to show (default: %(default)s)",
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
    return parser.parse_args(argv)


def load_picture(wanted: str, checkpoint: Checkpoint, data_dir: Path) -> tuple[np.ndarray, str]:
    """Return a picture, uint8 (28, 28), and a caption that says which.

    Args:
        wanted: the number of a test image of the dataset that the model was trained on, or a file.
        checkpoint: says which dataset that is.
        data_dir: where the dataset lies.

    Raises:
        UserMistake: when there is no such image or file, or the file is no picture.
        WorldFault: when the file or the dataset cannot be read.
    """
    try:
        index = int(wanted)
    except ValueError:
        return read_picture(Path(wanted)), Path(wanted).name
    dataset = load_dataset(checkpoint.dataset, data_dir, None, NETWORK_TIMEOUT, None, warn)
    if not 0 <= index < len(dataset.test_images):
        raise UserMistake(
            f"--image {index}: the test images are numbered 0 to {len(dataset.test_images) - 1}"
        )
    label = CLASS_NAMES[dataset.test_labels[index]]
    return dataset.test_images[index].numpy(), f"test image {index}, {label}"


def read_picture(path: Path) -> np.ndarray:
    """Read a picture file as uint8 (28, 28), a light garment on black ground as in the dataset.

    The picture is made grey and square, and turned to its negative when its border is light.

    Raises:
        UserMistake: when there is no such file, or it is no picture or too large a one.
        WorldFault: when it cannot be read.
    """
    if not path.is_file():
        raise UserMistake(f"--image {path}: there is no such file")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserMistake(
                    f"--image {path}: {image.width} × {image.height} pixels are too many, "
                    f"at most {MAX_PIXELS:,} are read"
                )
            grey = ImageOps.exif_transpose(image).convert("L")
    except PermissionError as error:
        raise WorldFault(f"cannot read {path}: {error.strerror}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow says of a broken file what its format's reader happens to stumble over.
        kind = "is no picture" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UserMistake(f"--image {path}: the file {kind}, or none that Pillow reads") from error
    border = np.concatenate(
        [np.asarray(grey)[[0, -1]].ravel(), np.asarray(grey)[:, [0, -1]].ravel()]
    )
    ground = int(np.median(border))
    if ground > 127:
        grey, ground = ImageOps.invert(grey), 255 - ground
    square = ImageOps.pad(grey, (IMAGE_SIZE, IMAGE_SIZE), color=ground)
    return np.asarray(square)


@torch.inference_mode()
def feature_maps(
    checkpoint: Checkpoint, picture: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what each convolution makes of a picture, and what each whole block does.

    Args:
        checkpoint: a trained CNN.
        picture: uint8 (28, 28).

    Returns:
        For each block the convolution's response (K, size, size), signed, and the activation after
        pooling, batch norm and ReLU (K, size // 2, size // 2), not negative.
    """
    responses, activations = [], []
    maps = _normalized(checkpoint, picture)
    for block in checkpoint.model.blocks:
        responses.append(block.conv(maps)[0].numpy())
        maps = block(maps)
        activations.append(maps[0].numpy())
    return responses, activations


@torch.inference_mode()
def class_probabilities(checkpoint: Checkpoint, picture: np.ndarray) -> np.ndarray:
    """Return the ten probabilities that the model gives a picture, uint8 (28, 28)."""
    return checkpoint.model(_normalized(checkpoint, picture))[0].softmax(0).numpy()


def _normalized(checkpoint: Checkpoint, picture: np.ndarray) -> Tensor:
    image = torch.from_numpy(picture.copy()).unsqueeze(0)
    return normalize(image, checkpoint.mean, checkpoint.std)


def kernel_tiles(model: CNN, layer: int) -> tuple[np.ndarray, str]:
    """Return one tile (height, width) for each kernel of a layer, and what the tile is.

    A first-layer kernel is its own tile. A deeper one has a slice for each map before it; its tile
    is the slice with the largest weights.
    """
    weights = model.blocks[layer - 1].conv.weight.detach().numpy()
    if weights.shape[1] == 1:
        return weights[:, 0], ""
    strongest = np.abs(weights).sum(axis=(2, 3)).argmax(axis=1)
    tiles = weights[np.arange(len(weights)), strongest]
    return tiles, f", each by the strongest of its {weights.shape[1]} slices"


def strongest_kernels(model: CNN, layer: int) -> np.ndarray:
    """Return the numbers of the kernels to show, ascending: all, or the largest by their norm."""
    weights = model.blocks[layer - 1].conv.weight.detach()
    norms = weights.flatten(1).norm(dim=1).numpy()
    return np.sort(np.argsort(-norms, kind="stable")[:MAX_TILES])


if __name__ == "__main__":
    sys.exit(main())
