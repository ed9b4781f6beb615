"""Change one setting of the recipes at a time, and measure the effect on the accuracy.

    python -m experiments.ablation

Trains at full length with three seeds each, prints a table, and writes ablation.json and the runs
to the folder outputs/ablation. Accuracy is that of the validation images; the test images are not
used. Takes about six hours on two CPU cores, or 40 minutes with --quick, which changes the quick
recipes. The same command continues after an interruption.
"""

import inspect
import math
import sys
from dataclasses import replace
from typing import Any

from fashion.comparison import compare_paired, summarize_values
from fashion.options import Parser
from fashion.recipe import Model, Recipe
from fashion.script import list_files, quiet, run

from experiments.shared import percent, record, start
from fashionmnist import train
from models import MODELS

Settings = dict[str, Any]


def main() -> None:
    """Train with and without each change, print the tables and write the file."""
    parser = Parser("Change one setting of the recipes at a time.", prog="-m experiments.ablation")
    parser.add_argument("--quick", action="store_true", help="change the quick recipes")
    args, dataset = start(parser, "ablation")
    result: dict[str, Any] = {}
    for name, model in MODELS.items():
        print(f"\n{name.upper():<42}  accuracy (%)  difference (points)  seconds", flush=True)
        recipe = model.quick if args.quick else model.recipe
        rows: list[dict[str, Any]] = []
        for settings in list_changes(model, recipe):
            arguments = recipe.model | settings.get("model", {})
            changed = replace(recipe, **settings | {"model": arguments})
            jobs = ((name, changed, n, dataset, args.out / "runs") for n in range(args.seeds))
            with quiet():
                runs = [train(*job) for job in jobs]
            accuracy = summarize_values([run.history[-1]["validation_accuracy"] for run in runs])
            base = rows[0]["accuracy"] if rows else accuracy
            difference = compare_paired(base["values"], accuracy["values"])
            seconds = summarize_values([run.seconds for run in runs])
            row = {"accuracy": accuracy, "difference": difference, "seconds": seconds}
            rows.append({"settings": settings} | row)
            cells = f"{percent(accuracy):>14}{percent(difference, '+'):>21}{seconds['mean']:>9.1f}"
            print(f"{title(settings):<42}{cells}", flush=True)
        result[name] = rows
    list_files([record(args.out / "ablation.json", dataset, args.seeds, result)])


def list_changes(model: Model, recipe: Recipe) -> list[Settings]:
    """Return settings to try in place of those of a recipe; the first entry is empty."""
    rate = recipe.learning_rate
    other, factor = ("adamw", 1 / 8) if recipe.optimizer == "muon" else ("muon", 8)
    shares = (0, 0.1, 0.2) if "dropout" in inspect.signature(model.network).parameters else ()
    return [
        {},
        *({"shift_share": share} for share in (0, 1.0) if share != recipe.shift_share),
        {"flip": not recipe.flip},
        {"label_smoothing": 0 if recipe.label_smoothing else 0.05},
        *({"model": {"dropout": p}} for p in shares if p != recipe.model.get("dropout")),
        {"learning_rate": round(rate / 1.5, 4)},
        {"learning_rate": round(rate * 1.5, 4)},
        {"optimizer": other, "learning_rate": round(rate * factor, 4)},
        {"batch_size": recipe.batch_size // 2},
        {"epochs": math.ceil(recipe.epochs * 1.25)},
    ]


def title(settings: Settings) -> str:
    """Return settings for people."""
    flat = settings | settings.get("model", {})
    words = [f"{key.replace('_', ' ')} {flat[key]}" for key in flat if key != "model"]
    return ", ".join(words) or "the recipe"


if __name__ == "__main__":
    sys.exit(run(main, "; the same command continues"))
