"""What the experiments share."""

import argparse
from pathlib import Path
from typing import Any

from fashion.data import Dataset, load
from fashion.device import choose_device, choose_precision, environment, keep_memory
from fashion.files import write_json
from fashion.options import DEVICES, Parser, add_folders, number
from fashion.report import print_dataset
from fashion.script import make_folder


def start(parser: Parser, folder: str) -> tuple[argparse.Namespace, Dataset]:
    """Parse the command line and return it with the dataset; results go to a subfolder of --out."""
    add_folders(parser, f"the results, which go to its subfolder {folder}")
    text = "trainings of each kind, with the seeds 0 to N - 1 (3)"
    parser.add_argument("--seeds", type=number(int, 1), default=3, metavar="N", help=text)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: a GPU if any")
    args = parser.parse_args()
    args.out /= f"{folder}/quick" if getattr(args, "quick", False) else folder
    keep_memory()
    device = choose_device(args.device)
    make_folder(args.out / "runs")
    dataset = load(args.data_dir).to(device)
    print_dataset(dataset)
    return args, dataset


def record(path: Path, dataset: Dataset, seeds: int, result: dict[str, Any]) -> Path:
    """Write a result as JSON, with all that it depends on, and return the path."""
    device = dataset.images.device
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    origin = environment(device) | {"precision": precision}
    about = {"dataset": dataset.title, "seeds": list(range(seeds)), "environment": origin}
    write_json(path, about | result)
    return path


def percent(summary: dict[str, Any], sign: str = "") -> str:
    """Return mean and standard deviation in percent, see comparison.summarize_values."""
    spread = f" ± {100 * summary['std']:.2f}" if summary["std"] is not None else ""
    return f"{100 * summary['mean']:{sign}.2f}{spread}"
