"""Compare the networks with classifiers from scikit-learn, on the same training images.

    pip install scikit-learn
    python -m experiments.baselines

Pixels go from 0 to 1. The test images are scored once. Prints a table, which includes the networks
in outputs/metrics.json, and writes baselines.json to the folder outputs/baselines. Takes about 15
minutes on two CPU cores, mostly for boosting and the support vector machine.
"""

import sys
import time
import warnings
from typing import Any

from fashion.data import Dataset, load
from fashion.device import environment
from fashion.files import write_json
from fashion.options import Parser, add_folders, number
from fashion.page import read_results
from fashion.script import OUTPUTS, UserError, duration, list_files, make_folder, run
from fashion.style import label

import numpy as np


def main() -> None:
    """Train and score all classifiers, print the table and write the file."""
    parser = Parser("Compare with classifiers from scikit-learn.", prog="-m experiments.baselines")
    add_folders(parser, "the results, which go to its subfolder baselines")
    limit = number(int, 100)
    parser.add_argument("--limit", type=limit, metavar="N", help="train on N images only")
    args = parser.parse_args()
    classifiers, version = make_classifiers()
    make_folder(args.out / "baselines")
    dataset = load(args.data_dir, args.limit)
    print("classifier                     test accuracy  CPU time of the training")
    rows = {}
    for name, classifier in classifiers.items():
        print(f"{name:<31}", end="", flush=True)
        rows[name] = measure(classifier, dataset)
        rows[name]["seed"] = 0
        print(f"{rows[name]['test_accuracy']:>13.2%}  {duration(rows[name]['train_cpu_seconds'])}")
    for name, entry in read_results(OUTPUTS).items():
        if entry["dataset"] == dataset.title:
            print(f"{label(name):<31}{entry['test_accuracy']:>13.2%}")
            rows[name] = {key: entry[key] for key in ("test_accuracy", "seed")}
    origin = environment(dataset.images.device) | {"scikit-learn": version, "precision": "float32"}
    result = {"dataset": dataset.title, "environment": origin, "classifiers": rows}
    write_json(args.out / "baselines" / "baselines.json", result)
    list_files([args.out / "baselines" / "baselines.json"])


def make_classifiers() -> tuple[dict[str, Any], str]:
    """Return the classifiers and the version of scikit-learn; UserError if that is missing."""
    try:
        import sklearn  # optional
        from sklearn.decomposition import PCA
        from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC
    except ImportError as error:
        raise UserError("this needs scikit-learn: pip install scikit-learn") from error
    # Settings from the grid of the dataset's own benchmark (benchmark/baselines.json in its
    # repository), which standardizes pixels and uses no PCA; boosting is not in it.
    forest = {"criterion": "entropy", "max_depth": 100, "n_jobs": -1, "random_state": 0}
    boosting = {"early_stopping": False, "random_state": 0}  # the default, 100 iterations
    return {
        "nearest mean": NearestCentroid(),
        "logistic regression": LogisticRegression(C=1, max_iter=1000, tol=1e-3),
        "5 nearest neighbours": KNeighborsClassifier(5, weights="distance", n_jobs=-1),
        "random forest, 100 trees": RandomForestClassifier(100, **forest),
        "histogram gradient boosting": HistGradientBoostingClassifier(**boosting),
        # On 784 pixels in place of 100 principal components, it would take several times as long.
        "SVM with RBF kernel, after PCA": make_pipeline(
            PCA(100, random_state=0), SVC(C=10, cache_size=1000)
        ),
    }, sklearn.__version__


def measure(classifier: Any, dataset: Dataset) -> dict[str, Any]:
    """Return the test accuracy of a classifier and the CPU time of its training, of all cores."""
    images = dataset.images[dataset.train], dataset.test_images
    training, test = (part.flatten(1).numpy() / np.float32(255) for part in images)
    start = time.process_time()
    with warnings.catch_warnings(action="ignore"):  # in some classes, a pixel is black throughout
        classifier.fit(training, dataset.labels[dataset.train].numpy())
    seconds = time.process_time() - start
    correct = classifier.predict(test) == dataset.test_labels.numpy()
    return {"test_accuracy": int(correct.sum()) / len(correct), "train_cpu_seconds": seconds}


if __name__ == "__main__":
    sys.exit(run(main))
