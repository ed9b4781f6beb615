"""Measure how many photos, sorted into a folder for each kind, the networks classify correctly.

    python -m experiments.photos FOLDER

The kinds and their names are those of clothing-dataset-small, see KINDS; other folders are skipped.
Prints tables with 95 % intervals (Wilson), and how far confidence and energy tell correct from
incorrect predictions. Writes photos.json to the folder outputs/photos.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fashion.checkpoint import load_networks
from fashion.data import CLASSES
from fashion.device import environment
from fashion.evaluation import calibration
from fashion.files import write_json
from fashion.options import Parser, add_folders
from fashion.prediction import Report
from fashion.script import UserError, list_files, make_folder, run
from fashion.style import label

import numpy as np
import scipy
import torch

from models import MODELS
from predict import classify, find_pictures

# The classes that are correct for each kind. The collection calls any long-sleeved top longsleeve,
# and does not say which shoes are shown.
KINDS = {
    "pants": ("Trouser",),
    "shirt": ("Shirt",),
    "outwear": ("Coat",),
    "dress": ("Dress",),
    "t-shirt": ("T-shirt/top",),
    "longsleeve": ("Pullover", "Shirt", "T-shirt/top"),
    "shoes": ("Sneaker", "Sandal", "Ankle boot"),
}
# Shoes are counted apart: many photos show a pair from above, as no image of the dataset does.
SHOES, SOME, ALL = "shoes", "all but shoes", "all"
Photo = tuple[str, Report | None]  # the kind, and the report unless no garment was found


def main() -> None:
    """Classify all photos, print the tables and write the file."""
    parser = Parser("Classify photos, a folder for each kind.", prog="-m experiments.photos")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=f"with {', '.join(KINDS)}")
    parser.add_argument("--checkpoints", type=Path, metavar="PATH", help="weights, file or folder")
    add_folders(parser, "the results, which go to its subfolder photos")
    args = parser.parse_args()
    make_folder(args.out / "photos")
    networks = load_networks(args.checkpoints, MODELS)
    kinds = [kind for kind in KINDS if (args.folder / kind).is_dir()]
    if not kinds:
        raise UserError(f"{args.folder} holds no folder of a kind: {', '.join(KINDS)}")
    photos: list[Photo] = []
    for kind in kinds:
        print(f"Classifying {kind}", flush=True)
        for name in find_pictures(str(args.folder / kind)):
            photos.append((kind, None))
            with contextlib.suppress(UserError):  # no garment found, which counts as an error
                photos[-1] = kind, classify(name, networks)

    groups = {kind: [photo for photo in photos if photo[0] == kind] for kind in kinds}
    groups |= {SOME: [photo for photo in photos if photo[0] != SHOES], ALL: photos}
    origin = environment(torch.device("cpu")) | {"precision": "float32"}
    metadata = {name: network.metadata for name, network in networks.items()}
    result: dict[str, Any] = {"environment": origin, "networks": metadata, "correct": {}}
    for kind, chosen in groups.items():
        correct = {name: count([is_correct(photo, name) for photo in chosen]) for name in networks}
        result["correct"][kind] = correct
    print_table("correct", result["correct"], list(networks))
    for group in (SOME, ALL):
        measured = {name: measure(groups[group], name) for name in networks}
        keys = next(iter(measured.values()))
        result[group] = {key: {name: measured[name][key] for name in networks} for key in keys}
        print_table(f"reliability, {group}", result[group], list(networks))
    write_json(args.out / "photos" / "photos.json", result)
    list_files([args.out / "photos" / "photos.json"])


def is_correct(photo: Photo, network: str) -> bool:
    """Return whether a network names a class that is correct for the kind of a photo."""
    kind, report = photo
    return report is not None and report.top(network)[0][0] in KINDS[kind]


def count(correct: Sequence[bool]) -> dict[str, Any]:
    """Return how many predictions are correct, with Wilson's 95 % interval of the share."""
    total, hits = len(correct), int(sum(correct))
    interval = (
        scipy.stats.binomtest(hits, total).proportion_ci(method="wilson") if total else (0, 1)
    )
    return {"correct": hits, "photos": total, "ci95": list(interval)}


def measure(photos: Sequence[Photo], network: str) -> dict[str, Any]:
    """Return how well confidence and energy of the photos with a garment fit the correctness."""
    found = [(photo, report) for photo in photos if (report := photo[1])]
    correct = np.array([is_correct(photo, network) for photo, _ in found])
    probabilities = np.array([report.probabilities[network].numpy() for _, report in found])
    excess = np.array([report.excess[network] for _, report in found])
    confidence, unlike = probabilities.max(1), excess > 0
    # Several classes may be correct: the predicted one, if it is, and otherwise none.
    labels = np.where(correct, probabilities.argmax(1), len(CLASSES))
    return {
        "accuracy": float(correct.mean(dtype=float)),
        "mean confidence": float(confidence.mean(dtype=float)),
        "expected calibration error": calibration(probabilities, labels).error,
        "AUROC of the confidence": auroc(confidence, correct),
        "AUROC of the energy": auroc(-excess, correct),
        "correct if unlike": count(correct[unlike].tolist()),
        "correct if familiar": count(correct[~unlike].tolist()),
    }


def auroc(scores: np.ndarray, correct: np.ndarray) -> float | None:
    """Return how often a correct prediction scores higher than an incorrect one (None: no pair)."""
    pairs = int(correct.sum()) * int((~correct).sum())
    if not pairs:
        return None
    return float(scipy.stats.mannwhitneyu(scores[correct], scores[~correct]).statistic / pairs)


def print_table(title: str, rows: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Print rows with a column for each network as a table in Markdown."""
    print(f"\n| {title} |", *(f"{label(name)} |" for name in names))
    print("| --- |", *("--- |" for _ in names))
    for key, row in rows.items():
        print(f"| {key} |", *(f"{text(row[name])} |" for name in names))


def text(value: Any) -> str:
    """Return counts or a number for people."""
    if not isinstance(value, dict):
        return "–" if value is None else f"{value:.2f}"
    hits, total = value["correct"], value["photos"]
    low, high = (100 * end for end in value["ci95"])
    return f"{hits} of {total} ({100 * hits / max(1, total):.0f} %; {low:.0f} to {high:.0f} %)"


if __name__ == "__main__":
    sys.exit(run(main))
