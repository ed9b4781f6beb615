"""Train a feedforward and a convolutional network on Fashion-MNIST and compare them.

    python fashionmnist.py

Writes the trained models, metrics.json, and pictures of learning curves, predictions, confusion
matrices and the comparison to the outputs folder, and after each epoch the state to resume from.
"""

import argparse
import contextlib
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fashion import cli, report
from fashion.checkpoint import RECORDING_NAME, SUFFIX, save_recording
from fashion.comparison import compare
from fashion.data import Dataset
from fashion.environment import (
    choose_device,
    choose_precision,
    describe_device,
    use_deterministic_algorithms,
)
from fashion.files import (
    RunError,
    UsageError,
    lock_folder,
    prepare_folder,
    replace_files,
    write_json,
)
from fashion.layers import count_parameters, summarize_layers
from fashion.recipe import Recipe
from fashion.runs import Job, Run, Workers, find_run, run_path, save_run, save_weights, score
from fashion.training import DivergenceError, Trainer, describe_unfinished
from models import MODELS, STYLES

MAX_EPOCH_ROWS = 250  # of the printed table; longer runs print every n-th epoch
# What kernel_vis.py and predict.py draw of the models, which new models make obsolete.
PICTURES_OF_MODELS = (
    "kernel_grid.png",
    "image_transform_grid.png",
    "feature_progression.png",
    "top_activations.png",
    "saliency.png",
    "embedding.png",
    "training.gif",
    "prediction.png",
)
RECORDED_MODEL = "cnn"  # the model whose first-layer kernels --record saves


def main(arguments: argparse.Namespace) -> None:
    """Load the data, train and score all models, and write results and pictures."""
    recipes = {name: cli.change_recipe(MODELS[name].recipe, arguments) for name in arguments.models}
    if arguments.summary:
        for name, recipe in recipes.items():
            print(f"{name.upper()}\n{summarize_layers(MODELS[name](**recipe.model))}\n")
        return
    with cli.advise("choose another one with --device"):
        device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    if arguments.deterministic:
        with cli.advise("use --device cpu", UsageError):
            use_deterministic_algorithms(device)

    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(device))
        stack.enter_context(cli.quiet_unless(workers.first))
        if workers.size > 1 and arguments.runs == 1:
            raise UsageError(
                f"{workers.size} processes cannot share one run per model: use --runs N, or start "
                "the script without torchrun"
            )
        with cli.advise("choose another folder with --out"):
            prepare_folder(arguments.out)
            if workers.first:
                stack.enter_context(lock_folder(arguments.out))
        jobs = [(name, seed) for name in arguments.models for seed in choose_seeds(arguments)]
        check_previous_results(arguments, [resume_path(arguments, *job) for job in jobs])
        dataset = workers.share(lambda: cli.load_data(arguments)).to(workers.device)
        report.print_dataset(dataset)
        runs = train_models(arguments, recipes, dataset, precision, workers)
        settings = {
            "limit": arguments.limit,
            "precision": str(precision).removeprefix("torch."),
            "deterministic": arguments.deterministic,
        }
        if workers.first:
            write_results(arguments, dataset, runs, settings)


def choose_seeds(arguments: argparse.Namespace) -> range:
    """Return the seeds with which each model is trained."""
    return range(arguments.seed, arguments.seed + arguments.runs)


def resume_path(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """Return where the state of an unfinished training is saved."""
    if arguments.runs > 1:
        return run_path(arguments.out / "runs", name, seed, ".resume.pt")
    return arguments.out / f"{name}.resume.pt"


def check_previous_results(arguments: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Refuse to overwrite an unfinished training, and print which results will be replaced.

    Args:
        arguments: The command line.
        paths: Where the trainings of this command save their state.
    """
    if not (arguments.resume or arguments.overwrite):
        for path in paths:
            if unfinished := describe_unfinished(path):
                raise UsageError(
                    f"{path} holds {unfinished}; continue it with --resume, discard it with "
                    "--overwrite, or choose another folder with --out"
                )
    if previous := report.describe_results(arguments.out):
        print(
            f"The results in {arguments.out} ({previous}) will be replaced at the end, and the "
            "pictures of their models removed."
        )


def train_models(
    arguments: argparse.Namespace,
    recipes: dict[str, Recipe],
    dataset: Dataset,
    precision: torch.dtype,
    workers: Workers,
) -> dict[Job, Run]:
    """Train and score each model with each seed.

    With several seeds, finished runs are saved in the runs subfolder of the output folder and not
    repeated, and several processes share the jobs.

    Returns:
        All runs in the first process, by model and seed; no runs in the others.
    """
    series = arguments.runs > 1
    folder = arguments.out / "runs" if series else arguments.out
    prepare_folder(folder)
    # The models are listed from fast to slow. Processes that share a series start with the slow
    # ones, so that short jobs fill the time at the end.
    order = reversed(arguments.models) if series else arguments.models
    jobs = [(name, seed) for name in order for seed in choose_seeds(arguments)]

    def make_trainer(name: str, seed: int) -> Trainer:
        record = arguments.record and name == RECORDED_MODEL
        return Trainer(MODELS[name], dataset, recipes[name], seed, precision, record)

    runs: dict[Job, Run] = {}
    if series:
        with cli.advise("choose another folder with --out, or remove the old runs", UsageError):
            for name, seed in jobs:
                if run := find_run(folder, name, make_trainer(name, seed)):
                    runs[name, seed] = run
    mine = workers.select(jobs, runs)
    if series:
        print(
            f"{len(jobs)} runs requested, {len(runs)} already in {folder}, {len(mine)} to do here"
        )
    for number, (name, seed) in enumerate(mine, start=1):
        if series:
            print(f"\nRun {number} of {len(mine)}: {name.upper()}, seed {seed}")
        trainer = make_trainer(name, seed)
        state_path = resume_path(arguments, name, seed)
        train(trainer, name, state_path, arguments)
        runs[name, seed] = score(trainer, name)
        if trainer.frames:
            save_recording(arguments.out / RECORDING_NAME, trainer.frames, trainer.steps_per_epoch)
        if series:
            save_run(folder, runs[name, seed])
            state_path.unlink(missing_ok=True)
    if workers.size > 1:
        print("\nDone here; waiting for the other processes", flush=True)
    return workers.gather(runs)


def train(trainer: Trainer, name: str, state_path: Path, arguments: argparse.Namespace) -> None:
    """Train one model to the end, saving the state and printing a row after each epoch.

    Raises:
        UsageError: If the training cannot be resumed from the file.
        RunError: If the loss diverges or the disk fails.
        KeyboardInterrupt: After Ctrl-C, with a message on how to continue.
    """
    recipe = trainer.recipe
    print(
        f"\n{name.upper()}: {count_parameters(trainer.model):,} parameters, {recipe.epochs} epochs "
        f"of {trainer.steps_per_epoch} steps with {trainer.batch_size} images each, on "
        f"{describe_device(trainer.device)} in {str(trainer.precision).removeprefix('torch.')}"
    )
    if arguments.resume:
        resume(trainer, state_path)
    if trainer.finished:
        return

    resumed_at = saved = len(trainer.history)
    rows_apart = math.ceil(recipe.epochs / MAX_EPOCH_ROWS)
    # Reading the loss would make the CPU wait for a GPU.
    show_loss = cli.is_interactive() and trainer.device.type == "cpu"
    report.print_epoch_header()
    try:
        while not trainer.finished:
            title = f"{name} {len(trainer.history) + 1}/{recipe.epochs}"
            batches = trainer.batches()  # shuffled and augmented
            bar = cli.progress_bar(
                batches, title, trainer.steps_per_epoch, " images", trainer.batch_size
            )
            for images, labels in bar:
                loss = trainer.step(images, labels)  # forward, backward, update
                if show_loss:
                    bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            row = trainer.validate()  # on the averaged weights
            trainer.save(state_path)
            saved = len(trainer.history)
            if row["epoch"] % rows_apart == 0 or trainer.finished:
                report.print_epoch(trainer, resumed_at)
    except DivergenceError as error:
        raise RunError(
            f"{error}; try a lower --lr, such as {recipe.learning_rate / 10:.1g}"
        ) from error
    except KeyboardInterrupt:
        done = f"epochs 1 to {saved} are saved in {state_path}" if saved else "no epoch is saved"
        words = [word for word in arguments.command if word != "--resume"]
        command = shlex.join([*words, "--resume"])
        raise KeyboardInterrupt(
            f" in epoch {len(trainer.history) + 1} of {name}; {done}. Continue with:\n{command}"
        ) from None


def resume(trainer: Trainer, path: Path) -> None:
    """Restore the state of an interrupted training if there is one, and say so."""
    if not path.exists():
        print(f"nothing to resume at {path}: starting from the first epoch")
        return
    with cli.advise("use the same settings, or start again without --resume", UsageError):
        trainer.resume(path)
    print(f"resumed from {path} after epoch {len(trainer.history)} of {trainer.recipe.epochs}")


def write_results(
    arguments: argparse.Namespace,
    dataset: Dataset,
    runs: dict[Job, Run],
    settings: dict[str, Any],
) -> None:
    """Write models, numbers and pictures, and print the tables and the list of files."""
    out, seeds = arguments.out, choose_seeds(arguments)
    by_model = {name: [runs[name, seed] for seed in seeds] for name in arguments.models}
    first = {name: finished[0] for name, finished in by_model.items()}
    comparison = compare(by_model, dataset) if len(runs) > 1 else None
    stale = {*report.result_files(MODELS), *PICTURES_OF_MODELS}
    others = [f"{name}.resume.pt" for name in MODELS if name not in arguments.models]
    stale |= {name for name in others if not describe_unfinished(out / name)}
    if not arguments.record:
        stale.add(RECORDING_NAME)
    with replace_files(out, stale) as folder:
        for name, run in first.items():
            save_weights(folder / f"{name}{SUFFIX}", run)
        metrics = report.collect_metrics(dataset, first, settings)
        write_json(folder / report.METRICS_NAME, metrics)
        report.write_figures(folder, report.draw_runs(dataset, first, STYLES))
        if comparison:
            report.write_comparison(folder, dataset, by_model, comparison, STYLES)
        files = sorted(out / file.name for file in folder.iterdir())
    report.print_results(dataset, first)
    if comparison and arguments.runs > 1:
        report.print_comparison(comparison)
    if arguments.record:
        files.append(out / RECORDING_NAME)
    cli.print_files(files)
    if RECORDED_MODEL in arguments.models:
        command = ["python", "kernel_vis.py"]
        if out != cli.OUTPUT_FOLDER:
            command += ["--checkpoint", f"{out / RECORDED_MODEL}{SUFFIX}", "--out", str(out)]
        if arguments.data_dir != cli.DATA_FOLDER:
            command += ["--data-dir", str(arguments.data_dir)]
        print(f"\nTo see what the CNN has learned: {shlex.join(command)}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser = cli.Parser(
        "fashionmnist.py",
        "Train a feedforward and a convolutional network on Fashion-MNIST and compare them.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        help="models to train, in this order (default: all)",
    )
    cli.add_out_option(parser, "all results")
    parser.add_argument(
        "--summary", action="store_true", help="print the layers of the models and exit"
    )
    cli.add_data_options(parser.add_argument_group("data"))
    training = parser.add_argument_group("training")
    cli.add_recipe_options(training, {name: MODELS[name].recipe for name in MODELS})
    cli.add_run_options(training, runs=1)
    training.add_argument(
        "--deterministic",
        action="store_true",
        help="reproduce results bit by bit on a GPU too, at lower speed; a CPU always does",
    )
    training.add_argument(
        "--record",
        action="store_true",
        help="record the first kernels of the CNN, from which kernel_vis.py makes training.gif",
    )
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    arguments.command = ["python", "fashionmnist.py", *argv]  # to repeat it with --resume
    arguments.models = list(dict.fromkeys(arguments.models))
    if arguments.record and (arguments.runs > 1 or RECORDED_MODEL not in arguments.models):
        raise UsageError("--record records a single CNN run: use it with cnn and without --runs")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
