"""Train a feedforward and a convolutional network on Fashion-MNIST, and compare them.

    python fashionmnist.py

Writes the trained networks, metrics.json, pictures and the page report.html to the folder outputs.
A training that was interrupted continues, and a finished one is not repeated, if settings, data and
code are the same. Several processes share the work:

    torchrun --nproc-per-node=2 fashionmnist.py --runs 5
"""

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from fashion import options

if __name__ == "__main__":  # --help and mistakes are answered before torch is loaded
    options.fashionmnist()

from fashion import report, runs, script
from fashion.data import Dataset, Views, load, normalize
from fashion.device import Processes, choose_precision, environment, keep_memory
from fashion.evaluation import evaluate
from fashion.optim import make_optimizers, schedule
from fashion.recipe import Recipe
from fashion.runs import Run

import torch
import torch.nn.functional as F
from tqdm import tqdm

from models import MODELS


def train(
    name: str,
    recipe: Recipe,
    seed: int,
    dataset: Dataset,
    folder: Path | None = None,
    *,
    precision: str = "auto",
    fresh: bool = False,
) -> Run:
    """Train a network and return its run.

    With a folder, the run is saved there after each epoch, and continued or returned from there,
    unless it is to be a fresh one.
    """
    device = dataset.images.device
    dtype = choose_precision(precision, device)
    torch.manual_seed(seed)
    model = MODELS[name].network(**recipe.model).to(device).to(memory_format=torch.channels_last)
    optimizers = make_optimizers(model, recipe, dtype)
    views = Views(dataset.images, recipe)

    batch_size = min(recipe.batch_size, len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size  # without the last, incomplete batch
    steps = recipe.epochs * steps_per_epoch

    run = Run(
        name,
        seed,
        recipe,
        model,
        environment(device) | {"precision": str(dtype).removeprefix("torch.")},
    )
    if folder:
        run.path = folder / f"{name}-seed{seed}-{runs.key(run, dataset, train)}.pt"
        if not fresh:
            runs.resume(run, *optimizers)
    if not run.finished:
        report.print_start(run, steps_per_epoch, batch_size)
    for epoch in range(len(run.history), recipe.epochs):
        # A seed for each epoch, so that a resumed training ends exactly as an uninterrupted one.
        torch.manual_seed(10_000 * seed + epoch + 1)
        start, losses, correct = time.perf_counter(), [], 0
        step = epoch * steps_per_epoch  # of the whole training
        order = dataset.train[torch.randperm(len(dataset.train)).to(device)]
        batches = order.split(batch_size)[:steps_per_epoch]
        model.train()
        for chosen in tqdm(
            batches, f"{name} {epoch + 1}", leave=False, disable=not script.on_terminal()
        ):
            images, labels = views.show(chosen, epoch), dataset.labels[chosen]
            with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
                logits = model(normalize(images, dataset.mean, dataset.std))
                loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule(step, steps, recipe.warmup)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            losses.append(loss.detach())
            correct += (logits.argmax(1) == labels).sum()

        validation_loss, validation_accuracy = evaluate(model, dataset)
        run.history.append(
            {
                "epoch": epoch + 1,
                "train_loss": torch.stack(losses).mean().item(),
                "train_accuracy": int(correct) / (steps_per_epoch * batch_size),
                "validation_loss": validation_loss,
                "validation_accuracy": validation_accuracy,
                "learning_rate": optimizers[0].param_groups[0]["lr"],
                "seconds": time.perf_counter() - start,
            }
        )
        check_finite(run)
        report.print_epoch(run)
        if run.path:
            runs.save(run, *(() if run.finished else optimizers))
    return run


def main() -> None:
    """Train and score each network with each seed, then draw and print what they reached."""
    args = options.fashionmnist()
    names = list(dict.fromkeys(args.models or MODELS))
    if unknown := set(names) - set(MODELS):
        raise script.UserError(f"--models {unknown.pop()}: choose from {', '.join(MODELS)}")
    keep_memory()
    out = args.out / "quick" if args.quick else args.out
    script.make_folder(out / "runs")
    with Processes() as processes, script.quiet(processes.rank > 0):
        if processes.rank > 0:
            processes.wait()  # the first process may download the dataset
        dataset = load(args.data_dir, args.limit, args.sample).to(processes.device(args.device))
        if processes.rank == 0:
            processes.wait()
        report.print_dataset(dataset)
        jobs = [
            (name, make_recipe(name, args), seed, dataset, out / "runs")
            for name in names
            for seed in range(args.seed, args.seed + args.runs)
        ]
        for job in jobs[processes.rank :: processes.size]:
            run = train(*job, precision=args.precision, fresh=args.fresh)
            run.score(dataset)
            if run.seed == args.seed:  # one can look at the first network while others train
                report.write_network(out, run, dataset)
        processes.wait()
        if processes.rank > 0:
            return
        series: dict[str, list[Run]] = {name: [] for name in names}
        with script.quiet():
            for job in jobs:  # all are finished: train reads them from their files
                series[job[0]].append(train(*job, precision=args.precision))
        report.write_results(out, series, dataset, args.data_dir)


def make_recipe(name: str, args: argparse.Namespace) -> Recipe:
    """Return the recipe of a network with the settings that the command line changes."""
    recipe = MODELS[name].quick if args.quick else MODELS[name].recipe
    given = {key: value for key, value in vars(args).items() if value is not None}
    return replace(recipe, **{key: given[key] for key in asdict(recipe) if key in given})


def check_finite(run: Run) -> None:
    """Raise UserError if the training has diverged."""
    row = run.history[-1]
    if not torch.tensor([row["train_loss"], row["validation_loss"]]).isfinite().all():
        lr = min(MODELS[run.name].recipe.learning_rate, run.recipe.learning_rate / 2)
        text = f"{run.name.upper()}: the loss is no longer finite in epoch {row['epoch']}; "
        text += f"a lower learning rate may help, such as --lr {lr:g}"
        raise script.UserError(text, script.FAILURE)


if __name__ == "__main__":
    hint = "; without --fresh, the same command continues after the last finished epoch"
    sys.exit(script.run(main, hint))
