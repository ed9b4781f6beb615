import io
import json
import sys
from functools import partial
from types import SimpleNamespace

from fashion import prediction, saliency
from fashion.data import CLASSES
from fashion.photo import prepare, read_photo
from fashion.prediction import Report

import numpy as np
import pytest
import torch
from PIL import Image

import predict


@pytest.fixture
def run(trained, tmp_path, call, monkeypatch):
    """Run the script with the trained networks, without computing maps."""
    monkeypatch.setattr(saliency, "occlusion", lambda _, image, label: image.numpy() / 255 - label)
    return partial(call, predict, "--checkpoints", trained, "--out", tmp_path / "out")


@pytest.fixture
def pictures(tmp_path, tiny):
    """A folder with three enlarged test images."""
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(tiny.test_images[:3].numpy()):
        large = Image.fromarray(image).resize((140, 140), Image.Resampling.BICUBIC)
        large.save(tmp_path / "pictures" / f"garment{index}.png")
    return tmp_path / "pictures"


# Predictions


def test_predictions_are_printed_and_drawn(run, pictures, networks, tiny, tmp_path):
    status, out, err = run(pictures / "garment0.png")
    assert (status, err) == (0, "")
    for name, network in networks.items():
        best = network.probabilities(tiny.test_images[:1])[0].argmax()
        assert f"  {name.upper()}: {CLASSES[best]} " in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prediction.png", "report.html"}


def test_json_holds_the_probabilities(run, pictures, networks):
    path = pictures / "garment0.png"
    status, out, err = run(path, "--json")
    (entry,) = json.loads(out)
    assert (status, err, entry["file"], entry["doubt"]) == (0, "", str(path), None)
    image = torch.from_numpy(prepare(read_photo(path, "picture"), "picture")[0])[None]
    for name, network in networks.items():
        values, labels = network.probabilities(image)[0].topk(3)
        top = entry[name]["top3"]
        assert [each["label"] for each in top] == [CLASSES[label] for label in labels]
        assert [each["probability"] for each in top] == pytest.approx(values.tolist(), abs=1e-5)
        assert {"label": entry[name]["label"]}.items() <= top[0].items()
        excess = network.excess_energy(image).item()
        assert entry[name]["energy_above_limit"] == pytest.approx(excess, abs=1e-4)
        assert entry[name]["familiar"] == (excess <= 0)


def make_report(name="a.png", ffn=(0.9, 0.1), cnn=(0.8, 0.2), excess=(-1.0, -1.0), doubt=None):
    values = {"ffn": torch.tensor([*ffn, *[0.0] * 8]), "cnn": torch.tensor([*cnn, *[0.0] * 8])}
    image = torch.arange(784).view(28, 28).byte()
    limits = dict(zip(values, excess, strict=True))
    return Report(name, Image.new("RGB", (9, 9)), image, doubt, values, limits)


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({}, []),
        ({"cnn": (0.2, 0.8)}, ["disagree"]),
        ({"ffn": (0.5, 0.3), "cnn": (0.3, 0.5)}, ["disagree", "no probability reaches 60%"]),
        ({"ffn": (0.5, 0.3)}, []),
        ({"excess": (0.5, -1.0)}, ["Unlike the training images of FFN:"]),
        ({"excess": (0.5, 2.0)}, ["Unlike the training images of FFN and CNN:"]),
        ({"doubt": "two objects"}, ["may not have been found: two objects"]),
    ],
)
def test_doubts_are_printed(settings, notes):
    lines = predict.to_text(make_report(**settings)).splitlines()[3:]
    assert len(lines) == len(notes)
    assert all(note in line for note, line in zip(notes, lines, strict=True))


def test_figure_shows_inputs_top_classes_and_maps(networks):
    reports = [make_report(), make_report("b.png", cnn=(0.3, 0.7), excess=(0.5, -1), doubt="small")]
    figure = prediction.draw(reports, networks, "title")
    panels = np.array(figure.axes[:10]).reshape(2, 5)
    assert [axes.get_title() for axes in panels[:, 0]] == ["a.png", "b.png"]
    for row, report in zip(panels, reports, strict=True):
        assert (row[1].images[0].get_array() == report.image.numpy()).all()
        widths = [[bar.get_width() for bar in bars] for bars in row[2].containers]
        assert widths == [[p for _, p in report.top(name)] for name in ("ffn", "cnn")]
        texts = [text.get_text() for text in row[2].texts]
        for name in ("ffn", "cnn"):
            assert {f"{t} {p:.1%}" for t, p in report.top(name)} < set(texts)
        guess = networks["cnn"].probabilities(report.image[None]).argmax()
        expected = saliency.occlusion(networks["cnn"], report.image, guess)
        root = np.asarray(row[4].images[0].get_array())
        assert np.sign(root) * root**2 == pytest.approx(expected, abs=1e-3)
    assert panels[1, 0].get_xlabel() == "small" and "FFN" in panels[1, 1].get_xlabel()


def test_first_of_many_pictures_are_drawn(run, pictures, monkeypatch):
    monkeypatch.setattr(predict, "MAX_ROWS", 1)
    figures = []
    monkeypatch.setattr(predict, "save_figure", lambda figure, path: figures.append(figure) or path)
    assert run(pictures)[1].count("CNN: ") == 3
    assert "The first 1 of 3 pictures" in figures[0].get_suptitle()


def test_standard_input_is_classified_like_a_file(run, pictures, monkeypatch):
    content = (pictures / "garment1.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    from_file, from_stream = json.loads(run(pictures / "garment1.png", "-", "--json")[1])
    assert from_stream == {**from_file, "file": "standard input"}


# Names and errors


def test_pictures_are_found(pictures, capsys):
    for name in ("._garment0.png", "IMG_1.HEIC", "notes.txt"):
        (pictures / name).write_bytes(b"")
    (pictures / "garment2.png").rename(pictures / "photo.JFIF")
    names = ["garment0.png", "garment1.png", "photo.JFIF"]
    assert predict.find_pictures(str(pictures)) == [str(pictures / name) for name in names]
    found = predict.find_pictures(str(pictures / "garment*"))
    assert found == [str(pictures / name) for name in names[:2]]
    left_out = f"{pictures / 'IMG_1.HEIC'} is skipped; export it as JPEG"
    assert capsys.readouterr().err.splitlines() == [left_out]


def test_one_bad_argument_does_not_discard_the_others(run, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"not an image")
    Image.new("RGB", (50, 50), "red").save(pictures / "plain.png")
    (pictures / "a.heic").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    bad = {
        tmp_path / "empty": "the folder holds no pictures",
        tmp_path / "*.png": "No such file",
        "x" * 300: "File name too long",
        "https://example.org/a.png": "is a URL; download the picture",
        "absent\x1b[31m\n.png": r"absent\x1b[31m\n.png: No such file",
    }
    status, out, err = run(*bad, pictures, "--json")
    assert status == 2 and len(json.loads(out)) == 3
    for message in (
        *bad.values(),
        "broken.png: not a picture",
        "plain.png: no garment",
        "a.heic is skipped",
    ):
        assert message in err
    assert "7 of 10 pictures could not be used" in err and "\x1b" not in err


def test_any_file_name_can_be_printed_and_drawn(run, pictures):
    names = ["a$^$.png", "衣服 سترة 옷.png", "\x1b[2J\n.png"]
    for index, name in enumerate(names):
        Image.open(pictures / f"garment{index % 3}.png").save(pictures / name)
    status, out, err = run(*(pictures / name for name in names))
    assert (status, err) == (0, "")
    assert names[1] in out and r"\x1b[2J\n.png" in out and "\x1b" not in out
    text, (first, *_) = prediction.find_fonts("Größe \ue000.png")  # no character
    assert (text, first) == ("Größe ?.png", "DejaVu Sans")
