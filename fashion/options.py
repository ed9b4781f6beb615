"""The options of the scripts. Parsing needs no torch, so that --help and mistakes take no time."""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fashion.script import DATA, MISTAKE, OUTPUTS, printable

DEVICES, PRECISIONS = ("auto", "cpu", "cuda", "mps"), ("auto", "float32", "bfloat16")
FIGURES = (  # of kernel_vis.py
    *("architectures", "kernel_grid", "ffn_weights", "image_transform_grid"),
    *("feature_progression", "top_activations", "saliency", "embedding"),
)
TOP = 3  # most probable classes that predict.py reports


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line and accepts no abbreviated options."""

    def __init__(self, description: str, **keywords: Any) -> None:
        super().__init__(description=description, allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(MISTAKE, printable(f"error: {message}; see python {self.prog} --help\n"))


def number(convert: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a converter for argparse that accepts numbers from low to high."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := convert(text)) <= high and math.isfinite(value):
                return value
        kind = "an integer" if convert is int else "a number"
        span = f"from {low:,}" + (f" to {high:,}" if high < math.inf else "")
        raise argparse.ArgumentTypeError(f"expected {kind} {span}, got {text!r}")

    return parse


def image(text: str) -> int | Path:
    """Return the number of a test image, or else the path of a picture."""
    return int(text) if text.lstrip("-").isdecimal() else Path(text)


def add_folders(parser: argparse.ArgumentParser, content: str) -> None:
    """Add --out, the folder for the content named, and --data-dir."""
    for option, folder, text in (("--out", OUTPUTS, content), ("--data-dir", DATA, "the dataset")):
        text = f"folder of {text} ({folder})"
        parser.add_argument(option, type=Path, default=folder, metavar="DIR", help=text)


def fashionmnist() -> argparse.Namespace:
    """Return the arguments of fashionmnist.py; None stands for the value of the recipe."""
    parser = Parser("Train a feedforward and a convolutional network on Fashion-MNIST.")
    add, many = parser.add_argument, number(int, 1)
    add("--quick", action="store_true", help="train for about a minute, into the subfolder quick")
    add("--sample", action="store_true", help="use the 12,000 images that come with the project")
    add("--models", nargs="+", metavar="NAME", help="rows of models.py to train (default: all)")
    add("--runs", type=many, default=1, metavar="N", help="train with N seeds and compare them")
    add("--seed", type=number(int, 0, 10**9), default=0, metavar="N", help="first seed (0)")
    add("--fresh", action="store_true", help="train from scratch, ignoring saved runs")
    add_folders(parser, "the results")
    add("--limit", type=number(int, 2), metavar="N", help="train on N images only")
    add("--device", choices=DEVICES, default="auto", help="default: CUDA if any, else the CPU")
    text = "of matrix products (default: bfloat16 where the hardware has it)"
    add("--precision", choices=PRECISIONS, default="auto", help=text)
    training = parser.add_argument_group("training settings, overriding ffn.py and cnn.py")
    add, positive = training.add_argument, number(float, 0)
    add("--epochs", type=many, metavar="N", help="passes over the training images")
    add("--batch-size", type=number(int, 2), metavar="N", help="images per step")
    add("--lr", dest="learning_rate", type=positive, metavar="X", help="peak learning rate")
    add("--weight-decay", type=positive, metavar="X", help="of AdamW and SGD")
    return parser.parse_args()


def kernel_vis() -> argparse.Namespace:
    """Return the arguments of kernel_vis.py."""
    parser = Parser("Look inside the trained networks.")
    add = parser.add_argument
    text = f"figures to draw, of {', '.join(FIGURES)} (default: all)"
    add("--only", nargs="+", choices=FIGURES, metavar="NAME", help=text)
    text = "trained networks (default: those in the output folder, or shipped ones)"
    add("--checkpoint", type=Path, metavar="DIR|FILE", help=text)
    add("--image", type=image, metavar="N|FILE", help="number of a test image, or an image file")
    add("--layer", type=number(int, 1), metavar="N", help="convolution; default: 1, units: last")
    add("--sample", action="store_true", help="show images of the sample in the folder sample")
    add_folders(parser, "the figures")
    return parser.parse_args()


def predict() -> argparse.Namespace:
    """Return the arguments of predict.py."""
    parser = Parser("Classify your own pictures with the trained networks.")
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="files, folders, or - for standard input")
    text = "weights, a file or a folder (default: those in the output folder, or shipped ones)"
    add("--checkpoints", type=Path, metavar="PATH", help=text)
    text = "print JSON: each picture has file and doubt and, under each network's name, label, "
    text += f"probability, top{TOP}, energy_above_limit and familiar"
    add("--json", action="store_true", help=text)
    text = f"folder of the figure ({OUTPUTS})"
    add("--out", type=Path, default=OUTPUTS, metavar="DIR", help=text)
    return parser.parse_args()
