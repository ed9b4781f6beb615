import json
from pathlib import Path

import pytest
import torch

import predict
from experiments import pretrained
from fashion import cli
from fashion.checkpoint import SUFFIX, load_models, load_tensors
from fashion.data import FASHION_MNIST, load_dataset
from fashion.evaluation import energy, evaluate, predict_logits
from models import MODELS

SHIPPED = {name: cli.PRETRAINED_FOLDER / f"{name}{SUFFIX}" for name in MODELS}
DRAWINGS = Path(__file__).parents[1] / "docs" / "drawings"


def test_shipped_models_are_small_and_trained_with_the_recipes():
    assert sum(path.stat().st_size for path in SHIPPED.values()) < 4_000_000
    for name, checkpoint in load_models(SHIPPED, MODELS).items():
        assert checkpoint.dataset == FASHION_MNIST and checkpoint.seed == 0
        assert checkpoint.metadata["recipe"]["epochs"] == MODELS[name].recipe.epochs


def test_shipped_models_score_what_they_state(real_archives):
    dataset = load_dataset(FASHION_MNIST, real_archives)
    for checkpoint in load_models(SHIPPED, MODELS).values():
        settings = checkpoint.mean, checkpoint.std
        logits = predict_logits(checkpoint.model, dataset.test_images, *settings)
        accuracy = evaluate(logits, dataset.test_labels).accuracy
        # Processors differ in the last bits, which decide a few images at most.
        assert accuracy == pytest.approx(checkpoint.metadata["test_accuracy"], abs=5e-4)
        assert (energy(logits) <= checkpoint.energy_limit).double().mean() > 0.92


def test_drawings_are_classified_without_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there are no outputs
    assert cli.run(predict.parse_arguments, predict.main, ["--json", str(DRAWINGS)]) == 0
    labels = {
        Path(entry["file"]).stem: entry["cnn"]["label"]
        for entry in json.loads(capsys.readouterr().out)
    }
    assert labels == {
        "bag": "Bag",
        "boot": "Ankle boot",
        "trousers": "Trouser",
        "tshirt": "T-shirt/top",
    }


def test_models_are_rounded_and_scored_again(trained_folder, small_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "PRETRAINED_FOLDER", tmp_path)
    options = ["--checkpoints", str(trained_folder), "--data-dir", str(small_folder)]
    assert cli.run(pretrained.parse_arguments, pretrained.main, options) == 0
    dataset = load_dataset(FASHION_MNIST, small_folder)
    paths = {name: tmp_path / f"{name}{SUFFIX}" for name in MODELS}
    for name, checkpoint in load_models(paths, MODELS).items():
        weights, _ = load_tensors(paths[name])
        assert {each.dtype for each in weights.values()} == {torch.float16, torch.int64}
        settings = checkpoint.mean, checkpoint.std
        logits = predict_logits(checkpoint.model, dataset.test_images, *settings)
        stated = checkpoint.metadata["test_accuracy"]
        assert evaluate(logits, dataset.test_labels).accuracy == stated
