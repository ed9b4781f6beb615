import io
import json
from contextlib import redirect_stdout
from dataclasses import asdict, replace

from fashion import comparison, report

import pytest
import torch.nn.functional as F
from PIL import Image

FIRST = ("loss.png", "confusion.png", "correct.png", "incorrect.png")
SUSPECT = comparison.Suspect("test", 3, "Shirt", 0.01, "T-shirt/top", 0.97)
SERIES = ("comparison.png", "learning_curves.png", "calibration.png", "suspect_labels.png")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_bytes())["models"]


@pytest.fixture(scope="module")
def several(finished, tiny, tmp_path_factory):
    """The folder of the results of two runs of each network, with what was printed."""
    folder, printed = tmp_path_factory.mktemp("several"), io.StringIO()
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "find_suspects", lambda *_: [SUSPECT])
        report.write_results(folder, finished, tiny)
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def test_progress_is_a_row_for_each_epoch_below_the_header(finished, tiny, capsys):
    run = finished["cnn"][0]
    row = {"epoch": 3, "train_loss": 0.5, "validation_loss": 0.25, "train_accuracy": 0.8125}
    row |= {"validation_accuracy": 0.90625, "seconds": 10.0}
    report.print_start(run, 20, 50)
    report.print_epoch(replace(run, history=[row] * 3, recipe=replace(run.recipe, epochs=10)))
    report.print_dataset(tiny)
    _, start, header, line, dataset = capsys.readouterr().out.splitlines()
    assert ": 1,000 training, 200 validation and 300 test images; pixel mean 0." in dataset
    assert start.startswith("CNN, seed 0: 422,250 parameters, 20 steps per epoch with 50 images")
    assert " ".join(line.split()) == "3/10 0.5000 0.2500 81.25% 90.62% 10.0 1 min 10 s"
    assert header.index("val acc") + 7 == line.index("90.62%") + 6  # they end below each other


def test_first_network_can_be_looked_at_while_others_train(tmp_path, finished, tiny):
    perfect = finished["cnn"][0].logits | {"test": 20 * F.one_hot(tiny.test_labels, 10).float()}
    report.write_network(tmp_path, replace(finished["cnn"][0], logits=perfect), tiny)
    files = {f"cnn_{kind}" for kind in FIRST} | {"cnn.safetensors", "metrics.json", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == files
    images = [Image.open(tmp_path / f"cnn_{kind}") for kind in FIRST]
    assert images[2].height > 230 > 46 > images[3].height  # no errors are shown
    source = f"CNN on {tiny.title}, seed 0: 100.00% test accuracy"
    assert [image.info["Source"] for image in images] == [source] * 4
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 4 and "Pictures of networks" not in page


def test_metrics_are_those_of_the_predictions(several, finished, tiny):
    truth = tiny.test_labels
    for name, runs in finished.items():
        entry, run = metrics(several)[name], runs[0]
        right = [int((each.logits["test"].argmax(1) == truth).sum()) for each in runs]
        assert [each["test_accuracy"] for each in entry["runs"]] == [n / 300 for n in right]
        assert entry["seed"] == 0 and entry["test_accuracy"] == right[0] / 300
        assert entry["dataset"] == tiny.title and entry["recipe"] == asdict(run.recipe)
        assert entry["history"] == run.history and entry["environment"] == run.environment
        matrix, predicted = entry["confusion_matrix"], run.probabilities.argmax(1)
        assert matrix[6][0] == int(((truth == 6) & (predicted == 0)).sum())
        assert entry["test_accuracy_by_class"][6] == pytest.approx(matrix[6][6] / sum(matrix[6]))
        chosen = run.probabilities[range(300), truth]
        assert entry["test_loss"] == pytest.approx(-chosen.log().mean().item(), rel=1e-4)
    assert metrics(several)["cnn"]["parameters"] == 422_250


def test_several_seeds_are_compared_in_files_and_sentences(several, tiny):
    out = (several / "printed.txt").read_text()
    title, head, *table = out[out.index("Results on") :].split("\n\n")[0].splitlines()
    assert title == f"Results on {tiny.title}, seeds 0, 1: mean ± standard deviation"
    assert head.split() == ["FFN", "CNN"] and len({len(line) for line in table[:-1]}) == 1
    errors = (entry["test_sampling_error"] for entry in metrics(several).values())
    assert table[-1].endswith(
        "in points: FFN {:.2f}, CNN {:.2f}".format(*(100 * e for e in errors))
    )
    compared = json.loads((several / "comparison.json").read_bytes())
    cnn = compared["models"]["cnn"]["test_accuracy"]
    assert f"{cnn['mean']:.2%} ± {cnn['std']:.2%}" in table[3]
    (difference,) = compared["differences"]
    test, mcnemar = difference["test_accuracy"], difference["mcnemar_of_first_seed"]
    ends = " to ".join(f"{100 * end:+.2f}" for end in test["ci95"])
    error = f"sampling error of the test images: {100 * difference['test_sampling_error']:.2f}"
    points = f"{100 * test['mean']:+.2f} points (95% interval over seeds: {ends}; {error})"
    assert f"Test accuracy of CNN minus that of FFN: {points}." in out
    counts = [mcnemar[f"only_{each}_correct"] for each in ("second", "first")]
    assert "only CNN classifies {} images correctly, and only FFN {} (".format(*counts) in out
    (origin,) = {Image.open(several / name).info["Source"] for name in SERIES}
    assert origin.count("seeds 0, 1") == 2
    assert Image.open(several / "disagreements.png").info["Source"].count("seed 0:") == 2
    rows = (several / "suspect_labels.csv").read_text().splitlines()
    assert rows[0].startswith("part,image,label,")
    assert rows[1:] == ["test,3,Shirt,0.01,T-shirt/top,0.97"]


def test_one_network_keeps_the_others_and_replaces_only_its_own(
    tmp_path, finished, tiny, capsys, monkeypatch
):
    monkeypatch.setattr(report, "save_figure", lambda _, path, *__: path)
    for name, (run, _) in finished.items():
        report.write_results(tmp_path, {name: [run]}, tiny, tmp_path / "my data")
    report.write_results(tmp_path, {"ffn": finished["ffn"][1:]}, tiny)
    seeds = {name: entry["seed"] for name, entry in metrics(tmp_path).items()}
    assert seeds == {"ffn": 1, "cnn": 0}
    out = capsys.readouterr().out
    assert f"Results on {tiny.title}, seed 1\n" in out and "±" not in out and "minus" not in out
    assert f"kernel_vis.py --sample --checkpoint {tmp_path} --out {tmp_path} --data-dir '" in out
