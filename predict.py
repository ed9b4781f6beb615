"""Classify your own pictures with the trained networks.

    python predict.py shoe.jpg

Prints the predictions of all networks for each picture. Writes prediction.png to the folder
outputs: the picture, the input of the networks, their probabilities, and saliency maps. The page
report.html there shows it.
"""

import glob
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion import options

if __name__ == "__main__":  # --help and mistakes are answered before torch is loaded
    options.predict()

from fashion.checkpoint import Network, load_networks
from fashion.page import write_page
from fashion.photo import prepare, read_photo
from fashion.prediction import Report, draw, one_line
from fashion.script import UserError, list_files, make_folder, quiet, run
from fashion.style import label, save_figure

import torch

from models import MODELS

READABLE = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PHONES = (".heic", ".heif", ".avif")  # formats that phones write and Pillow cannot read everywhere
CONFIDENT = 0.6  # a highest probability below this value is reported as uncertain
MAX_ROWS = 10  # of prediction.png; more would be too small to read


def main() -> None:
    """Print and draw the predictions for all pictures; UserError at the end if some failed."""
    args = options.predict()
    reports: list[Report] = []
    with quiet(args.json):
        networks = load_networks(args.checkpoints, MODELS)
        make_folder(args.out)
        pictures = [name for argument in args.pictures for name in find_pictures(argument)]
        for name in pictures:
            try:
                reports.append(classify(name, networks))
                print(to_text(reports[-1]), flush=True)
            except UserError as error:
                print(one_line(f"picture skipped: {error}"), file=sys.stderr)
        if reports:
            title = f"Predictions of networks trained on {next(iter(networks.values())).dataset}"
            if len(reports) > MAX_ROWS:
                title += f"\nThe first {MAX_ROWS} of {len(reports)} pictures"
            figure = draw(reports[:MAX_ROWS], networks, title)
            list_files([save_figure(figure, args.out / "prediction.png"), write_page(args.out)])
    if args.json:
        print(json.dumps([to_json(report) for report in reports], indent=2))
    if failed := len(pictures) - len(reports):
        raise UserError(f"{failed} of {len(pictures)} pictures could not be used, see above")


def find_pictures(argument: str) -> list[str]:
    """Return the pictures in a folder or of a pattern; else, the argument itself."""
    files: list[str] = []
    if os.path.isdir(argument):  # noqa: PTH112, Path.is_dir fails if a name is too long
        files = [str(file) for file in Path(argument).iterdir() if file.name[0] != "."]
    elif set("*?") & set(argument):  # the shell of Windows leaves patterns to the program
        files = glob.glob(argument)  # noqa: PTH207, the pattern may be absolute
    for file in sorted(file for file in files if file.lower().endswith(PHONES)):
        print(one_line(f"{file} is skipped; export it as JPEG"), file=sys.stderr)
    return sorted(file for file in files if file.lower().endswith(READABLE)) or [argument]


def classify(name: str, networks: Mapping[str, Network]) -> Report:
    """Return the report on a picture."""
    source: Path | io.BytesIO = Path(name)
    if name == "-":
        name, source = "standard input", io.BytesIO(sys.stdin.buffer.read())
    elif name.startswith(("http://", "https://")):
        raise UserError(f"{name} is a URL; download the picture and pass the file")
    elif os.path.isdir(name):  # noqa: PTH112
        raise UserError(f"{name}: the folder holds no pictures ({', '.join(READABLE)})")
    photo = read_photo(source, name)
    pixels, doubt = prepare(photo, name)
    photo.thumbnail((400, 400))  # hundreds of photos would fill the memory
    image = torch.from_numpy(pixels)
    probabilities = {key: n.probabilities(image[None])[0] for key, n in networks.items()}
    excess = {key: n.excess_energy(image[None]).item() for key, n in networks.items()}
    return Report(name, photo, image, doubt, probabilities, excess)


def to_json(report: Report) -> dict[str, Any]:
    """Return an entry of the JSON list; see --json."""
    entry: dict[str, Any] = {"file": report.name, "doubt": report.doubt}
    for name, excess in report.excess.items():
        top = [{"label": title, "probability": p} for title, p in report.top(name)]
        entry[name] = top[0] | {f"top{options.TOP}": top}
        entry[name] |= {"energy_above_limit": excess, "familiar": excess <= 0}
    return entry


def to_text(report: Report) -> str:
    """Return the predictions as lines of text, with a note if they are doubtful."""
    tops = {name: report.top(name) for name in report.probabilities}
    lines = [one_line(report.name)]
    for name, top in tops.items():
        lines.append(f"  {label(name)}: " + ", ".join(f"{title} {p:.1%}" for title, p in top))
    if len({top[0][0] for top in tops.values()}) > 1:
        lines.append("  The networks disagree.")
    if report.doubt:
        lines.append(f"  The garment may not have been found: {report.doubt}.")
    if strange := report.strange():
        lines.append(f"  Unlike the training images of {strange}: the prediction is unreliable.")
    if all(top[0][1] < CONFIDENT for top in tops.values()):
        lines.append(f"  Uncertain: no probability reaches {CONFIDENT:.0%}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
