"""Train the networks for accuracy rather than speed: longer recipes and distillation.

    python -m experiments.record --models ffn --teacher outputs/cnn.safetensors
    python -m experiments.record --models cnn

Writes the same files as fashionmnist.py to the folder outputs/record. Finished runs are saved in
its subfolder runs and not repeated.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import fashionmnist
from fashion import cli
from fashion.checkpoint import SUFFIX, Checkpoint, load_weights
from fashion.data import TITLES
from fashion.evaluation import predict_logits
from fashion.files import UsageError
from fashion.recipe import Recipe
from fashion.training import Trainer
from models import MODELS

TEACHER_MODEL = "cnn"

# Chosen on the validation images for accuracy alone, in less than 45 minutes for both on two CPU
# cores.
BEST_RECIPES: dict[str, Recipe] = {
    # For training with --teacher. Learning a CNN's probabilities for shifted images is useful, and
    # hard enough that little dropout is needed.
    "ffn": replace(
        MODELS["ffn"].recipe,
        model={"widths": (1024, 512, 256, 128), "dropout": 0.1},
        epochs=60,
        batch_size=1024,
        shifted=1.0,
    ),
    # More kernels raise the accuracy but also overfit; cutout reduces overfitting.
    "cnn": replace(
        MODELS["cnn"].recipe,
        model={"channels": (64, 128, 256)},
        epochs=40,
        cutout=7,
    ),
}


class DistilledTrainer(Trainer):
    """Trains a model on the probabilities of a teacher (Hinton et al., arXiv:1503.02531).

    Args:
        arguments: Those of Trainer. The labels of the dataset do not affect the weights.
        teacher: The trained model to learn from. It is moved to the device of the dataset.
        fingerprint: Distinguishes the teacher from others.
    """

    def __init__(self, *arguments: Any, teacher: Checkpoint, fingerprint: str) -> None:
        super().__init__(*arguments)
        if teacher.dataset != self.dataset.name:
            raise UsageError(
                f"the teacher was trained on {TITLES[teacher.dataset]}, not on {self.dataset.title}"
            )
        self.teacher, self.fingerprint = teacher, fingerprint
        teacher.model.to(self.device)

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (N, 10) and the teacher's probabilities.

        The teacher sees the images uint8 (N, 28, 28) as augmented; the labels are not used.
        """
        teacher = self.teacher
        targets = predict_logits(teacher.model, images, teacher.mean, teacher.std)
        return F.cross_entropy(logits, targets.softmax(1))

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine every weight, with the teacher's fingerprint."""
        return super().identity() | {"teacher": self.fingerprint}

    def metadata(self) -> dict[str, Any]:
        """Return what Trainer.metadata does, with the teacher's fingerprint."""
        return super().metadata() | {"teacher": self.fingerprint}


def main(arguments: argparse.Namespace) -> None:
    """Train and score all models with all seeds, and write results and pictures."""
    if not arguments.teacher:
        fashionmnist.main(arguments, teacher=None)
        return
    with cli.advise("--teacher needs the weights of a CNN from fashionmnist.py", UsageError):
        teacher = load_weights(arguments.teacher, MODELS[TEACHER_MODEL])
    fingerprint = hashlib.md5(arguments.teacher.read_bytes()).hexdigest()
    trainer_type = partial(DistilledTrainer, teacher=teacher, fingerprint=fingerprint)
    fashionmnist.main(arguments, trainer_type, teacher=str(arguments.teacher))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.record", "Train the networks for accuracy with longer recipes."
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="train on the probabilities of this CNN instead of the labels, which the recipe of "
        f"the FFN is made for; such as outputs/{TEACHER_MODEL}{SUFFIX}",
    )
    out = cli.OUTPUT_FOLDER / "record"
    arguments = fashionmnist.parse_options(parser, BEST_RECIPES, argv, out)
    arguments.series = True  # these trainings are long: keep each of them
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
