"""Train the networks for accuracy rather than speed: longer recipes and distillation.

    python -m experiments.record --models ffn --teacher outputs/cnn.safetensors
    python -m experiments.record --models cnn

Writes the same files as fashionmnist.py to the folder outputs/record. Finished runs are saved in
its subfolder runs and not repeated.
"""

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fashion import cli, report
from fashion.checkpoint import SUFFIX, Checkpoint, load_weights
from fashion.data import TITLES
from fashion.environment import choose_device, choose_precision
from fashion.evaluation import predict_logits
from fashion.files import UsageError, lock_folder, prepare_folder
from fashion.recipe import Recipe
from fashion.runs import Job, Run, find_run, run_path, save_run, score
from fashion.training import Trainer
from fashionmnist import check_previous_results, choose_seeds, train, write_results
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
        optimizer="muon",
        learning_rate=0.03,  # higher than the CNN's, since the batches are larger
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
    with cli.advise("choose another one with --device"):
        device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    trainer_type: Callable[..., Trainer] = Trainer
    if arguments.teacher:
        with cli.advise("--teacher needs the weights of a CNN from fashionmnist.py", UsageError):
            teacher = load_weights(arguments.teacher, MODELS[TEACHER_MODEL])
        fingerprint = hashlib.md5(arguments.teacher.read_bytes()).hexdigest()
        trainer_type = partial(DistilledTrainer, teacher=teacher, fingerprint=fingerprint)

    with contextlib.ExitStack() as stack:
        with cli.advise("choose another folder with --out"):
            prepare_folder(arguments.out / "runs")
            stack.enter_context(lock_folder(arguments.out))
        folder = arguments.out / "runs"
        seeds = choose_seeds(arguments)
        jobs = [(name, seed) for name in arguments.models for seed in seeds]
        paths = {job: run_path(folder, *job, ".resume.pt") for job in jobs}
        check_previous_results(arguments, paths.values())
        dataset = cli.load_data(arguments).to(device)
        report.print_dataset(dataset)
        if arguments.teacher and teacher.dataset != dataset.name:
            raise UsageError(
                f"the teacher {arguments.teacher} was trained on {TITLES[teacher.dataset]}, not on "
                f"{dataset.title}"
            )

        def make_trainer(name: str, seed: int) -> Trainer:
            recipe = cli.change_recipe(BEST_RECIPES[name], arguments)
            return trainer_type(MODELS[name], dataset, recipe, seed, precision)

        runs: dict[Job, Run] = {}
        with cli.advise("choose another folder with --out, or remove the old runs", UsageError):
            for name, seed in jobs:
                if run := find_run(folder, name, make_trainer(name, seed)):
                    runs[name, seed] = run
        print(f"Runs requested: {len(jobs)}, already in {folder}: {len(runs)}")
        for name, seed in jobs:
            if (name, seed) not in runs:
                trainer = make_trainer(name, seed)
                train(trainer, name, paths[name, seed], arguments)
                runs[name, seed] = score(trainer, name)
                save_run(folder, runs[name, seed])
                paths[name, seed].unlink(missing_ok=True)
        settings = {
            "limit": arguments.limit,
            "precision": str(precision).removeprefix("torch."),
            "teacher": str(arguments.teacher) if arguments.teacher else None,
        }
        write_results(arguments, dataset, runs, settings)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "-m experiments.record", "Train the networks for accuracy with longer recipes."
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=BEST_RECIPES,
        default=list(BEST_RECIPES),
        help="models to train, in this order (default: all)",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="train on the probabilities of this CNN instead of the labels, which the recipe of "
        f"the FFN is made for; such as outputs/{TEACHER_MODEL}{SUFFIX}",
    )
    cli.add_out_option(parser, "all results")
    cli.add_data_options(parser.add_argument_group("data"))
    training = parser.add_argument_group("training")
    cli.add_recipe_options(training, BEST_RECIPES)
    cli.add_run_options(training, runs=1)
    parser.set_defaults(out=cli.OUTPUT_FOLDER / "record", record=False)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    arguments.command = ["python", "-m", "experiments.record", *argv]  # to repeat it with --resume
    arguments.models = list(dict.fromkeys(arguments.models))
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
