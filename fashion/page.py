"""One HTML page with all results, which needs neither network nor JavaScript."""

import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from fashion.checkpoint import CONTENT_ERRORS
from fashion.data import SYNTHETIC
from fashion.files import RunError, UsageError, write_file
from fashion.report import CAPTIONS, METRICS_NAME, PAGE_NAME, SYNTHETIC_NOTE, format_duration

MEASURES = {  # label of a row, and how its values are written
    "parameters": ("Parameters", "{:,}".format),
    "train_seconds": ("Training time", format_duration),
    "validation_accuracy": ("Validation accuracy", "{:.2%}".format),
    "test_accuracy": ("Test accuracy", "{:.2%}".format),
    "flip_averaged_accuracy": (
        "Test accuracy, predictions averaged over each image and its mirror image",
        "{:.2%}".format,
    ),
}
HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 78rem; margin: auto; padding: 1rem; }
strong { display: block; padding: .6rem 1rem; border: 2px solid #d55e00; border-radius: .5rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
th, td { padding: .4rem 1rem .4rem 0; text-align: left; border-bottom: 1px solid #8886; }
section { display: grid; gap: 1rem; grid: auto / repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure, details { margin: 2rem 0 0; }
img { max-width: calc(100% - 16px); height: auto; padding: 8px; margin: 6px 0; background: #fff; }
@media (prefers-color-scheme: dark) { img { filter: brightness(.88); border-radius: .5rem; } }
</style>
"""


def write_page(folder: Path) -> Path:
    """Write report.html from the pictures in its folder and, if they exist, the results.

    Raises:
        UsageError: If metrics.json or comparison.json is damaged.
        RunError: If a file cannot be read or written.
    """
    page, files = folder / PAGE_NAME, (folder / METRICS_NAME, folder / "comparison.json")
    try:
        metrics, comparison = (json.loads(f.read_bytes()) if f.exists() else {} for f in files)
        body = [_show_pictures(folder, name, metrics.get("models", ())) for name in CAPTIONS]
        title = "Figures of the models"
        if metrics:
            title = escape(f"Results on {metrics['dataset']['title']}")
            body = [_show_results(metrics, comparison), *body, _show_settings(metrics)]
        html = f"{HEAD}<title>{title}</title>\n<h1>{title}</h1>\n{''.join(body)}</html>\n".encode()
    except OSError as error:
        raise RunError(f"cannot write {page}: {error}") from error
    except CONTENT_ERRORS as error:
        raise UsageError(
            f"{METRICS_NAME} or comparison.json in {folder} is damaged: remove both, or train again"
        ) from error
    write_file(page, html)
    return page


def _show_results(metrics: dict[str, Any], comparison: dict[str, Any]) -> str:
    """Return the table of results: of all seeds if there are several, otherwise of one run."""
    data, models = metrics["dataset"], metrics["models"]
    note = f"{data['train_images']:,} training and {data['test_images']:,} test images"
    if comparison:
        models = comparison["models"]
        note += f"; mean ± standard deviation over {len(comparison['seeds'])} seeds"
    rows = {
        label: [_measure(model, key, write) for model in models.values()]
        for key, (label, write) in MEASURES.items()
    }
    warning = f"<strong>{SYNTHETIC_NOTE}</strong>\n" if data["name"] == SYNTHETIC else ""
    return f"{warning}<p>{escape(note)}.</p>\n{_table(models, rows)}"


def _measure(model: dict[str, Any], key: str, write: Callable[[float], str]) -> str:
    """Return a value of one run, or the mean ± standard deviation of several, as text."""
    value = (model if key in model else model["history"][-1])[key]
    values = (value["mean"], value["std"]) if isinstance(value, dict) else (value,)
    return " ±\N{NO-BREAK SPACE}".join(map(write, values))


def _show_pictures(folder: Path, ending: str, models: Iterable[str]) -> str:
    """Return a picture, or those of each model, with the caption, or nothing if none exists."""
    figures = ""
    for model in models if ending.startswith("_") else [""]:
        path = folder / f"{model}{ending}"
        if path.is_file():
            with Image.open(path) as image:
                width, height = image.size  # reserves the space before the picture is loaded
            name, address = escape(path.stem.replace("_", " ")), quote(path.name, safe="")
            caption = escape(f"{model.upper()}: {CAPTIONS[ending]}" if model else CAPTIONS[ending])
            figures += (
                f'<figure><figcaption>{caption}</figcaption><a href="{address}"><img alt="{name}" '
                f'src="{address}" width="{width}" height="{height}" loading="lazy"></a></figure>\n'
            )
    return f"<section>\n{figures}</section>\n" if figures else ""


def _show_settings(metrics: dict[str, Any]) -> str:
    """Return the settings, dataset, device and versions, collapsed."""
    keys = ("seed", "dataset", "device", "versions")
    others = metrics["settings"] | {key: metrics[key] for key in keys}
    recipes, arguments = others.pop("recipes"), others.pop("models")
    models = [recipe | {"model": arguments[name]} for name, recipe in recipes.items()]
    rows = {key.replace("_", " "): [_text(model[key]) for model in models] for key in models[0]}
    text = "".join(f"<p>{escape(f'{key}: {_text(each)}')}</p>\n" for key, each in others.items())
    return f"<details><summary>Settings</summary>\n{_table(recipes, rows)}{text}</details>\n"


def _table(columns: Iterable[str], rows: Mapping[str, list[str]]) -> str:
    """Return a table whose rows have names. All text in it is escaped."""
    head = "".join(f'<th scope="col">{escape(name.upper())}</th>' for name in columns)
    body = ""
    for name, values in rows.items():
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n'
    return f"<table>\n<tr><td></td>{head}</tr>\n{body}</table>\n"


def _text(value: Any) -> str:
    """Return a value of a JSON file as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_text(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
