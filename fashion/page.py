"""One HTML page with all results and pictures, which needs neither network nor JavaScript."""

import json
import re
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
# Title and caption, by heading and by the name of the picture or, for pictures of one network, its
# ending. The pictures show their titles themselves; the contents of the page use these.
CAPTIONS = {
    "Data and networks": {
        "dataset.png": "Training images. Look for classes that look alike at 28 × 28 pixels, such "
        "as shirts and coats, and for how little an image changes from view to view.",
        "architectures.png": "Architectures. Look for the layers with the most parameters and "
        "those with the most multiply-accumulates: in a CNN, these are not the same.",
    },
    "Comparison": {
        "comparison.png": "Scores, confusions and costs. Look for the classes in which the "
        "networks differ most, and for what the better scores cost.",
        "disagreements.png": "Images that only one network classifies correctly. Look for what "
        "the images of a row have in common, and for labels that you would dispute.",
        "learning_curves.png": "Validation during training. Look for the epoch from which the "
        "networks differ by more than their deviation over seeds.",
        "calibration.png": "Calibration. Look for curves below the diagonal, where a network is "
        "more confident than accurate, and for how much one temperature per network repairs.",
    },
    "Training and predictions": {
        "_loss.png": "Learning curves. Look for a validation loss that rises while the training "
        "loss falls, which means overfitting; the level of the two can only be compared if the "
        "training uses no augmentation, dropout or label smoothing.",
        "_confusion.png": "Confusion matrices. Look for pairs of dark cells that mirror each other "
        "at the diagonal: such classes are confused in both directions.",
        "_incorrect.png": "Most confident errors. Look for errors that you would make too, and for "
        "labels that seem wrong. The probabilities are not calibrated.",
        "_correct.png": "Correct predictions. Look for the least confident ones, and for what "
        "sets them apart. The probabilities are not calibrated.",
        "suspect_labels.png": "Labels that may be wrong. Look for images on which you agree with "
        "the networks rather than with the label.",
    },
    "What the networks have learned": {
        "kernel_grid.png": "Kernels of a convolution. Look for kernels with a positive and a "
        "negative side, which respond to edges, and for kernels that have almost vanished.",
        "ffn_weights.png": "Weights of the FFN's first layer. Look for patches of one sign, which "
        "the random weights before training do not have.",
        "image_transform_grid.png": "Feature maps of a convolution. Look for maps that respond to "
        "outlines, and for others that respond to the fabric.",
        "feature_progression.png": "From image to prediction. Look for the layer from which you no "
        "longer recognize the garment.",
        "top_activations.png": "Images that activate a unit most. Look for what the images of a "
        "unit share: a class, a shape or a pattern.",
        "saliency.png": "Saliency maps. Look for red pixels, which support the prediction, and "
        "blue ones, which oppose it, and for images on which the networks differ.",
        "embedding.png": "Map of the last hidden layer. Look for classes whose colours mix.",
    },
    "Your own pictures": {
        "prediction.png": "Predictions. Look at the input of the networks first: where it does not "
        "show the garment, no prediction can be right.",
    },
}
OTHERS = "Pictures of networks that are not in the table"
MEASURES = {  # label of a row, and how its values are written
    "train_seconds": ("Training time", duration),
    "validation_accuracy": ("Validation accuracy", "{:.2%}".format),
    "test_accuracy": ("Test accuracy", "{:.2%}".format),
    "flip_averaged_accuracy": ("Test accuracy with mirror images", "{:.2%}".format),
}
SETTINGS = {  # where the name of the field says too little
    "learning_rate": "Highest learning rate",
    "warmup": "Warm-up (share of the steps)",
    "max_shift": "Largest shift (pixels)",
    "shift_share": "Share of shifted images",
    "flip": "Mirrored images",
    "model": "Arguments of the network",
    "torch": "PyTorch",
}
NOTE = """<p>Results of several seeds: mean ± standard deviation. Another test set would also
change them: for 94% of 10,000 images, its standard error is 0.24 points. Test accuracy with mirror
images: each prediction is the mean over an image and its mirror image.</p>
"""
HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 80rem; margin: auto; padding: 1rem; }
h2 { margin-top: 3rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
td { padding: .3rem 1rem .3rem 0; vertical-align: top; border-bottom: 1px solid #8886; }
td:first-child { font-weight: bold; }
figure { margin: 2rem 0 0; }
small { display: block; margin: .5rem 0; }
figure div { overflow-x: auto; }
img { box-sizing: border-box; max-width: 100%; height: auto; padding: 8px; background: #fff; }
@media (max-width: 50rem) { img { max-width: none; } }
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
    return {"Dataset": entry["dataset"], "Runs": seeds(entry["runs"]), **measures(entry)}


def settings(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the column of a network in the table of settings."""
    texts = {}
    for key, value in (entry["recipe"] | entry["environment"]).items():
        if isinstance(value, dict):  # arguments of the network
            value = ", ".join(f"{name} {each}" for name, each in value.items()) or "defaults"
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        texts[SETTINGS.get(key, key.replace("_", " ").capitalize())] = str(value or "none")
    return texts | {"Tested": entry["tested_at"].replace("T", " ").replace("+00:00", " UTC")}


def table(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return the rows of a table, their names first, from its columns by name; no empty row."""
    names = dict.fromkeys(name for each in columns.values() for name in each)
    rows = [[name, *(each.get(name, "–") for each in columns.values())] for name in names]
    return [["", *columns], *(row for row in rows if set(row[1:]) != {"–"})]


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results in metrics.json by network, without those that cannot be shown."""
    results = {}
    with suppress(Exception):  # whatever is wrong in a file that anyone may have edited
        for name, entry in json.loads((folder / METRICS).read_bytes())["models"].items():
            with suppress(Exception):
                column(entry), settings(entry), source(name, entry["dataset"], entry["runs"])
                results[name] = entry
    return results


def write_page(folder: Path) -> Path:
    """Write report.html from the pictures in its folder and, if they exist, the results."""
    results, page, known = read_results(folder), folder / PAGE, set()
    for name, entry in results.items():
        for runs in (entry["runs"], entry["runs"][:1]):
            known.add(source(name, entry["dataset"], runs))
    sections = dict.fromkeys(("Results", *CAPTIONS, OTHERS, "Settings"), "")
    for heading, captions in CAPTIONS.items():
        for ending, caption in captions.items():
            (title, look), images = caption.split(". ", 1), {heading: "", OTHERS: ""}
            for name in results if ending.startswith("_") else [""]:
                path = folder / f"{name}{ending}"
                with suppress(Exception), Image.open(path) as image:  # damaged, or a folder
                    origin = image.info.get("Source", "")
                    foreign = results and origin and not known.issuperset(origin.split("; "))
                    images[OTHERS if foreign else heading] += draw(path, title, origin, *image.size)
            for place, content in images.items():
                if content:
                    name = f' id="{title.replace(" ", "_")}"' if place == heading else ""
                    figure = f"<figure{name}>\n{content}<figcaption>{look}</figcaption></figure>\n"
                    sections[place] += figure
    for heading, texts in (("Results", column), ("Settings", settings)) if results else ():
        rows = table({label(name): texts(entry) for name, entry in results.items()})
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
        lines = "".join(f"<tr>{line}</tr>\n" for line in cells)
        sections[heading] = f"<table>\n{lines}</table>\n{NOTE if heading == 'Results' else ''}"
    if (folder / LIVE).is_file():
        live = f'<p><a href="{LIVE}">Distort a picture and watch the predictions change</a></p>\n'
        sections["What the networks have learned"] += live
    title, links, body = "Fashion-MNIST: results and pictures", "", ""
    for heading, content in sections.items():
        if content:
            anchors = [heading.replace(" ", "_"), *re.findall('<figure id="(.*?)"', content)]
            line = (f'<a href="#{each}">{each.replace("_", " ")}</a>' for each in anchors)
            links += f"<li>{next(line)}<br>{', '.join(line)}</li>\n"
            body += f'<h2 id="{anchors[0]}">{heading}</h2>\n{content}'
    text = f"{HEAD}<title>{title}</title>\n<h1>{title}</h1>\n<nav><ul>\n{links}</ul></nav>\n"
    text += f"<p>A click opens a figure in full size.</p>\n{body}</html>\n"
    try:
        write(page, text.encode(errors="replace"))
    except OSError as error:  # the results are written already
        print(f"{page} was not written: {error.strerror}")
    return page


def draw(path: Path, title: str, origin: str, width: int, height: int) -> str:
    """Return a picture with the networks that it is from. Its size reserves space for it."""
    address, lines = quote(path.name, safe=""), "<br>".join(map(escape, origin.split("; ")))
    # Three quarters of the pixels are about the size in inches for which the text was chosen.
    size = f'width="{round(0.75 * width)}" height="{round(0.75 * height)}"'
    return (
        f'<small>{lines}</small><div><a href="{address}"><img alt="{title}" '
        f'src="{address}" {size} loading="lazy"></a></div>\n'
    )
