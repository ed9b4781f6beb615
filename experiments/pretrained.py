"""Write the trained models to the folder pretrained, which is shipped with the project.

    python -m experiments.pretrained

The weights are rounded to float16, and the rounded models are scored again, so that the files state
what they hold. kernel_vis.py and predict.py use them where no models have been trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fashion import cli
from fashion.checkpoint import SUFFIX, load_models, save_tensors
from fashion.data import FASHION_MNIST, load_dataset
from fashion.evaluation import evaluate, predict_logits
from fashion.files import RunError, UsageError, prepare_folder
from fashion.runs import describe_validation
from models import MODELS


def main(arguments: argparse.Namespace) -> None:
    """Round, score and write all models."""
    paths = {name: arguments.checkpoints / f"{name}{SUFFIX}" for name in MODELS}
    with cli.advise("train the models with: python fashionmnist.py", UsageError):
        models = load_models(paths, MODELS)
    with cli.advise("choose another folder with --data-dir", RunError):
        dataset = load_dataset(FASHION_MNIST, arguments.data_dir)
    prepare_folder(cli.PRETRAINED_FOLDER)
    held_out, files = dataset.validation_indices, []
    for name, checkpoint in models.items():
        model = checkpoint.model.half().float()
        settings = checkpoint.mean, checkpoint.std
        test = evaluate(predict_logits(model, dataset.test_images, *settings), dataset.test_labels)
        logits, labels = (
            predict_logits(model, dataset.images[held_out], *settings),
            dataset.labels[held_out],
        )
        before = checkpoint.metadata["test_accuracy"]
        print(f"{name.upper()}: test accuracy {before:.2%}, rounded to float16 {test.accuracy:.2%}")
        metadata = checkpoint.metadata | describe_validation(logits, labels)
        metadata |= {"test_accuracy": test.accuracy}
        weights = {
            key: value.half() if value.dtype == torch.float32 else value
            for key, value in model.state_dict().items()
        }
        files.append(cli.PRETRAINED_FOLDER / f"{name}{SUFFIX}")
        save_tensors(files[-1], weights, metadata)
    cli.print_files(files)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown or malformed.
    """
    parser = cli.Parser("-m experiments.pretrained", "Write the models shipped with the project.")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=cli.OUTPUT_FOLDER,
        metavar="DIR",
        help="folder with the trained models (default: %(default)s)",
    )
    cli.add_data_dir_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
