"""Train a feedforward and a convolutional network on Fashion-MNIST, and compare them.

    python fashionmnist.py

Writes curves, predictions, confusions and a comparison as PNG, the numbers as JSON and the trained
models to the folder outputs.
"""

import argparse
import contextlib
import io
import json
import math
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import plots
from comparison import calibrate, compare, find_suspects, probabilities_of, suspects_csv
from data import CLASS_NAMES, FASHION_MNIST, SYNTHETIC, Dataset, load_dataset
from files import UserMistake, WorldFault, keep_folder, prepare_folder, write_file
from runs import Run, Workers, find_run, keep_run, run_path, score
from training import (
    BEST_RECIPES,
    MODELS,
    RECIPES,
    Checkpoint,
    Recipe,
    Trainer,
    choose_deterministic_algorithms,
    choose_device,
    choose_precision,
    count_parameters,
    format_duration,
    load_checkpoint,
    save_recording,
    summarize,
    write_tensors,
)

# The largest values that make sense; beyond them an argument is a slip of the finger.
MAX_EPOCHS = 100_000
MAX_BATCH_SIZE = 55_000  # the training part of Fashion-MNIST
MAX_SEED = 2**63 - 1 - 10_000  # what torch's generators take, less the runs
MAX_RUNS = 10_000
MAX_TIMEOUT = 3600  # seconds
MAX_EPOCH_ROWS = 250  # that anybody reads
MIN_BATCH_SIZE = 2  # batch norm has nothing to average over in one image
RECORDING = "recording.pt"  # where kernel_vis.py looks for it, beside cnn.pt
INTERRUPTED, TERMINATED = 130, 143  # the shell's exit statuses after Ctrl-C and SIGTERM


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
        print_summaries({name: recipe_for(name, arguments) for name in arguments.models})
        return
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    if arguments.deterministic:
        choose_deterministic_algorithms()

    teacher = load_checkpoint(arguments.teacher, "cnn") if arguments.teacher else None

    with Workers(device) as workers, speaking(workers.leads):
        if workers.size > 1 and arguments.runs == 1:
            raise UserMistake(
                f"{workers.size} processes have one run of each model to share: give --runs N, "
                "or start the script without torchrun"
            )
        with output_folder(arguments.out, workers):
            dataset = workers.share(lambda: load_data(arguments)).to(workers.device)
            print_dataset(dataset)
            if arguments.runs == 1:
                runs = train_once(arguments, dataset, precision, teacher)
            else:
                runs = train_series(arguments, dataset, precision, teacher, workers)
            if not workers.leads:
                return

            files = write_first_run(arguments, dataset, precision, runs)
            print_closing_table(dataset, {name: finished[0] for name, finished in runs.items()})
            if arguments.runs > 1 or len(runs) > 1:
                comparison = compare(runs, dataset)
                files += write_comparison(arguments.out, dataset, runs, comparison)
                if arguments.runs > 1:
                    print_comparison(comparison)
            if arguments.record:
                files.append(arguments.out / RECORDING)
            print_files(files)
            print_next_command(arguments)


def speaking(aloud: bool) -> AbstractContextManager:
    """Let a process print, or keep it quiet: of many, one is enough."""
    return nullcontext() if aloud else redirect_stdout(io.StringIO())


@contextlib.contextmanager
def output_folder(folder: Path, workers: Workers) -> Iterator[None]:
    """Make the folder of the results and keep it for this run; see files.keep_folder."""
    prepare_folder(folder)
    with keep_folder(folder) if workers.leads else nullcontext():
        yield


def run_script(story: Callable[[], None]) -> int:
    """Run a script's story; turn the errors that a user can act on into words and an exit status.

    Returns:
        0; 2 for a user's mistake; 1 when disk, network, data or numbers failed; 130 after Ctrl-C,
        143 after SIGTERM.
    """
    status = INTERRUPTED

    def end_like_ctrl_c(*_: object) -> NoReturn:
        nonlocal status
        status = TERMINATED
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end_like_ctrl_c)
    # A file's name need not be text, and is printed all the same.
    with contextlib.suppress(AttributeError):  # of a stream that is no terminal's or file's
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        story()
    except (UserMistake, WorldFault) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return WorldFault.exit_status
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{interrupt}", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, before)
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
        help="what to train, in this order (default: both)",
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
        "--best",
        action="store_true",
        help="longer recipes for accuracy, not speed; the FFN's is made for --teacher",
    )
    training.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="learn from the probabilities of a trained CNN (outputs/cnn.pt, say), not from labels",
    )
    training.add_argument(
        "--epochs",
        type=number_type(int, 1, MAX_EPOCHS),
        help="passes over the training images " + defaults_help("epochs"),
    )
    training.add_argument(
        "--batch-size",
        type=number_type(int, MIN_BATCH_SIZE, MAX_BATCH_SIZE),
        help="images a step " + defaults_help("batch_size"),
    )
    training.add_argument(
        "--lr",
        dest="learning_rate",
        type=number_type(float, 0, 1e6, above=True),
        help="peak learning rate " + defaults_help("learning_rate"),
    )
    training.add_argument(
        "--weight-decay",
        type=number_type(float, 0, 1e6),
        help="of AdamW " + defaults_help("weight_decay"),
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
        "--runs",
        type=number_type(int, 1, MAX_RUNS),
        default=1,
        metavar="N",
        help="train each model with N seeds, from --seed on, and compare (default: %(default)s)",
    )
    training.add_argument(
        "--deterministic",
        action="store_true",
        help="same bits from the same seed on a GPU too, where that costs speed; a CPU always does",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last finished epoch of an interrupted run with the same settings",
    )
    training.add_argument(
        "--record",
        action="store_true",
        help="keep the CNN's first kernels on the way, which kernel_vis.py makes training.gif of",
    )
    parser.add_argument(
        "--summary", action="store_true", help="print the models' layers and stop there"
    )
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    arguments.models = list(dict.fromkeys(arguments.models))
    if arguments.record and (arguments.runs > 1 or "cnn" not in arguments.models):
        raise UserMistake("--record keeps one training of the CNN: use it without --runs, with cnn")
    return arguments


def defaults_help(setting: str) -> str:
    """Return the help text that names each model's default for a setting of its recipe."""
    values, best = (
        ", ".join(f"{name} {getattr(recipe, setting):g}" for name, recipe in recipes.items())
        for recipes in (RECIPES, BEST_RECIPES)
    )
    return f"(default: {values}" + (f"; with --best: {best})" if best != values else ")")


def recipe_for(name: str, arguments: argparse.Namespace) -> Recipe:
    """Return the model's recipe with what the command line sets otherwise."""
    given = {
        setting: value
        for setting in ("epochs", "batch_size", "learning_rate", "weight_decay")
        if (value := getattr(arguments, setting)) is not None
    }
    return replace((BEST_RECIPES if arguments.best else RECIPES)[name], **given)


def warn(message: str) -> None:
    """Print a warning where it is seen even when the output goes to a file."""
    print(f"WARNING: {message}", file=sys.stderr)


def print_summaries(recipes: dict[str, Recipe]) -> None:
    """Print each model's table of layers."""
    for name, recipe in recipes.items():
        print(f"{name.upper()}\n{summarize(MODELS[name](**recipe.model))}\n")


def print_dataset(dataset: Dataset) -> None:
    """Print what there is to learn from."""
    print(
        f"{dataset.title}: {len(dataset.train_indices):,} images to train on, "
        f"{len(dataset.validation_indices):,} to validate on, {len(dataset.test_images):,} to test "
        f"on; pixel mean {dataset.mean:.4f}, standard deviation {dataset.std:.4f}"
    )


def load_data(arguments: argparse.Namespace) -> Dataset:
    """Load the dataset that the command line asks for; see load_dataset."""
    return load_dataset(
        arguments.dataset,
        arguments.data_dir,
        arguments.mirror,
        arguments.timeout,
        arguments.limit,
        warn,
    )


def train_once(
    arguments: argparse.Namespace,
    dataset: Dataset,
    precision: torch.dtype,
    teacher: Checkpoint | None,
) -> dict[str, list[Run]]:
    """Train and score each model with one seed; return its only run under its name.

    Raises:
        UserMistake, WorldFault, KeyboardInterrupt: see train.
    """
    runs = {}
    for name in arguments.models:
        recipe = recipe_for(name, arguments)
        record = arguments.record and name == "cnn"
        trainer = Trainer(name, dataset, recipe, arguments.seed, precision, teacher, record)
        train(trainer, arguments.out / f"{name}.resume.pt", arguments)
        runs[name] = [score(trainer)]
        if record:
            save_recording(trainer, arguments.out / RECORDING)
    return runs


def train_series(
    arguments: argparse.Namespace,
    dataset: Dataset,
    precision: torch.dtype,
    teacher: Checkpoint | None,
    workers: Workers,
) -> dict[str, list[Run]]:
    """Train and score each model with many seeds; return its runs, in the order of the seeds.

    Each finished run is kept in the folder runs; what is there already is not done again. Of
    several processes each does its portion, and the first one returns all runs.

    Raises:
        UserMistake: when a kept run comes from other settings or data.
        WorldFault, KeyboardInterrupt: see train.
    """
    folder = arguments.out / "runs"
    prepare_folder(folder)
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    # The last model, the CNN, takes longest: done first, it leaves short jobs to even things out.
    jobs = [(name, seed) for name in reversed(arguments.models) for seed in seeds]

    def make_trainer(name: str, seed: int) -> Trainer:
        return Trainer(name, dataset, recipe_for(name, arguments), seed, precision, teacher)

    runs = {}
    for job in jobs:
        if run := find_run(folder, make_trainer(*job).identity(), dataset):
            runs[job] = run
    mine = workers.portion(jobs, runs)
    print(f"{len(jobs)} runs wanted, {len(runs)} already in {folder}, {len(mine)} to do here")
    for number, (name, seed) in enumerate(mine, start=1):
        print(f"\nRun {number} of {len(mine)}: {name.upper()}, seed {seed}")
        trainer = make_trainer(name, seed)
        resume_path = folder / f"{name}-seed{seed}.resume.pt"
        train(trainer, resume_path, arguments)
        runs[name, seed] = score(trainer)
        keep_run(folder, runs[name, seed])
        resume_path.unlink(missing_ok=True)
    if workers.size > 1:
        print("\nDone here; waiting for the other processes", flush=True)
    runs = workers.gather(runs)
    if not workers.leads:
        return {}
    for (name, seed), run in runs.items():
        if not run_path(folder, name, seed, "json").exists():
            keep_run(folder, run)
    return {name: [runs[name, seed] for seed in seeds] for name in arguments.models}


def train(trainer: Trainer, resume_path: Path, arguments: argparse.Namespace) -> None:
    """Train one model to the end, with a file to resume from and a row after each epoch.

    Of very many epochs not every one has a row.

    Raises:
        UserMistake, WorldFault: see Trainer.
        KeyboardInterrupt: on Ctrl-C, saying what was saved and how to go on.
    """
    recipe = trainer.recipe
    print(
        f"\n{trainer.name.upper()}: {count_parameters(trainer.model):,} parameters, "
        f"{recipe.epochs} epochs of {trainer.steps} steps of {trainer.batch_size} images, on "
        f"{describe(trainer.device)} in {str(trainer.precision).removeprefix('torch.')}"
    )
    if arguments.resume and resume_path.exists():
        trainer.resume(resume_path)
        print(f"resumed from {resume_path}, after epoch {len(trainer.history)} of {recipe.epochs}")
    elif arguments.resume:
        print(f"nothing to resume at {resume_path}: starting from the first epoch")

    if trainer.finished:
        return
    started_with = len(trainer.history)
    rows_apart = math.ceil(recipe.epochs / MAX_EPOCH_ROWS)
    print(
        f"{'epoch':>9}  {'train loss':>10}  {'val loss':>8}  {'train acc':>9}  {'val acc':>7}  "
        f"{'learn rate':>10}  {'seconds':>7}  time left"
    )
    try:
        while not trainer.finished:
            entry = trainer.train_epoch(lambda steps: show_progress(steps, trainer))
            trainer.save(resume_path)
            seconds = trainer.epoch_seconds[started_with:]
            left = sum(seconds) / len(seconds) * (recipe.epochs - entry["epoch"])
            if entry["epoch"] % rows_apart and not trainer.finished:
                continue
            print(
                f"{entry['epoch']:>4}/{recipe.epochs:<4}  {entry['train_loss']:>10.4f}  "
                f"{entry['validation_loss']:>8.4f}  {entry['train_accuracy']:>9.2%}  "
                f"{entry['validation_accuracy']:>7.2%}  {entry['learning_rate']:>10.2e}  "
                f"{seconds[-1]:>7.1f}  {format_duration(left)}",
                flush=True,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(say_how_to_go_on(trainer, resume_path, arguments.argv)) from None


def say_how_to_go_on(trainer: Trainer, resume_path: Path, argv: Sequence[str]) -> str:
    """Say after Ctrl-C what was saved and which command goes on from there."""
    done = len(trainer.history)
    saved = (
        f"epochs 1 to {done} are saved in {resume_path}" if done else "no epoch of it is saved yet"
    )
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
    # A process that is kept quiet has its standard output redirected.
    visible = sys.stderr.isatty() and sys.stdout.isatty()
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


def collect_versions() -> dict[str, str]:
    """Return the versions of all that results can depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
    }


def collect_metrics(
    arguments: argparse.Namespace,
    dataset: Dataset,
    precision: torch.dtype,
    runs: dict[str, Run],
) -> dict[str, Any]:
    """Return all that metrics.json says of one run of each model."""
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
            "deterministic": arguments.deterministic,
            "teacher": str(arguments.teacher) if arguments.teacher else None,
            "recipes": {name: asdict(recipe_for(name, arguments)) for name in runs},
            "models": {name: run.checkpoint["arguments"] for name, run in runs.items()},
        },
        "device": describe(dataset.images.device),
        "versions": collect_versions(),
        "models": {
            name: {
                "parameters": run.parameters,
                "train_seconds": run.train_seconds,
                "epoch_seconds": run.epoch_seconds,
                "history": run.history,
                "tested_at": run.tested_at,
                "test_loss": run.test.loss,
                "test_accuracy": run.test.accuracy,
                "flip_averaged_accuracy": run.flip_averaged_accuracy,
                "test_accuracy_by_class": run.test.accuracy_by_class,
                "confusion_matrix": run.test.confusion_matrix,
            }
            for name, run in runs.items()
        },
    }


def write_first_run(
    arguments: argparse.Namespace,
    dataset: Dataset,
    precision: torch.dtype,
    runs: dict[str, list[Run]],
) -> list[Path]:
    """Write models, numbers and pictures of each model's first run; return the files.

    Raises:
        WorldFault: when one cannot be written.
    """
    out, first = arguments.out, {name: finished[0] for name, finished in runs.items()}
    files = []
    for name, run in first.items():
        files.append(out / f"{name}.pt")
        write_tensors(files[-1], run.checkpoint)
    metrics = collect_metrics(arguments, dataset, precision, first)
    files.append(write_json(out / "metrics.json", metrics))

    images, labels = dataset.test_images.cpu().numpy(), dataset.test_labels.cpu().numpy()
    figures = {}
    for name, run in first.items():
        probabilities = probabilities_of(run)
        figures[f"{name}_loss.png"] = plots.draw_learning_curves(run.history, name, dataset.title)
        for correct in (True, False):
            figures[f"{name}_{'correct' if correct else 'incorrect'}.png"] = plots.draw_predictions(
                images, labels, probabilities, correct, name, dataset.title
            )
        figures[f"{name}_confusion.png"] = plots.draw_confusion(
            run.test.confusion_matrix, name, dataset.title
        )
    return files + write_figures(out, figures)


def write_comparison(
    out: Path, dataset: Dataset, runs: dict[str, list[Run]], comparison: dict[str, Any]
) -> list[Path]:
    """Write what compares models and seeds, as numbers and pictures; return the files.

    Raises:
        WorldFault: when one cannot be written.
    """
    labels = dataset.test_labels.cpu().numpy()
    figures = {"comparison.png": plots.draw_comparison(comparison)}
    if len(comparison["seeds"]) == 1:
        return write_figures(out, figures)
    histories = {name: [run.history for run in finished] for name, finished in runs.items()}
    figures["learning_curves.png"] = plots.draw_series(histories, dataset.title)
    pooled = {
        name: calibrate(
            np.concatenate([probabilities_of(run) for run in finished]),
            np.tile(labels, len(finished)),
        )
        for name, finished in runs.items()
    }
    figures["calibration.png"] = plots.draw_calibration(pooled, comparison)
    suspects = find_suspects([run for finished in runs.values() for run in finished], dataset)
    figures["suspect_labels.png"] = plots.draw_suspects(suspects, dataset)
    files = [write_json(out / "comparison.json", comparison), out / "suspect_labels.csv"]
    write_file(files[-1], suspects_csv(suspects).encode())
    return files + write_figures(out, figures)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file and return its path; see write_file."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def write_figures(out: Path, figures: dict[str, Figure]) -> list[Path]:
    """Write figures under their names into a folder and return the files; see save_figure."""
    for name, figure in figures.items():
        plots.save_figure(figure, out / name)
    return [out / name for name in figures]


def print_closing_table(dataset: Dataset, runs: dict[str, Run]) -> None:
    """Print one row a model: size, time and accuracy."""
    print(f"\nResult on {dataset.title}")
    print(
        f"{'model':<5}  {'parameters':>10}  {'train time':>12}  {'val acc':>7}  {'test acc':>8}  "
        f"{'flip-averaged':>13}"
    )
    for name, run in runs.items():
        print(
            f"{name.upper():<5}  {run.parameters:>10,}  {format_duration(run.train_seconds):>12}  "
            f"{run.history[-1]['validation_accuracy']:>7.2%}  {run.test.accuracy:>8.2%}  "
            f"{run.flip_averaged_accuracy:>13.2%}"
        )
    if dataset.name == SYNTHETIC:
        print(
            "These pictures were drawn by synthetic.py: the figures say nothing of Fashion-MNIST."
        )


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print what many seeds say: each run, the models' means, their difference, class by class."""
    print(f"\nSeeds {', '.join(map(str, comparison['seeds']))} on {comparison['dataset']}")
    for name, model in comparison["models"].items():
        accuracy, latency = model["test_accuracy"], model["latency_seconds"]
        error, averaged = model["expected_calibration_error"], model["flip_averaged_accuracy"]
        print(
            f"{name.upper()}: test accuracy {' '.join(f'{v:.2%}' for v in accuracy['values'])}\n"
            f"  mean {accuracy['mean']:.2%}, standard deviation {accuracy['std']:.2%}, "
            f"95 % interval {in_percent(accuracy['ci95'])}, "
            f"from {accuracy['min']:.2%} to {accuracy['max']:.2%}\n"
            f"  averaged over each image and its mirror image: mean {averaged['mean']:.2%}, "
            f"standard deviation {averaged['std']:.2%}\n"
            f"  expected calibration error {error['mean']:.2%}; "
            f"{model['parameters']:,} parameters, {model['multiply_accumulates']:,} "
            f"multiply-accumulates a picture\n"
            f"  {format_duration(model['train_seconds']['mean'])} of training; "
            + ", ".join(
                f"{1000 * s:.1f} ms for {n} picture{'' if n == '1' else 's'}"
                for n, s in latency.items()
            )
            + "\n  seeds of each model to tell apart two that differ by "
            + ", ".join(f"{100 * float(d):g} points: {n}" for d, n in model["seeds_needed"].items())
        )
    if "difference" in comparison:
        difference = comparison["difference"]["test_accuracy"]
        mcnemar = comparison["difference"]["mcnemar_of_first_seed"]
        print(
            f"{comparison['difference']['of'].upper()}: {difference['mean']:+.2%} "
            f"(95 % interval {in_percent(difference['ci95'])}), seed by seed; McNemar's exact test "
            f"on seed {mcnemar['seed']}: {mcnemar['only_first_correct']} images only "
            f"{mcnemar['first'].upper()} right, {mcnemar['only_second_correct']} only "
            f"{mcnemar['second'].upper()}, p = {mcnemar['p_value']:.2g}"
        )
    print_class_table(comparison["models"])


def print_class_table(models: dict[str, Any]) -> None:
    """Print precision, recall and F1 of each class, with half the width of their intervals."""
    measures = ("precision", "recall", "f1")
    heads = "".join(f"{name.upper() + ' ' + m:>17}" for name in models for m in measures)
    print(f"\n{'class':<11}{heads}   (%, ± half of the 95 % interval)")
    for label in CLASS_NAMES:
        cells = ""
        for model in models.values():
            for measure in measures:
                values = model["by_class"][label][measure]
                half = (values["ci95"][1] - values["ci95"][0]) / 2
                cells += f"{100 * values['mean']:>11.1f} ± {100 * half:>3.1f}"
        print(f"{label:<11}{cells}")


def in_percent(interval: Sequence[float]) -> str:
    """Write an interval of fractions in percent."""
    return " to ".join(f"{end:.2%}" for end in interval)


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
