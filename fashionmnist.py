"""Train a feedforward and a convolutional network on Fashion-MNIST, and compare them.

    python fashionmnist.py

Writes curves, predictions, confusions and a comparison as PNG, the numbers as JSON and the trained
models to the folder outputs.
"""

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import numpy as np
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

import plots
from data import (
    FASHION_MNIST,
    SYNTHETIC,
    Dataset,
    UserMistake,
    WorldFault,
    load_dataset,
    prepare_folder,
    write_file,
)
from training import (
    MODELS,
    RECIPES,
    Evaluation,
    Recipe,
    Trainer,
    choose_device,
    choose_precision,
    count_parameters,
    evaluate,
    format_duration,
    predict_logits,
    save_checkpoint,
    summarize,
)

# The largest values that make sense; beyond them an argument is a slip of the finger.
MAX_EPOCHS = 100_000
MAX_BATCH_SIZE = 55_000  # the training part of Fashion-MNIST
MAX_SEED = 2**63 - 1  # what torch's generators take
MAX_TIMEOUT = 3600  # seconds
MIN_BATCH_SIZE = 2  # batch norm has nothing to average over in one image
INTERRUPTED = 130  # the shell's exit status after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, data, training, evaluation, pictures.

    Raises:
        UserMistake, WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    if arguments.summary:
        print_summaries(arguments.models)
        return
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    prepare_folder(arguments.out)

    dataset = load_dataset(
        arguments.dataset,
        arguments.data_dir,
        arguments.mirror,
        arguments.timeout,
        arguments.limit,
        device,
        warn,
    )
    print_dataset(dataset)

    trainers = {
        name: train(name, dataset, recipe_for(name, arguments), precision, arguments)
        for name in arguments.models
    }

    # The one and only look at the test set.
    logits = {
        name: predict_logits(
            trainer.averaged, dataset.test_images, dataset.mean, dataset.std, precision
        )
        for name, trainer in trainers.items()
    }
    evaluations = {name: evaluate(logits[name], dataset.test_labels) for name in trainers}

    metrics = collect_metrics(arguments, dataset, precision, trainers, evaluations)
    files = write_results(arguments.out, dataset, trainers, logits, metrics)
    print_closing_table(dataset, trainers, evaluations)
    print_files(files)
    print_next_command(arguments)


def run_script(story: Callable[[], None]) -> int:
    """Run a script's story; turn the errors that a user can act on into words and an exit status.

    Returns:
        0; 2 for a user's mistake; 1 when disk, network, data or numbers failed; 130 after Ctrl-C.
    """
    try:
        story()
    except (UserMistake, WorldFault) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{interrupt}", file=sys.stderr)
        return INTERRUPTED
    return 0


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, as every other mistake is reported."""

    def error(self, message: str) -> NoReturn:
        """Raise UserMistake."""
        raise UserMistake(f"{message}; see python {self.prog} --help")


def number_type(convert: type, low: float, high: float, *, above: bool = False) -> Callable:
    """Return a converter for argparse: a number between low and high, or above low.

    Args:
        convert: int or float.
        low: the smallest allowed value, or with above the largest that is too small.
        high: the largest allowed value.
        above: whether low itself is refused.
    """

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low):
            kind = "whole number" if convert is int else "number"
            span = f"above {low:,} and up to {high:,}" if above else f"from {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"wanted a {kind} {span}, got {text!r}")
        return value

    return parse


def web_address(text: str) -> str:
    """Check an address for argparse: http or https, with a host."""
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise argparse.ArgumentTypeError(f"wanted an http:// or https:// address, got {text!r}")
    return text


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown, malformed or out of range.
    """
    parser = Parser(
        prog="fashionmnist.py",
        description="Train a feedforward and a convolutional network on Fashion-MNIST and compare "
        "them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        help="what to train, in this order (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder for all results (default: %(default)s)",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        choices=["auto", FASHION_MNIST, SYNTHETIC],
        default="auto",
        help="auto: Fashion-MNIST, or a drawn stand-in where neither disk nor network has it "
        "(default: %(default)s)",
    )
    data.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder that holds, or will hold, FashionMNIST/raw (default: %(default)s)",
    )
    data.add_argument(
        "--mirror",
        type=web_address,
        metavar="URL",
        help="address of a folder with the four archives, tried before torchvision's own",
    )
    data.add_argument(
        "--timeout",
        type=number_type(float, 0, MAX_TIMEOUT, above=True),
        default=20,
        metavar="SECONDS",
        help="longest wait for one answer from the network (default: %(default)s)",
    )
    data.add_argument(
        "--limit",
        type=number_type(int, MIN_BATCH_SIZE, MAX_BATCH_SIZE),
        metavar="N",
        help="train on the first N images only, for a quick look",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=number_type(int, 1, MAX_EPOCHS), help=defaults_help("epochs")
    )
    training.add_argument(
        "--batch-size",
        type=number_type(int, MIN_BATCH_SIZE, MAX_BATCH_SIZE),
        help=defaults_help("batch_size"),
    )
    training.add_argument(
        "--lr",
        dest="learning_rate",
        type=number_type(float, 0, 1e6, above=True),
        help="peak learning rate, " + defaults_help("learning_rate"),
    )
    training.add_argument(
        "--weight-decay", type=number_type(float, 0, 1e6), help=defaults_help("weight_decay")
    )
    training.add_argument(
        "--seed",
        type=number_type(int, 0, MAX_SEED),
        default=0,
        help="of first weights, order, augmentation and dropout (default: %(default)s)",
    )
    training.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="(default: %(default)s, the fastest there is)",
    )
    training.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of products; auto: bfloat16 where the hardware has it (default: %(default)s)",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last finished epoch of an interrupted run with the same settings",
    )
    parser.add_argument(
        "--summary", action="store_true", help="print the models' layers and stop there"
    )
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    arguments.models = list(dict.fromkeys(arguments.models))
    return arguments


def defaults_help(setting: str) -> str:
    """Return the help text that names each model's default for a setting of its recipe."""
    values = ", ".join(f"{name} {getattr(recipe, setting):g}" for name, recipe in RECIPES.items())
    return f"(default: {values})"


def recipe_for(name: str, arguments: argparse.Namespace) -> Recipe:
    """Return the model's recipe with what the command line sets otherwise."""
    given = {
        setting: value
        for setting in ("epochs", "batch_size", "learning_rate", "weight_decay")
        if (value := getattr(arguments, setting)) is not None
    }
    return replace(RECIPES[name], **given)


def warn(message: str) -> None:
    """Print a warning where it is seen even when the output goes to a file."""
    print(f"WARNING: {message}", file=sys.stderr)


def print_summaries(names: Sequence[str]) -> None:
    """Print each model's table of layers."""
    for name in names:
        print(f"{name.upper()}\n{summarize(MODELS[name]())}\n")


def print_dataset(dataset: Dataset) -> None:
    """Print what there is to learn from."""
    print(
        f"{dataset.title}: {len(dataset.train_indices):,} images to train on, "
        f"{len(dataset.validation_indices):,} to validate on, {len(dataset.test_images):,} to test "
        f"on; pixel mean {dataset.mean:.4f}, standard deviation {dataset.std:.4f}"
    )


def resume_path(out: Path, name: str) -> Path:
    """Where a model's training is kept while it is not finished, and after."""
    return out / f"{name}.resume.pt"


def train(
    name: str,
    dataset: Dataset,
    recipe: Recipe,
    precision: torch.dtype,
    arguments: argparse.Namespace,
) -> Trainer:
    """Train one model to the end, with a row an epoch and a file to resume from after each.

    Raises:
        UserMistake, WorldFault: see Trainer.
        KeyboardInterrupt: on Ctrl-C, saying what was saved and how to go on.
    """
    trainer = Trainer(name, dataset, recipe, arguments.seed, precision)
    kept = resume_path(arguments.out, name)
    print(
        f"\n{name.upper()}: {count_parameters(trainer.model):,} parameters, {recipe.epochs} epochs "
        f"of {trainer.steps} steps of {trainer.batch_size} images, on {describe(trainer.device)} "
        f"in {str(precision).removeprefix('torch.')}"
    )
    if arguments.resume and kept.exists():
        trainer.resume(kept)
        print(f"resumed from {kept}, after epoch {len(trainer.history)} of {recipe.epochs}")
    elif arguments.resume:
        print(f"nothing to resume at {kept}: starting from the first epoch")

    started_with = len(trainer.history)
    print(
        f"{'epoch':>9}  {'train loss':>10}  {'val loss':>8}  {'train acc':>9}  {'val acc':>7}  "
        f"{'learn rate':>10}  {'seconds':>7}  time left"
    )
    try:
        while not trainer.finished:
            entry = trainer.train_epoch(lambda steps: show_progress(steps, trainer))
            trainer.save(kept)
            seconds = trainer.epoch_seconds[started_with:]
            left = sum(seconds) / len(seconds) * (recipe.epochs - entry["epoch"])
            print(
                f"{entry['epoch']:>4}/{recipe.epochs:<4}  {entry['train_loss']:>10.4f}  "
                f"{entry['validation_loss']:>8.4f}  {entry['train_accuracy']:>9.2%}  "
                f"{entry['validation_accuracy']:>7.2%}  {entry['learning_rate']:>10.2e}  "
                f"{seconds[-1]:>7.1f}  {format_duration(left)}",
                flush=True,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(say_how_to_go_on(trainer, kept, arguments.argv)) from None
    return trainer


def say_how_to_go_on(trainer: Trainer, kept: Path, argv: Sequence[str]) -> str:
    """Say after Ctrl-C what was saved and which command goes on from there."""
    done = len(trainer.history)
    saved = f"epochs 1 to {done} are saved in {kept}" if done else "no epoch of it is saved yet"
    words = [word for word in argv if word != "--resume"]
    command = shlex.join(["python", "fashionmnist.py", *words, "--resume"])
    return f" in epoch {done + 1} of {trainer.name}; {saved}. Go on with:\n{command}"


def describe(device: torch.device) -> str:
    """Name a device as a reader knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} with {torch.get_num_threads()} threads"


def show_progress(
    steps: Iterator[tuple[Tensor, Tensor]], trainer: Trainer
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass an epoch's steps through under a bar of steps, loss and images/s, on a terminal only."""
    title = f"{trainer.name} {len(trainer.history) + 1}/{trainer.recipe.epochs}"
    visible = sys.stderr.isatty()
    with tqdm(
        total=trainer.steps, desc=title, unit="step", leave=False, disable=not visible
    ) as bar:
        start = time.perf_counter()
        for number, (loss, hits) in enumerate(steps, start=1):
            yield loss, hits
            # Reading the loss would make the CPU wait for a GPU.
            if visible and trainer.device.type == "cpu":
                speed = number * trainer.batch_size / (time.perf_counter() - start)
                bar.set_postfix_str(f"loss {loss.item():.3f}, {speed:,.0f} images/s", refresh=False)
            bar.update()


def collect_metrics(
    arguments: argparse.Namespace,
    dataset: Dataset,
    precision: torch.dtype,
    trainers: dict[str, Trainer],
    evaluations: dict[str, Evaluation],
) -> dict[str, Any]:
    """Return all that metrics.json says."""
    return {
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "train_images": len(dataset.train_indices),
            "validation_images": len(dataset.validation_indices),
            "test_images": len(dataset.test_images),
            "mean": dataset.mean,
            "std": dataset.std,
        },
        "seed": arguments.seed,
        "settings": {
            "limit": arguments.limit,
            "precision": str(precision).removeprefix("torch."),
            "recipes": {name: asdict(trainer.recipe) for name, trainer in trainers.items()},
            "models": {name: trainer.model.arguments for name, trainer in trainers.items()},
        },
        "device": describe(dataset.images.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "matplotlib": matplotlib.__version__,
        },
        "models": {
            name: {
                "parameters": count_parameters(trainer.model),
                "train_seconds": trainer.train_seconds,
                "epoch_seconds": trainer.epoch_seconds,
                "history": trainer.history,
                "test_loss": evaluations[name].loss,
                "test_accuracy": evaluations[name].accuracy,
                "test_accuracy_by_class": evaluations[name].accuracy_by_class,
                "confusion_matrix": evaluations[name].confusion_matrix,
            }
            for name, trainer in trainers.items()
        },
    }


def write_results(
    out: Path,
    dataset: Dataset,
    trainers: dict[str, Trainer],
    logits: dict[str, Tensor],
    metrics: dict[str, Any],
) -> list[Path]:
    """Write models, numbers and pictures; return the files, in the order of writing.

    Raises:
        WorldFault: when one cannot be written.
    """
    files = []
    for name, trainer in trainers.items():
        files.append(out / f"{name}.pt")
        save_checkpoint(files[-1], trainer)
    files.append(out / "metrics.json")
    write_file(files[-1], (json.dumps(metrics, indent=2) + "\n").encode())

    images, labels = dataset.test_images.cpu().numpy(), dataset.test_labels.cpu().numpy()
    figures = {}
    for name, trainer in trainers.items():
        probabilities = logits[name].softmax(1).cpu().numpy()
        figures[f"{name}_loss.png"] = plots.draw_learning_curves(
            trainer.history, name, dataset.title
        )
        for correct in (True, False):
            figures[f"{name}_{'correct' if correct else 'incorrect'}.png"] = plots.draw_predictions(
                images, labels, probabilities, correct, name, dataset.title
            )
        figures[f"{name}_confusion.png"] = plots.draw_confusion(
            metrics["models"][name]["confusion_matrix"], name, dataset.title
        )
    if len(trainers) > 1:
        figures["comparison.png"] = plots.draw_comparison(metrics["models"], dataset.title)
    for file, figure in figures.items():
        files.append(out / file)
        plots.save_figure(figure, files[-1])
    return files


def print_closing_table(
    dataset: Dataset, trainers: dict[str, Trainer], evaluations: dict[str, Evaluation]
) -> None:
    """Print one row a model: size, time and accuracy."""
    print(f"\nResult on {dataset.title}")
    print(f"{'model':<5}  {'parameters':>10}  {'train time':>12}  {'val acc':>7}  {'test acc':>8}")
    for name, trainer in trainers.items():
        print(
            f"{name.upper():<5}  {count_parameters(trainer.model):>10,}  "
            f"{format_duration(trainer.train_seconds):>12}  "
            f"{trainer.history[-1]['validation_accuracy']:>7.2%}  "
            f"{evaluations[name].accuracy:>8.2%}"
        )
    if dataset.name == SYNTHETIC:
        print(
            "These pictures were drawn by synthetic.py: the figures say nothing of Fashion-MNIST."
        )


def print_files(files: Sequence[Path]) -> None:
    """Print which files were written."""
    print("\nWritten:")
    for file in files:
        print(f"  {file}")


def print_next_command(arguments: argparse.Namespace) -> None:
    """Print what to run next."""
    if "cnn" in arguments.models:
        options = ""
        if arguments.out != Path("outputs"):
            options += f" --checkpoint {arguments.out / 'cnn.pt'} --out {arguments.out}"
        if arguments.data_dir != Path("data"):
            options += f" --data-dir {arguments.data_dir}"
        print(f"\nSee what the CNN looks for: python kernel_vis.py{options}")


if __name__ == "__main__":
    sys.exit(main())
