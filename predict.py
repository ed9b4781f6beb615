"""Classify your own pictures with the trained networks.

    python predict.py shoe.jpg

Prints the predictions of all models for each picture. Writes prediction.png to the folder outputs:
the picture, the input of the models, their probabilities, and saliency maps. The page report.html
there shows it.
"""

import argparse
import io
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fashion import cli
from fashion.checkpoint import SUFFIX, Checkpoint, load_models
from fashion.data import CLASS_NAMES, TITLES
from fashion.evaluation import energy, predict_logits
from fashion.explain import occlusion
from fashion.explain_plots import PictureReport, draw_reports
from fashion.files import RunError, UsageError, prepare_folder
from fashion.page import write_page
from fashion.photo import prepare_with_doubt, read_photo
from fashion.plots import save_figure
from fashion.report import PREDICTION_NAME
from models import MODELS, STYLES

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
MAX_BYTES = 200_000_000  # of standard input; larger files are hardly pictures
TOP_CLASSES = 3  # listed for each model
CONFIDENT = 0.6  # a highest probability below this value is reported as uncertain
MAX_ROWS = 10  # of prediction.png; more would be too small to read

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Load the models, then print and draw their predictions for all pictures.

    Raises:
        UsageError: At the end, if some pictures could not be used.
    """
    folder = arguments.checkpoints or cli.find_models(MODELS)
    if not arguments.json:
        print(f"Models: {folder}")
    paths = {name: folder / f"{name}{SUFFIX}" for name in MODELS}
    command = shlex.join(["python", "fashionmnist.py", "--out", str(folder)])
    with cli.advise(f"train the models with: {command}", UsageError):
        models = load_models(paths, MODELS)
    prepare_folder(arguments.out)

    reports: list[PictureReport] = []
    errors: list[Exception] = []
    for argument in arguments.pictures:
        try:
            pictures = find_pictures(argument)
        except (UsageError, RunError) as error:
            errors.append(error)
            continue
        for name, source in pictures:
            try:
                reports.append(classify(name, source, models, len(reports) < MAX_ROWS))
            except (UsageError, RunError) as error:
                errors.append(error)
    for reason in errors:
        logger.warning("picture skipped: %s", reason)

    if arguments.json:
        print(json.dumps([to_json(report) for report in reports], indent=2))
    else:
        for report in reports:
            print(to_text(report))
    if reports:
        path = arguments.out / PREDICTION_NAME
        dataset = TITLES[next(iter(models.values())).dataset]
        title = f"Predictions of the models in {folder.resolve().name}, trained on {dataset}"
        if len(reports) > MAX_ROWS:
            title += f"\nthe first {MAX_ROWS} of {len(reports)} pictures"
        save_figure(draw_reports(reports[:MAX_ROWS], STYLES, title), path)
        page = write_page(arguments.out)
        if not arguments.json:
            cli.print_files([path, page])
    if errors:
        kind = RunError if any(isinstance(error, RunError) for error in errors) else UsageError
        count = len(errors) + len(reports)
        raise kind(f"{len(errors)} of {count} pictures could not be used, see above")


def find_pictures(name: str) -> list[tuple[str, Path | io.BytesIO]]:
    """Return the names and sources of pictures: a file, those in a folder, or standard input.

    Raises:
        UsageError: If a folder holds no pictures, or standard input is too long.
        RunError: If a folder cannot be read.
    """
    if name == "-":
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"standard input: longer than {MAX_BYTES:,} bytes")
        return [("standard input", io.BytesIO(content))]
    if not Path(name).is_dir():
        return [(name, Path(name))]
    try:
        files = sorted(file for file in Path(name).iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise RunError(f"cannot read {name}: {error.strerror}") from error
    if not files:
        raise UsageError(f"{name}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
    return [(str(file), file) for file in files]


def classify(
    name: str, source: Path | io.BytesIO, models: Mapping[str, Checkpoint], explain: bool
) -> PictureReport:
    """Return the predictions of all models for a picture, a file or a stream with its content.

    With explain, the report also has the photo and saliency maps, for the figure.

    Raises:
        UsageError: If the picture cannot be used.
        RunError: If the file cannot be read.
    """
    photo = read_photo(source, name)
    image, doubt = prepare_with_doubt(photo, name)
    report = PictureReport(name, photo if explain else None, image, {}, {}, {}, doubt)
    for key, model in models.items():
        images = torch.from_numpy(image[None])
        logits = predict_logits(model.model, images, model.mean, model.std)
        probabilities = (logits[0] / model.temperature).softmax(0).numpy()
        report.probabilities[key] = probabilities
        report.excess[key] = energy(logits).item() - model.energy_limit
        if explain:  # hundreds of photos would fill the memory
            report.saliency[key] = occlusion(model, image, int(probabilities.argmax()))
    return report


def top_classes(probabilities: np.ndarray) -> list[tuple[str, float]]:
    """Return the names and probabilities of the most probable classes, in descending order."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    return [(CLASS_NAMES[label], float(probabilities[label])) for label in order]


def to_json(report: PictureReport) -> dict[str, object]:
    """Return the predictions for a picture as an entry of the JSON list; see --json."""
    entry: dict[str, object] = {"file": report.name, "doubt": report.doubt}
    for name, probabilities in report.probabilities.items():
        top = [{"label": label, "probability": p} for label, p in top_classes(probabilities)]
        excess = report.excess[name]
        entry[name] = {
            **top[0],
            f"top{TOP_CLASSES}": top,
            "energy_above_limit": excess,
            "familiar": excess <= 0,
        }
    return entry


def to_text(report: PictureReport) -> str:
    """Return the predictions for a picture as lines of text, with a note if they are doubtful."""
    lines = [report.name]
    for name, probabilities in report.probabilities.items():
        classes = ", ".join(f"{label} {p:.1%}" for label, p in top_classes(probabilities))
        lines.append(f"  {STYLES[name].label}: {classes}")
    best = [top_classes(values)[0] for values in report.probabilities.values()]
    if len({label for label, _ in best}) > 1:
        lines.append("  The models disagree.")
    if report.doubt:
        lines.append(f"  The garment may not have been found: {report.doubt}.")
    strange = [name for name, excess in report.excess.items() if excess > 0]
    if strange:
        names = " and ".join(STYLES[name].label for name in strange)
        lines.append(
            f"  Unlike the training images, according to {names}: the prediction is unreliable."
        )
    if all(p < CONFIDENT for _, p in best):
        lines.append(f"  Uncertain: no probability reaches {CONFIDENT:.0%}.")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: If an argument is unknown or malformed.
    """
    description = "Classify your own pictures with the trained networks."
    parser = cli.Parser("predict.py", description, "[options] PICTURE ...")
    help_pictures = "picture files, folders of them, or - for one from standard input"
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help=help_pictures)
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help=f"folder with the models (default: {cli.OUTPUT_FOLDER} if it holds models, else those "
        "shipped with this project)",
    )
    help_json = "print JSON: each picture has file and doubt and, under each model's name, label, "
    help_json += f"probability, top{TOP_CLASSES}, energy_above_limit and familiar"
    parser.add_argument("--json", action="store_true", help=help_json)
    cli.add_out_option(parser, PREDICTION_NAME)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(parse_arguments, main))
