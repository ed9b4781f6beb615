"""Results for people and programs: console tables, metrics.json and pictures."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fashion import checkpoint, comparison, page, plots
from fashion.data import TITLE, Dataset
from fashion.evaluation import confusion_matrix, scores_by_class
from fashion.files import write, write_json
from fashion.runs import Run
from fashion.script import DATA, duration, list_files
from fashion.style import label, save_figure

import torch.nn.functional as F

KINDS = ("loss", "confusion", "correct", "incorrect")  # of the figures of each network


def print_dataset(dataset: Dataset) -> None:
    """Print the sizes of the dataset's parts and its pixel statistics."""
    parts = dataset.train, dataset.validation, dataset.test_images
    train, validation, test = (f"{len(part):,}" for part in parts)
    images = f"{train} training, {validation} validation and {test} test images"
    pixels = f"pixel mean {dataset.mean:.4f}, standard deviation {dataset.std:.4f}"
    print(f"{dataset.title}: {images}; {pixels}", flush=True)


def print_start(run: Run, steps: int, batch_size: int) -> None:
    """Print what is trained, and the header of the table of epochs."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    size = f"{parameters:,} parameters, {steps} steps per epoch with {batch_size} images each"
    place = f"{run.environment['device']} in {run.environment['precision']}"
    print(f"\n{label(run.name)}, seed {run.seed}: {size}, on {place}")
    print("    epoch  train loss  val loss  train acc  val acc  seconds  time left", flush=True)


def print_epoch(run: Run) -> None:
    """Print the last epoch and the time left."""
    row, epochs = run.history[-1], run.recipe.epochs
    left = run.seconds / row["epoch"] * (epochs - row["epoch"])
    losses = f"{row['train_loss']:>10.4f}  {row['validation_loss']:>8.4f}"
    accuracies = f"{row['train_accuracy']:>9.2%}  {row['validation_accuracy']:>7.2%}"
    times = f"{row['seconds']:>7.1f}  {duration(left)}"
    print(f"{row['epoch']:>4}/{epochs:<4}  {losses}  {accuracies}  {times}", flush=True)


def write_network(out: Path, run: Run, dataset: Dataset) -> None:
    """Write the weights, figures and results of one run, and the page that shows them."""
    checkpoint.export(out / f"{run.name}{checkpoint.SUFFIX}", run, dataset)
    entry = collect([run], dataset)
    origin = page.source(run.name, dataset.title, entry["runs"])
    matrix = plots.draw_confusion(run.name, entry["confusion_matrix"], dataset.title)
    answers = [plots.draw_predictions(run, dataset, correct) for correct in (True, False)]
    figures = (plots.draw_loss(run, dataset.title), matrix, *answers)
    for kind, figure in zip(KINDS, figures, strict=True):
        save_figure(figure, out / f"{run.name}_{kind}.png", origin)
    write_metrics(out, {run.name: entry})
    page.write_page(out)


def write_results(
    out: Path, series: Mapping[str, Sequence[Run]], dataset: Dataset, data_dir: Path = DATA
) -> None:
    """Write and print the results and comparisons of runs, the same seeds for each network."""
    entries = {name: collect(runs, dataset) for name, runs in series.items()}
    write_metrics(out, entries)
    print_results(entries, dataset)
    files = [out / f"{name}{checkpoint.SUFFIX}" for name in series]
    files += [out / f"{name}_{kind}.png" for name in series for kind in KINDS]
    files.append(out / page.METRICS)
    every = [run for runs in series.values() for run in runs]
    recipes = {name: runs[0].recipe for name, runs in series.items()}
    files.append(save_figure(plots.draw_dataset(dataset, recipes), out / "dataset.png"))
    figures = {}
    compared = comparison.compare(series, dataset) if len(every) > 1 else {}
    if len(series) > 1:
        first, *_, last = series
        pair = [page.source(k, dataset.title, entries[k]["runs"][:1]) for k in (first, last)]
        figure = plots.draw_disagreements(series[first][0], series[last][0], dataset)
        files.append(save_figure(figure, out / "disagreements.png", "; ".join(pair)))
        figures["comparison"] = plots.draw_comparison(compared)
        print_differences(compared)
    if len(every) > len(series):
        suspects = comparison.find_suspects(every, dataset)
        figures["learning_curves"] = plots.draw_learning_curves(series, dataset.title)
        figures["calibration"] = plots.draw_calibration(series, dataset)
        figures["suspect_labels"] = plots.draw_suspects(suspects, dataset)
        rows = (",".join(map(str, row)) for row in (comparison.Suspect._fields, *suspects))
        files += [out / "comparison.json", out / "suspect_labels.csv"]
        write_json(files[-2], compared)
        write(files[-1], "".join(f"{row}\n" for row in rows).encode())
    origin = "; ".join(page.source(k, dataset.title, v["runs"]) for k, v in entries.items())
    for name, figure in figures.items():
        files.append(save_figure(figure, out / f"{name}.png", origin))
    list_files([*files, page.write_page(out)])
    options = ["--sample"] if dataset.title.startswith(f"{TITLE} sample") else []
    options += ["--checkpoint", str(out), "--out", str(out), "--data-dir", str(data_dir)]
    command = shlex.join(["python", "kernel_vis.py", *options])
    print(f"\nTo look inside the networks:\n  {command}", flush=True)


def collect(runs: Sequence[Run], dataset: Dataset) -> dict[str, Any]:
    """Return the entry of a network in metrics.json: its first run in full, the others in brief."""
    first, labels = runs[0], dataset.test_labels.cpu()
    matrix = confusion_matrix(first.logits["test"], labels)
    brief = [comparison.measure(run, dataset) for run in runs]
    return {
        **brief[0],
        "dataset": dataset.title,
        "recipe": asdict(first.recipe),
        "environment": first.environment,
        "tested_at": first.tested_at,
        "test_loss": F.cross_entropy(first.logits["test"], labels).item(),
        "test_accuracy_by_class": scores_by_class(matrix)["recall"].tolist(),
        "confusion_matrix": matrix,
        "history": first.history,
        "runs": brief,
    }


def write_metrics(out: Path, entries: Mapping[str, Any]) -> None:
    """Write metrics.json, keeping the results of other networks in it."""
    write_json(out / page.METRICS, {"models": {**page.read_results(out), **entries}})


def print_results(entries: Mapping[str, Any], dataset: Dataset) -> None:
    """Print the results with a column for each network."""
    rows = page.table({label(name): page.measures(entry) for name, entry in entries.items()})
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    runs = next(iter(entries.values()))["runs"]
    several = ": mean ± standard deviation" if len(runs) > 1 else ""
    print(f"\nResults on {dataset.title}, {page.seeds(runs)}{several}")
    for name, *cells in rows:
        print(f"{name:<{widths[0]}}", *map("{:>{}}".format, cells, widths[1:]), sep="   ")
    errors = (f"{label(k)} {100 * e['test_sampling_error']:.2f}" for k, e in entries.items())
    count = len(dataset.test_labels)
    print(f"Sampling error of the {count:,} test images in points: {', '.join(errors)}")


def print_differences(compared: Mapping[str, Any]) -> None:
    """Print how each pair of networks differs, and how certain that is."""
    for difference in compared["differences"]:
        test, mcnemar = difference["test_accuracy"], difference["mcnemar_of_first_seed"]
        first, second = label(mcnemar["first"]), label(mcnemar["second"])
        ends = " to ".join(f"{100 * end:+.2f}" for end in test["ci95"] or ())
        interval = f"95% interval over seeds: {ends}; " if ends else ""
        error = 100 * difference["test_sampling_error"]
        print(
            f"\nTest accuracy of {second} minus that of {first}: {100 * test['mean']:+.2f} points "
            f"({interval}sampling error of the test images: {error:.2f}).\n"
            f"With seed {mcnemar['seed']}, only {second} classifies "
            f"{mcnemar['only_second_correct']} images correctly, and only {first} "
            f"{mcnemar['only_first_correct']} (McNemar's exact test: p = {mcnemar['p_value']:.2g})."
        )
