import json
import sys

from fashion import script

import pytest
import torch

from experiments import baselines


def test_table_has_the_classifiers_and_the_networks(tiny, tmp_path, monkeypatch, call):
    pytest.importorskip("sklearn")
    classifiers, version = baselines.make_classifiers()
    chosen = {key: classifiers[key] for key in ("nearest mean", "5 nearest neighbours")}
    entry = {"dataset": tiny.title, "test_accuracy": 0.9, "seed": 0}
    results = {"cnn": entry, "ffn": entry | {"dataset": "another"}}
    monkeypatch.setattr(baselines, "make_classifiers", lambda: (chosen, version))
    monkeypatch.setattr(baselines, "read_results", lambda _: results)
    monkeypatch.setattr(baselines, "load", lambda *_: tiny)
    status, output, _ = call(baselines, "--out", tmp_path)
    assert status == 0
    written = json.loads((tmp_path / "baselines" / "baselines.json").read_text())
    assert written["environment"]["scikit-learn"] == version
    rows = {name: row["test_accuracy"] for name, row in written["classifiers"].items()}
    assert list(rows) == [*chosen, "cnn"] and rows["cnn"] == 0.9

    images, labels = tiny.images[tiny.train].flatten(1).double(), tiny.labels[tiny.train]
    means = torch.stack([images[labels == kind].mean(0) for kind in range(10)])
    distances = torch.cdist(tiny.test_images.flatten(1).double(), means)
    correct = (distances.argmin(1) == tiny.test_labels).sum().item()
    assert rows["nearest mean"] == correct / len(tiny.test_labels)
    assert rows["5 nearest neighbours"] > 0.7
    assert f"{correct / len(tiny.test_labels):.2%}" in output and "CNN" in output
    assert "FFN" not in output


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(script.UserError, match="pip install scikit-learn"):
        baselines.make_classifiers()
