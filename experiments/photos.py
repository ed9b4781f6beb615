"""Measure how many photos, sorted into a folder for each kind, the networks classify correctly.

    python -m experiments.photos FOLDER

The kinds and their names are those of clothing-dataset-small, see KINDS; other folders are skipped.
Prints a table with 95 % intervals (Wilson), and how far confidence and energy tell correct from
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
from fashion.prediction import Report
from fashion.script import Parser, UserError, add_folders, list_files, make_folder, run
from fashion.style import label

import numpy as np
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
SHOES = "shoes"  # counted apart: many show a pair from above, as no image of the dataset does
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
    groups["all but shoes"] = [photo for photo in photos if photo[0] != SHOES]
    result: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    result["networks"] = {name: network.metadata for name, network in networks.items()}
    result["accuracy"] = {
        kind: {name: count(chosen, name) for name in networks} for kind, chosen in groups.items()
    }
    result["reliability"] = {
        kind: {name: measure(chosen, name) for name in networks}
        for kind, chosen in (("all but shoes", groups["all but shoes"]), ("all", photos))
    }
    print_tables(result)
    write_json(args.out / "photos" / "photos.json", result)
    list_files([args.out / "photos" / "photos.json"])


def is_correct(photo: Photo, network: str) -> bool:
    """Return whether a network names a class that is correct for the kind of a photo."""
    kind, report = photo
    return report is not None and report.top(network)[0][0] in KINDS[kind]


def count(photos: Sequence[Photo], network: str) -> dict[str, Any]:
    """Return how many photos are classified correctly, and Wilson's 95 % interval of the share."""
    from scipy.stats import binomtest

    correct = sum(is_correct(photo, network) for photo in photos)
    interval = binomtest(correct, len(photos)).proportion_ci(method="wilson")
    return {"correct": correct, "photos": len(photos), "ci95": list(interval)}


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
        "photos": len(found),
        "accuracy": float(correct.mean(dtype=float)),
        "confidence": float(confidence.mean(dtype=float)),
        "calibration_error": calibration(probabilities, labels).error,
        "auroc_of_confidence": auroc(confidence, correct),
        "auroc_of_energy": auroc(-excess, correct),
        "unlike": {"photos": int(unlike.sum()), "correct": int(correct[unlike].sum())},
        "familiar": {"photos": int((~unlike).sum()), "correct": int(correct[~unlike].sum())},
    }


def auroc(scores: np.ndarray, correct: np.ndarray) -> float | None:
    """Return how often a correct prediction scores higher than an incorrect one (None: no pair)."""
    from scipy.stats import mannwhitneyu

    pairs = int(correct.sum()) * int((~correct).sum())
    if not pairs:
        return None
    return float(mannwhitneyu(scores[correct], scores[~correct]).statistic / pairs)


def print_tables(result: dict[str, Any]) -> None:
    """Print the results as tables in Markdown."""
    names = list(result["networks"])
    print("\n| kind | photos |", *(f"{label(name)} |" for name in names))
    print("| --- |", "--- |", *("--- |" for _ in names))
    for kind, row in result["accuracy"].items():
        low_high = {n: "{:.0%} to {:.0%}".format(*row[n]["ci95"]) for n in names}
        cells = (f"{row[n]['correct']} ({share(row[n])}; {low_high[n]}) |" for n in names)
        print(f"| {kind} | {row[names[0]]['photos']} |", *cells)
    for kind, rows in result["reliability"].items():
        print(f"\n| {kind} |", *(f"{label(name)} |" for name in names))
        print("| --- |", *("--- |" for _ in names))
        for key in rows[names[0]]:
            values = (rows[name][key] for name in names)
            print(f"| {key.replace('_', ' ')} |", *(f"{text(value)} |" for value in values))


def share(counts: dict[str, int]) -> str:
    """Return the share of correct photos for people."""
    return f"{counts['correct'] / counts['photos']:.0%}" if counts["photos"] else "–"


def text(value: Any) -> str:
    """Return a number or counts for people."""
    if isinstance(value, dict):
        return f"{value['photos']}, of which {value['correct']} correct ({share(value)})"
    return f"{value:.2f}" if isinstance(value, float) else f"{value}"


if __name__ == "__main__":
    sys.exit(run(main))
