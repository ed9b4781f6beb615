import io
import json
import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import predict
from fashion import cli
from fashion.checkpoint import load_weights
from fashion.data import CLASS_NAMES, FASHION_MNIST, load_dataset
from fashion.evaluation import energy, evaluate, predict_logits
from fashion.explain_plots import PictureReport
from fashion.photo import prepare
from fashion.plots import Style
from fashion.training import Trainer
from ffn import FFN
from models import MODELS, STYLES


@pytest.fixture
def run(trained_folder, tmp_path):
    """Run the script with models of a folder, writing to the folder out."""

    def start(*arguments, models=trained_folder):
        options = ["--checkpoints", models, "--out", tmp_path / "out", *arguments]
        return cli.run(predict.parse_arguments, predict.main, [str(each) for each in options])

    return start


@pytest.fixture
def figures(monkeypatch):
    """The figures that a run draws, with empty saliency maps; they are not written."""
    drawn = []
    monkeypatch.setattr(predict, "occlusion", lambda *_: np.zeros((28, 28)))
    monkeypatch.setattr(predict, "save_figure", lambda figure, _: drawn.append(figure))
    return drawn


@pytest.fixture
def pictures(tmp_path, tiny_dataset):
    """A folder with three enlarged test images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        enlarge(tiny_dataset.test_images[index].numpy()).save(folder / f"garment{index}.png")
    return folder


def enlarge(image, factor=10, frame=40):
    """Turn an image of the dataset into a shop photo: large, on white."""
    large = Image.fromarray(image).resize((28 * factor, 28 * factor), Image.Resampling.BICUBIC)
    return ImageOps.invert(ImageOps.expand(large, frame, 0)).convert("RGB")


# Predictions


def test_predictions_of_three_models_are_printed_and_drawn(
    run, pictures, trained_folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained_folder, tmp_path / "models")
    shutil.copy(trained_folder / "ffn.safetensors", tmp_path / "models" / "third.safetensors")
    monkeypatch.setitem(MODELS, "third", FFN)
    monkeypatch.setitem(STYLES, "third", Style("THIRD", "#009E73", "^"))
    titles = []
    save_figure = predict.save_figure

    def note_titles(figure, path):
        titles.extend(axes.get_title() for axes in figure.axes)
        save_figure(figure, path)

    monkeypatch.setattr(predict, "save_figure", note_titles)
    assert run(pictures / "garment0.png", models=tmp_path / "models") == 0
    place, *lines = capsys.readouterr().out.splitlines()
    assert place == f"Models: {tmp_path / 'models'}"
    assert lines[0].endswith("garment0.png")
    assert [line.split(":")[0] for line in lines[1:4]] == ["  FFN", "  CNN", "  THIRD"]
    assert lines[1].split(": ")[1] == lines[3].split(": ")[1]
    for label in ("FFN", "CNN", "THIRD"):
        assert any(title.startswith(label) for title in titles)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prediction.png", "report.html"}
    with Image.open(tmp_path / "out" / "prediction.png") as image:
        assert min(image.size) > 400


def test_json_holds_the_probabilities_of_the_prepared_pictures(
    run, figures, pictures, trained_folder, capsys
):
    assert run(pictures, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in entries] == [
        str(pictures / f"garment{number}.png") for number in range(3)
    ]
    images = np.stack([prepare(Image.open(entry["file"]), "picture") for entry in entries])
    for name, network in MODELS.items():
        model = load_weights(trained_folder / f"{name}.safetensors", network)
        logits = predict_logits(model.model, torch.from_numpy(images), model.mean, model.std)
        excess = energy(logits) - model.energy_limit
        for entry, value in zip(entries, excess.tolist(), strict=True):
            assert entry[name]["energy_above_limit"] == pytest.approx(value, abs=1e-4)
            assert entry[name]["familiar"] == (value <= 0)
        for entry, row in zip(entries, (logits / model.temperature).softmax(1), strict=True):
            top, labels = row.topk(3)
            names = [CLASS_NAMES[label] for label in labels]
            assert [each["label"] for each in entry[name]["top3"]] == names
            probabilities = [each["probability"] for each in entry[name]["top3"]]
            assert probabilities == pytest.approx(top.tolist(), abs=1e-5)
            assert (entry[name]["label"], entry[name]["probability"]) == (
                names[0],
                probabilities[0],
            )


def test_standard_input_is_classified_like_a_file(run, figures, pictures, monkeypatch, capsys):
    content = (pictures / "garment1.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert run(pictures / "garment1.png", "-", "--json") == 0
    from_file, from_stream = json.loads(capsys.readouterr().out)
    assert from_stream == {**from_file, "file": "standard input"}


@pytest.mark.parametrize(
    ("ffn", "cnn", "disagree", "uncertain"),
    [
        ([0.9, 0.1], [0.8, 0.2], False, False),
        ([0.9, 0.1], [0.2, 0.8], True, False),
        ([0.5, 0.3], [0.5, 0.3], False, True),
        ([0.5, 0.3], [0.3, 0.5], True, True),
        ([0.5, 0.3], [0.9, 0.1], False, False),
    ],
)
def test_disagreement_and_uncertainty_are_printed(ffn, cnn, disagree, uncertain):
    probabilities = {
        name: np.array([*values, *[0.0] * 8]) for name, values in (("ffn", ffn), ("cnn", cnn))
    }
    report = PictureReport("a.png", None, None, probabilities, {"ffn": -1.0, "cnn": -2.0}, {})
    text = predict.to_text(report)
    assert ("The models disagree." in text) == disagree
    assert ("Uncertain" in text) == uncertain
    assert "Unlike" not in text


@pytest.mark.parametrize(
    ("ffn", "cnn", "names"), [(0.5, -1.0, "FFN"), (0.5, 2.0, "FFN and CNN"), (-1.0, 0.1, "CNN")]
)
def test_picture_unlike_the_training_images_is_pointed_out(ffn, cnn, names):
    probabilities = dict.fromkeys(("ffn", "cnn"), np.eye(10)[3])
    report = PictureReport("a.png", None, None, probabilities, {"ffn": ffn, "cnn": cnn}, {})
    assert f"Unlike the training images, according to {names}:" in predict.to_text(report)


def test_first_of_many_pictures_are_drawn_and_all_are_classified(
    run, figures, pictures, monkeypatch, capsys
):
    monkeypatch.setattr(predict, "MAX_ROWS", 2)
    assert run(pictures) == 0
    assert capsys.readouterr().out.count("CNN: ") == 3
    (figure,) = figures
    assert "the first 2 of 3 pictures" in figure.get_suptitle()
    assert "synthetic images, not Fashion-MNIST" in figure.get_suptitle()
    assert sum(bool(axes.images) for axes in figure.axes) >= 2 * 4


def test_model_alone_is_used_without_the_others(
    run, figures, trained_folder, pictures, tmp_path, capsys
):
    (tmp_path / "models").mkdir()
    shutil.copy(trained_folder / "cnn.safetensors", tmp_path / "models")
    assert run(pictures / "garment0.png", models=tmp_path / "models") == 0
    output = capsys.readouterr()
    assert "ffn.safetensors does not exist" in output.err
    assert "CNN: " in output.out and "FFN: " not in output.out


def test_enlarged_images_are_classified_as_well_as_the_originals(real_archives):
    """At least 90 % of the model's accuracy on the originals remains."""
    dataset = load_dataset(FASHION_MNIST, real_archives, limit=5_000)
    recipe = replace(FFN.recipe, epochs=3, batch_size=64, shifted=0.0, flip=False)
    trainer = Trainer(FFN, dataset, recipe, 0, torch.float32)
    while not trainer.finished:
        trainer.train_epoch()
    images, labels = dataset.test_images[:200], dataset.test_labels[:200]

    def accuracy(pictures):
        logits = predict_logits(trainer.averaged, pictures, dataset.mean, dataset.std)
        return evaluate(logits, labels).accuracy

    original = accuracy(images)
    assert original > 0.8
    for factor, frame in ((7, 3), (9, 30)):
        photos = [prepare(enlarge(image, factor, frame), "image") for image in images.numpy()]
        assert accuracy(torch.from_numpy(np.stack(photos))) > 0.9 * original


# Errors


def test_unusable_pictures_are_skipped_with_a_warning(run, figures, pictures, tmp_path, capsys):
    (pictures / "a_broken.png").write_bytes(b"not an image")
    Image.new("RGB", (50, 50), "red").save(pictures / "plain.png")
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "absent.png", pictures, "--json") == 2
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 3 and len(figures) == 1
    for reason in (
        "empty: no pictures in this folder",
        "absent.png: ",
        "a_broken.png",
        "plain.png",
    ):
        assert reason in output.err
    assert "4 of 7 pictures could not be used" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"), [((), "PICTURE"), (("absent.png",), "absent.png: no such file")]
)
def test_missing_picture_is_rejected(run, tmp_path, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_endless_standard_input_is_rejected(run, monkeypatch, capsys):
    monkeypatch.setattr(predict, "MAX_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(2000))))
    assert run("-") == 2
    assert "standard input: longer than 1,000 bytes" in capsys.readouterr().err


def test_missing_models_give_the_command_to_train_them(run, pictures, tmp_path, capsys):
    assert run(pictures, models=tmp_path / "none") == 2
    assert f"python fashionmnist.py --out {tmp_path / 'none'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_any_file_name_can_be_drawn(run, pictures, capsys):
    paths = [pictures / name for name in ("a$^$.png", os.fsdecode(b"caf\xe9.png"))]
    for path in paths:
        shutil.copy(pictures / "garment0.png", path)
    assert run(*paths) == 0
    assert capsys.readouterr().out.count("CNN: ") == 2


def test_only_drawn_pictures_keep_their_photo(pictures):
    for explain in (True, False):
        report = predict.classify("garment0.png", pictures / "garment0.png", {}, explain)
        assert (report.original is not None) == explain
