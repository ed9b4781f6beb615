"""Train a feedforward and a convolutional network on Fashion-MNIST and compare them.

    python fashionmnist.py

Writes the trained models, metrics.json, and pictures of learning curves, predictions, confusion
matrices and the comparison to the outputs folder, and report.html, which shows them. Without
--runs, each model's files are written as soon as it is trained. After each epoch, the state to
resume from is written.
"""

import argparse
import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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
from fashion.page import write_page
from fashion.recipe import Recipe
from fashion.runs import Job, Run, Workers, find_runs, run_path, save_run, score
from fashion.training import DivergenceError, Trainer, describe_unfinished
from models import MODELS, STYLES

MAX_EPOCH_ROWS = 30  # of the printed table; longer trainings print every n-th epoch
QUICK_FOLDER = "quick"  # in the output folder, so that --quick never replaces a full training
RECORDED_MODEL = "cnn"  # the model whose first-layer kernels --record saves


def main(
    arguments: argparse.Namespace,
    trainer_type: Callable[..., Trainer] = Trainer,
    **settings: Any,
) -> None:
    """Load the data, train and score each model with each seed, and write results and pictures.

    In a series, finished runs are saved in the subfolder runs and not repeated, and several
    processes share the work.

    Args:
        arguments: The command line.
        trainer_type: Returns a trainer for the arguments of Trainer. experiments.record passes
            another one, which trains with a teacher.
        **settings: Further settings to write to metrics.json.
    """
    names, series = arguments.models, arguments.series
    recipes = {name: cli.change_recipe(arguments.recipes[name], arguments) for name in names}
    if arguments.summary:
        for name, recipe in recipes.items():
            print(f"{name.upper()}\n{summarize_layers(MODELS[name](**recipe.model))}\n")
        return
    device, precision = prepare_device(arguments)
    settings |= {
        "limit": arguments.limit,
        "precision": str(precision).removeprefix("torch."),
        "deterministic": arguments.deterministic,
    }
    folder = arguments.out / "runs" if series else arguments.out
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    # MODELS lists the models from fast to slow. Processes that share a series start with the slow
    # ones, so that short jobs fill the time at the end.
    order = [name for name in reversed(MODELS) if name in names] if series else names
    jobs = [(name, seed) for name in order for seed in seeds]

    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(device))
        stack.enter_context(cli.quiet_unless(workers.first))
        if workers.size > 1 and not series:
            raise UsageError(
                f"{workers.size} processes cannot share one run per model: use --runs N, or start "
                "the script without torchrun"
            )
        with cli.advise("choose another folder with --out"):
            prepare_folder(folder)
            if workers.first:
                stack.enter_context(lock_folder(arguments.out))
        state_paths = {
            job: run_path(folder, *job, ".resume.pt") if series else folder / f"{job[0]}.resume.pt"
            for job in jobs
        }
        cli.check_previous_results(arguments, state_paths.values())
        dataset = workers.share(lambda: cli.load_data(arguments)).to(workers.device)
        report.print_dataset(dataset)

        def make_trainer(name: str, seed: int) -> Trainer:
            record = arguments.record and name == RECORDED_MODEL
            return trainer_type(MODELS[name], dataset, recipes[name], seed, precision, record)

        runs: dict[Job, Run] = {}
        if series:
            with cli.advise("choose another --out, or remove this run's files", UsageError):
                runs = find_runs(folder, jobs, make_trainer)
            print(f"{len(jobs)} runs requested, {len(runs)} already in {folder}")
        for name, seed in workers.select(jobs, runs):
            trainer = make_trainer(name, seed)
            train(trainer, name, state_paths[name, seed], arguments)
            runs[name, seed] = score(trainer, name)
            if trainer.frames:
                save_recording(
                    arguments.out / RECORDING_NAME, trainer.frames, trainer.steps_per_epoch
                )
            if series:
                save_run(folder, runs[name, seed])
                state_paths[name, seed].unlink(missing_ok=True)
            else:  # the reader can look at the first model while the next one trains
                write_results(arguments, dataset, runs, settings, [name])
        if workers.size > 1:
            print("\nDone here; waiting for the other processes", flush=True)
        runs = workers.gather(runs)
        if series and workers.first:
            write_results(arguments, dataset, runs, settings, names)


def prepare_device(arguments: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision of the options, and apply --deterministic.

    Raises:
        UsageError: If there is no such device, or it cannot reproduce results.
    """
    with cli.advise("choose another one with --device"):
        device = choose_device(arguments.device)
    if arguments.deterministic:
        with cli.advise("use --device cpu", UsageError):
            use_deterministic_algorithms(device)
    return device, choose_precision(arguments.precision, device)


def train(trainer: Trainer, name: str, state_path: Path, arguments: argparse.Namespace) -> None:
    """Train one model to the end, saving the state and printing a row after each epoch.

    Raises:
        UsageError: If the training cannot be resumed from the file.
        RunError: If the loss diverges or the disk fails.
        KeyboardInterrupt: After Ctrl-C, with a message on how to continue.
    """
    recipe = trainer.recipe
    print(
        f"\n{name.upper()}, seed {trainer.seed}: {count_parameters(trainer.model):,} parameters, "
        f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''} of {trainer.steps_per_epoch} "
        f"steps with {trainer.batch_size} images each, on {describe_device(trainer.device)} in "
        f"{str(trainer.precision).removeprefix('torch.')}"
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
            if row["epoch"] % rows_apart == 0 or row["epoch"] == 1 or trainer.finished:
                report.print_epoch(trainer, resumed_at)
    except DivergenceError as error:
        advice = f"try a lower --lr, such as {recipe.learning_rate / 10:.1g}"
        raise RunError(f"{error}; {advice}") from error
    except KeyboardInterrupt:
        done = f"saved up to epoch {saved} in {state_path}" if saved else "no epoch is saved"
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
    with cli.advise("use the original settings, or start over with --overwrite", UsageError):
        trainer.resume(path)
    print(f"resumed from {path} after epoch {len(trainer.history)} of {trainer.recipe.epochs}")


def write_results(
    arguments: argparse.Namespace,
    dataset: Dataset,
    runs: Mapping[Job, Run],
    settings: Mapping[str, Any],
    new: Sequence[str],
) -> None:
    """Write the files of new models; once all runs are done, compare them and print the results.

    Args:
        arguments: The command line.
        dataset: What the models were trained and scored on.
        runs: All finished runs.
        settings: Settings to write to metrics.json.
        new: Models whose files are not written yet.
    """
    out, names = arguments.out, arguments.models
    first = {name: runs[name, arguments.seed] for name in names if (name, arguments.seed) in runs}
    complete = len(runs) == len(names) * arguments.runs
    comparison: dict[str, Any] = {}
    with replace_files(out, find_stale_files(arguments, set(first) - set(new))) as folder:
        for name in new:
            report.write_run(folder, dataset, first[name], STYLES[name])
        write_json(folder / report.METRICS_NAME, report.collect_metrics(dataset, first, settings))
        if complete and len(runs) > 1:
            seeds = range(arguments.seed, arguments.seed + arguments.runs)
            by_model = {name: [runs[name, seed] for seed in seeds] for name in names}
            comparison = compare(by_model, dataset)
            report.write_comparison(folder, dataset, by_model, comparison, STYLES)
    write_page(out)
    if not complete:
        accuracy = first[new[0]].test.accuracy
        print(f"{new[0].upper()}: test accuracy {accuracy:.2%}; its files are in {out}")
        return
    report.print_results(dataset, first)
    if arguments.runs > 1:
        report.print_comparison(comparison)
    print_outcome(arguments)


def find_stale_files(arguments: argparse.Namespace, written: Collection[str]) -> list[str]:
    """Return the names of files that may be left from earlier models in the output folder.

    The models in `written` already have their new files. Unfinished trainings of models that this
    command does not train are kept.
    """
    states = [f"{name}.resume.pt" for name in MODELS if name not in arguments.models]
    stale = [name for name in states if not describe_unfinished(arguments.out / name)]
    if not arguments.record:
        stale.append(RECORDING_NAME)
    return [*stale, *report.result_files(name for name in MODELS if name not in written)]


def print_outcome(arguments: argparse.Namespace) -> None:
    """Print the files that were written, and the command that shows what the CNN has learned."""
    out, names = arguments.out, arguments.models
    files = [*report.result_files(names), *([RECORDING_NAME] if arguments.record else [])]
    cli.print_files(path for file in files if (path := out / file).exists())
    if RECORDED_MODEL in names:
        places = ["--checkpoint", str(out / f"{RECORDED_MODEL}{SUFFIX}"), "--out", str(out)]
        command = ["python", "kernel_vis.py", *(places if out != cli.OUTPUT_FOLDER else ())]
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
        "--quick",
        action="store_true",
        help="train for about a minute, reaching about 89.4 %% (FFN) and 92.1 %% (CNN) test "
        f"accuracy; writes to the subfolder {QUICK_FOLDER} of the output folder",
    )
    recipes = {name: network.recipe for name, network in MODELS.items()}
    arguments = parse_options(parser, recipes, argv)
    if arguments.quick:
        arguments.recipes = {name: network.quick_recipe for name, network in MODELS.items()}
        arguments.out /= QUICK_FOLDER
    return arguments


def parse_options(
    parser: argparse.ArgumentParser,
    recipes: Mapping[str, Recipe],
    argv: Sequence[str] | None,
    out: Path = cli.OUTPUT_FOLDER,
) -> argparse.Namespace:
    """Add the options that main reads, and parse the command line.

    Args:
        parser: Has the options of the script.
        recipes: How to train each model; the names are the choices.
        argv: The command line; None for that of the process.
        out: Default of the output folder.

    Raises:
        UsageError: If an argument is unknown, malformed or out of range.
    """
    parser.add_argument(
        "--models",
        nargs="+",
        choices=recipes,
        default=list(recipes),
        help="models to train (default: all)",
    )
    cli.add_run_options(parser)
    cli.add_out_option(parser, "all results")
    parser.add_argument(
        "--summary", action="store_true", help="print the layers of the models and exit"
    )
    cli.add_data_options(parser.add_argument_group("data"))
    training = parser.add_argument_group("training")
    cli.add_recipe_options(training, recipes)
    cli.add_training_options(training)
    training.add_argument(
        "--deterministic",
        action="store_true",
        help="reproduce results bit for bit on a GPU too, at lower speed; a CPU always does so "
        "with the same number of threads",
    )
    training.add_argument(
        "--record",
        action="store_true",
        help="record the kernels of the CNN's first convolution, from which kernel_vis.py makes "
        "training.gif",
    )
    parser.set_defaults(out=out)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    arguments.command = [*parser.prog.split(), *argv]  # to repeat it with --resume
    arguments.models = list(dict.fromkeys(arguments.models))
    arguments.recipes, arguments.series = recipes, arguments.runs > 1
    if arguments.record and (arguments.runs > 1 or RECORDED_MODEL not in arguments.models):
        raise UsageError("--record needs a single CNN run: include cnn in --models and omit --runs")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
