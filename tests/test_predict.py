import io
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import predict
from data import CLASS_NAMES, load_dataset
from photo import prepare
from training import (
    RECIPES,
    Trainer,
    checkpoint_content,
    evaluate,
    load_checkpoint,
    predict_logits,
    write_tensors,
)


@pytest.fixture
def run(trained_folder, tmp_path):
    """Run the script with the trained models, writing to the folder out."""

    def start(*arguments):
        options = ["--checkpoints", trained_folder, "--out", tmp_path / "out", *arguments]
        return predict.main([str(option) for option in options])

    return start


@pytest.fixture
def pictures(tmp_path, tiny_dataset):
    """A folder with three test images made large, framed and negated."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        enlarge(tiny_dataset.test_images[index].numpy()).save(folder / f"garment{index}.png")
    return folder


def enlarge(image, factor=10, frame=40):
    """What a shop's photo of a dataset's image may have looked like: large, on white."""
    large = Image.fromarray(image).resize((28 * factor, 28 * factor), Image.Resampling.BICUBIC)
    return ImageOps.invert(ImageOps.expand(large, frame, 0)).convert("RGB")


def read_json(capsys):
    return json.loads(capsys.readouterr().out)


# Answers


def test_answers_of_both_models_are_printed_and_drawn(run, pictures, tmp_path, capsys):
    assert run(pictures / "garment0.png") == 0
    printed = capsys.readouterr().out
    assert "garment0.png" in printed and "FFN: " in printed and "CNN: " in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prediction.png"]
    assert min(Image.open(tmp_path / "out" / "prediction.png").size) > 400


def test_json_says_what_the_models_say_of_the_prepared_picture(
    run, pictures, trained_folder, capsys
):
    assert run(pictures, "--json") == 0
    answers = read_json(capsys)
    assert [answer["file"] for answer in answers] == [
        str(pictures / f"garment{n}.png") for n in range(3)
    ]
    seen = np.stack([prepare(Image.open(answer["file"]), "x") for answer in answers])
    for name in ("ffn", "cnn"):
        model = load_checkpoint(trained_folder / f"{name}.pt", name)
        arguments = torch.from_numpy(seen), model.mean, model.std, torch.float32
        probabilities = predict_logits(model.model, *arguments).softmax(1)
        for answer, row in zip(answers, probabilities, strict=True):
            top, labels = row.topk(3)
            assert answer[name]["label"] == CLASS_NAMES[labels[0]]
            assert answer[name]["probability"] == pytest.approx(top[0].item(), abs=1e-5)
            assert [each["label"] for each in answer[name]["top3"]] == [
                CLASS_NAMES[label] for label in labels
            ]
            assert [each["probability"] for each in answer[name]["top3"]] == pytest.approx(
                top.tolist(), abs=1e-5
            )


def test_picture_from_standard_input_is_answered_like_the_file(run, pictures, monkeypatch, capsys):
    path = pictures / "garment1.png"
    run(path, "--json")
    (from_file,) = read_json(capsys)
    stream = SimpleNamespace(buffer=io.BytesIO(path.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert run("-", "--json") == 0
    (from_stream,) = read_json(capsys)
    assert from_stream == {**from_file, "file": "standard input"}


@pytest.mark.parametrize(
    ("ffn", "cnn", "says"),
    [
        ([0.9, 0.1], [0.8, 0.2], []),
        ([0.9, 0.1], [0.2, 0.8], ["disagree"]),
        ([0.5, 0.3], [0.5, 0.3], ["Neither model is sure"]),
        ([0.5, 0.3], [0.3, 0.5], ["disagree", "Neither model is sure"]),
        ([0.5, 0.3], [0.9, 0.1], []),
    ],
)
def test_disagreement_and_doubt_are_said(ffn, cnn, says):
    probabilities = {
        name: np.array([*values, *[0.0] * 8]) for name, values in (("ffn", ffn), ("cnn", cnn))
    }
    text = predict.describe(predict.PictureReport("a.png", None, None, probabilities, {}))
    for word in ("disagree", "Neither model is sure"):
        assert (word in text) == (word in says)


def test_of_many_pictures_the_first_are_drawn_and_all_answered(run, pictures, capsys, monkeypatch):
    monkeypatch.setattr(predict, "MAX_ROWS", 2)
    titles = []
    monkeypatch.setattr(
        predict.plots, "save_figure", lambda figure, path: titles.append(figure.get_suptitle())
    )
    assert run(pictures) == 0
    assert capsys.readouterr().out.count("CNN: ") == 3
    assert "the first 2 of 3 pictures" in titles[0]
    assert "drawn stand-in, not Fashion-MNIST" in titles[0]


def test_one_model_answers_alone_when_the_other_is_missing(
    trained_folder, pictures, tmp_path, capsys
):
    (tmp_path / "models").mkdir()
    shutil.copy(trained_folder / "cnn.pt", tmp_path / "models")
    arguments = ["--checkpoints", tmp_path / "models", "--out", tmp_path / "out", pictures]
    assert predict.main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr()
    assert "ffn.pt" in output.err and "CNN: " in output.out and "FFN: " not in output.out


# There and back


def test_enlarged_framed_and_negated_images_are_recognised_as_before(
    real_archives, no_network, tmp_path
):
    """At least 90 % of the CNN's own accuracy survives."""
    dataset = load_dataset("fashion-mnist", real_archives, None, 5, 5_000, print)
    recipe = replace(RECIPES["cnn"], epochs=2, batch_size=64, shifted=0.0, flip=False)
    trainer = Trainer("cnn", dataset, recipe, 0, torch.float32)
    while not trainer.finished:
        trainer.train_epoch()
    write_tensors(tmp_path / "cnn.pt", checkpoint_content(trainer))
    cnn = load_checkpoint(tmp_path / "cnn.pt", "cnn")
    images, labels = dataset.test_images[:300], dataset.test_labels[:300]

    def accuracy(pictures):
        logits = predict_logits(cnn.model, pictures, cnn.mean, cnn.std, torch.float32)
        return evaluate(logits, labels).accuracy

    own = accuracy(images)
    assert own > 0.8
    for factor, frame in ((10, 40), (7, 3), (17, 100)):
        back = [prepare(enlarge(image, factor, frame), "image") for image in images.numpy()]
        after = accuracy(torch.from_numpy(np.stack(back)))
        print(f"{factor} times as large, in a frame of {frame}: {after:.1%} of {own:.1%}")
        assert after > 0.9 * own


# Mistakes


def test_picture_that_cannot_be_used_is_named_and_the_others_are_answered(
    run, pictures, tmp_path, capsys
):
    (pictures / "a_broken.png").write_bytes(b"no picture")
    Image.new("RGB", (50, 50), "red").save(pictures / "plain.png")
    assert run(pictures, "--json") == 2
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 3
    assert "a_broken.png" in output.err and "plain.png" in output.err
    assert "2 of 5 pictures could not be used" in output.err
    assert (tmp_path / "out" / "prediction.png").exists()


@pytest.mark.parametrize("arguments", [(), ("absent.png",), ("--nonsense", "a.png")])
def test_wrong_argument_is_refused_in_words(run, tmp_path, capsys, arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 2
    assert (arguments[0] if arguments else "PICTURE") in error
    assert not list(tmp_path.glob("out/*"))


def test_folder_without_pictures_is_refused(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 2
    assert "holds no picture" in capsys.readouterr().err


def test_endless_standard_input_is_refused(run, monkeypatch, capsys):
    monkeypatch.setattr(predict, "MAX_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(2000))))
    assert run("-") == 2
    assert "standard input: more than 1,000 bytes" in capsys.readouterr().err


def test_without_models_the_command_that_makes_them_is_named(pictures, tmp_path, capsys):
    arguments = ["--checkpoints", tmp_path / "none", "--out", tmp_path / "out", pictures]
    assert predict.main([str(argument) for argument in arguments]) == 2
    assert "python fashionmnist.py" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
