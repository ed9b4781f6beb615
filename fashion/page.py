"""One HTML page with all results and pictures, which needs neither network nor JavaScript."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

from fashion.files import write
from fashion.script import duration
from fashion.style import label

from PIL import Image

METRICS, PAGE, LIVE = "metrics.json", "report.html", "live.html"
# Captions by heading and by the name of the picture or, for pictures of one network, its ending.
CAPTIONS = {
    "Comparison": {
        "comparison.png": "Scores of the networks, and what they cost.",
        "learning_curves.png": "Validation loss and accuracy during training, over the seeds.",
        "calibration.png": "Accuracy of predictions by their confidence, before calibration.",
    },
    "Training and predictions": {
        "_loss.png": "Loss and accuracy on training and validation images by epoch.",
        "_confusion.png": "Confusion matrix of the test images in percent of the true class.",
        "_incorrect.png": "The most confident errors of each class.",
        "_correct.png": "Correct predictions and their probabilities, before calibration.",
        "suspect_labels.png": "Labels that may be wrong: all runs give them a low probability.",
    },
    "What the networks have learned": {
        "kernel_grid.png": "Kernels of a convolution before and after training.",
        "ffn_weights.png": "Weights of the FFN's first layer, before and after training.",
        "image_transform_grid.png": "Feature maps of a convolution for one image.",
        "feature_progression.png": "From image to prediction: the activations of each layer.",
        "top_activations.png": "The images that most activate a layer's most selective units.",
        "saliency.png": "Saliency maps: red pixels support the prediction, blue pixels oppose it.",
        "embedding.png": "t-SNE map of the last hidden layer, coloured by class.",
    },
    "Your own pictures": {"prediction.png": "What the networks see, and which pixels decide."},
}
OTHERS = "Pictures of networks that are not in the table"
MEASURES = {  # label of a row, and how its values are written
    "train_seconds": ("Training time", duration),
    "validation_accuracy": ("Validation accuracy", "{:.2%}".format),
    "test_accuracy": ("Test accuracy", "{:.2%}".format),
    "flip_averaged_accuracy": ("Test accuracy with mirror images", "{:.2%}".format),
}
NOTE = """<p>Results of several seeds: mean ± standard deviation. Test accuracy with mirror images:
each prediction is the mean over an image and its mirror image.</p>
"""
HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 78rem; margin: auto; padding: 1rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
td { padding: .4rem 1rem .4rem 0; text-align: left; border-bottom: 1px solid #8886; }
td:first-child { font-weight: bold; }
section { display: grid; gap: 1rem; grid: auto / repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 1rem 0 0; }
small { display: block; }
img { max-width: calc(100% - 16px); height: auto; padding: 8px; margin: 6px 0; background: #fff; }
</style>
"""


def seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the seeds of runs as text."""
    return f"seed{'s' * (len(runs) > 1)} {', '.join(str(run['seed']) for run in runs)}"


def source(name: str, dataset: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return which runs of a network a picture is from, for save_figure; joined by semicolons."""
    mean = fmean(run["test_accuracy"] for run in runs)
    return f"{label(name)} on {dataset}, {seeds(runs)}: {mean:.2%} test accuracy"


def measures(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the results of a network as text, with the deviation over several seeds."""
    texts = {"Parameters": f"{entry['runs'][0]['parameters']:,}"}
    for key, (name, text) in MEASURES.items():
        values = [run[key] for run in entry["runs"]]
        texts[name] = "–" if None in values else text(fmean(values))
        if len(values) > 1 and None not in values:
            texts[name] += f" ± {text(stdev(values))}"
    return texts


def column(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the column of a network in the table of results."""
    texts = {"Dataset": entry["dataset"], "Runs": seeds(entry["runs"]), **measures(entry)}
    for key in ("recipe", "environment"):
        items = (f"{k.replace('_', ' ')} {v}" for k, v in entry[key].items())
        texts[key.capitalize()] = ", ".join(items)
    return texts | {"Tested at": entry["tested_at"]}


def table(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return the rows of a table, their names first, from its columns by name."""
    names, *_ = columns.values()
    return [["", *columns], *([row, *(each[row] for each in columns.values())] for row in names)]


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results in metrics.json by network, without those that cannot be shown."""
    results = {}
    with suppress(Exception):  # whatever is wrong in a file that anyone may have edited
        for name, entry in json.loads((folder / METRICS).read_bytes())["models"].items():
            with suppress(Exception):
                column(entry), source(name, entry["dataset"], entry["runs"])
                results[name] = entry
    return results


def write_page(folder: Path) -> Path:
    """Write report.html from the pictures in its folder and, if they exist, the results."""
    results, page, known = read_results(folder), folder / PAGE, set()
    for name, entry in results.items():
        for runs in (entry["runs"], entry["runs"][:1]):
            known.add(source(name, entry["dataset"], runs))
    sections = dict.fromkeys((*CAPTIONS, OTHERS), "")
    for heading, captions in CAPTIONS.items():
        for ending, caption in captions.items():
            for name in results if ending.startswith("_") else [""]:
                path = folder / f"{name}{ending}"
                with suppress(Exception), Image.open(path) as image:  # damaged, or a folder
                    origin = image.info.get("Source", "")
                    foreign = results and origin and not known.issuperset(origin.split("; "))
                    figure = draw(path, caption, origin, *image.size)
                    sections[OTHERS if foreign else heading] += figure
    title = "Fashion-MNIST: results and pictures"
    body = f"<title>{title}</title>\n<h1>{title}</h1>\n"
    if results:
        rows = table({label(name): column(entry) for name, entry in results.items()})
        cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
        lines = "".join(f"<tr>{line}</tr>\n" for line in cells)
        body += f"<h2>Results</h2>\n<table>\n{lines}</table>\n{NOTE}"
    if (folder / LIVE).is_file():
        body += f'<p><a href="{LIVE}">Distort a picture and watch the predictions change</a></p>\n'
    for heading, figures in sections.items():
        body += f"<h2>{heading}</h2>\n<section>\n{figures}</section>\n" if figures else ""
    try:
        write(page, f"{HEAD}{body}</html>\n".encode(errors="replace"))
    except OSError as error:  # the results are written already
        print(f"{page} was not written: {error.strerror}")
    return page


def draw(path: Path, caption: str, origin: str, width: int, height: int) -> str:
    """Return a picture with its caption. Its size reserves the space before it is loaded."""
    address, lines = quote(path.name, safe=""), "<br>".join(map(escape, origin.split("; ")))
    return (
        f'<figure><figcaption>{caption}<small>{lines}</small></figcaption><a href="{address}">'
        f'<img alt="{caption}" src="{address}" width="{width}" height="{height}" loading="lazy">'
        "</a></figure>\n"
    )
