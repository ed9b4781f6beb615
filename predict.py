"""Ask the trained networks what is on your own pictures.

    python predict.py shoe.jpg

Prints what both networks take each picture for, and writes prediction.png to the folder outputs:
the picture, what the networks see of it, their probabilities, and the pixels that decided.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import plots
from data import CLASS_NAMES, TITLES
from explain import class_probabilities, occlusion
from explain_plots import PictureReport, draw_reports
from fashionmnist import Parser, run_script, warn
from files import UserMistake, WorldFault, prepare_folder
from photo import prepare, read_photo
from training import MODELS, Checkpoint, load_checkpoint

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
STANDARD_INPUT = "-"
MAX_BYTES = 200_000_000  # of standard input: more is no picture
LIKELIEST = 3  # classes named of each model
# A model that gives no class so much is not sure; one of both that does is enough.
SURE = 0.6
MAX_ROWS = 10  # of prediction.png, or it could not be looked at


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole story and return the exit status; see fashionmnist.run_script."""
    return run_script(lambda: tell_story(argv))


def tell_story(argv: Sequence[str] | None) -> None:
    """Arguments, models, pictures, answers, figure.

    A picture that cannot be used is named and left out; the others are answered all the same.

    Raises:
        UserMistake: at the end, when a picture could not be used, and see the functions called.
        WorldFault: see the functions called.
    """
    arguments = parse_arguments(argv)
    models = load_models(arguments.checkpoints)
    prepare_folder(arguments.out)
    reports, unusable = [], 0
    for name, source in find_pictures(arguments.pictures):
        try:
            photo = read_photo(source, name)
            seen = prepare(photo, name)
        except UserMistake as error:
            warn(f"left out: {error}")
            unusable += 1
            continue
        reports.append(report(name, photo, seen, models, explained=len(reports) < MAX_ROWS))

    if arguments.json:
        print(json.dumps([summarize(each) for each in reports], indent=2))
    else:
        for each in reports:
            print(describe(each))
    if reports:
        path = arguments.out / "prediction.png"
        plots.save_figure(draw_reports(reports[:MAX_ROWS], title(reports, models)), path)
        if not arguments.json:
            print(f"\nWritten:\n  {path}")
    if unusable:
        raise UserMistake(f"{unusable} of {unusable + len(reports)} pictures could not be used")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserMistake: when an argument is unknown or malformed.
    """
    parser = Parser(
        prog="predict.py",
        description="Ask the trained networks what is on your own pictures.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="picture files, folders of them, or - for one from standard input",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder with ffn.pt and cnn.pt (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a list for programs: of each picture file and, by model, label, probability "
        "and top3",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder for prediction.png (default: %(default)s)",
    )
    return parser.parse_args(argv)


def load_models(folder: Path) -> dict[str, Checkpoint]:
    """Load the trained models of a folder; one that is missing is left out with a warning.

    Raises:
        UserMistake: when both are missing, or a file is damaged or none of ours.
        WorldFault: when a file cannot be read.
    """
    there = [name for name in MODELS if (folder / f"{name}.pt").exists()]
    for name in MODELS:
        if there and name not in there:
            warn(f"there is no {folder / name}.pt: the other model answers alone")
    # With neither, loading says how to make one.
    return {name: load_checkpoint(folder / f"{name}.pt", name) for name in there or MODELS}


def find_pictures(wanted: Sequence[str]) -> Iterator[tuple[str, Path | io.BytesIO]]:
    """Yield the name and the source of each picture: files, those in folders, standard input.

    Raises:
        UserMistake: when a folder holds no picture, or standard input is too long.
        WorldFault: when a folder cannot be read.
    """
    for name in wanted:
        if name == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise UserMistake(f"standard input: more than {MAX_BYTES:,} bytes are no picture")
            yield "standard input", io.BytesIO(content)
        elif Path(name).is_dir():
            try:
                files = sorted(p for p in Path(name).iterdir() if p.suffix.lower() in SUFFIXES)
            except OSError as error:
                raise WorldFault(f"cannot read {name}: {error.strerror}") from error
            if not files:
                raise UserMistake(
                    f"{name}: the folder holds no picture ({', '.join(sorted(SUFFIXES))})"
                )
            yield from ((str(file), file) for file in files)
        else:
            yield name, Path(name)


def report(
    name: str, photo: Image.Image, seen: np.ndarray, models: dict[str, Checkpoint], explained: bool
) -> PictureReport:
    """Return what the models say of a picture, and if explained, because of which pixels.

    Args:
        name: of its file.
        photo: RGB, of any size.
        seen: uint8 (28, 28), the same as the networks get it.
        models: by name.
        explained: whether the saliency is computed, which takes longer than all the rest.
    """
    probabilities = {
        key: class_probabilities(model, seen[None])[0] for key, model in models.items()
    }
    saliency = {
        key: occlusion(model, seen, int(probabilities[key].argmax()))
        for key, model in models.items()
        if explained
    }
    return PictureReport(name, photo, seen, probabilities, saliency)


def likeliest(probabilities: np.ndarray) -> list[tuple[str, float]]:
    """Return the likeliest classes with their probabilities, the first one first."""
    order = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    return [(CLASS_NAMES[label], float(probabilities[label])) for label in order]


def summarize(report: PictureReport) -> dict[str, object]:
    """Return what a program wants to know of a picture: file, and answers by model."""
    answers = {}
    for name, probabilities in report.probabilities.items():
        top = [{"label": label, "probability": p} for label, p in likeliest(probabilities)]
        answers[name] = {**top[0], f"top{LIKELIEST}": top}
    return {"file": report.name, **answers}


def describe(report: PictureReport) -> str:
    """Return the same for people, with a word on how far to trust it."""
    lines = [report.name]
    for name, probabilities in report.probabilities.items():
        classes = ", ".join(f"{label} {p:.1%}" for label, p in likeliest(probabilities))
        lines.append(f"  {name.upper()}: {classes}")
    best = [likeliest(values)[0] for values in report.probabilities.values()]
    if len({label for label, _ in best}) > 1:
        lines.append("  The models disagree.")
    if all(p < SURE for _, p in best):
        who = "Neither model is" if len(best) > 1 else "The model is not"
        lines.append(f"  {who} sure: no class has {SURE:.0%}.")
    return "\n".join(lines)


def title(reports: Sequence[PictureReport], models: dict[str, Checkpoint]) -> str:
    """Return the figure's title, which says of how many pictures it shows how many."""
    trained_on = " and ".join(sorted({TITLES[model.dataset] for model in models.values()}))
    shown = f"the first {MAX_ROWS} of {len(reports)} pictures; " if len(reports) > MAX_ROWS else ""
    return f"What do the networks take this for, and why?\n{shown}trained on {trained_on}"


if __name__ == "__main__":
    sys.exit(main())
