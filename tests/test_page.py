import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fashion import page
from fashion.comparison import summarize_values
from fashion.files import RunError, UsageError

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The title, texts, pictures and table rows of a page, and the tags in it."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.images, self.rows = set(), [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)
            if self.rows:
                self.rows[-1].append(data)


def make_metrics(names=("first", "second"), dataset="fashion-mnist"):
    """Return the content of metrics.json, as far as the page shows it."""
    run = {
        "parameters": 567_434,
        "train_seconds": 125.0,
        "history": [{"validation_accuracy": 0.5}, {"validation_accuracy": 0.90625}],
        "test_accuracy": 0.875,
        "flip_averaged_accuracy": 0.9375,
    }
    recipe = {"batch_size": 512, "learning_rate": 0.004, "model": {}}
    return {
        "dataset": {
            "name": dataset,
            "title": f"title of {dataset}",
            "train_images": 55_000,
            "test_images": 10_000,
            "mean": 0.28604,
        },
        "seed": 3,
        "settings": {
            "precision": "float32",
            "recipes": dict.fromkeys(names, recipe),
            "models": {name: {"widths": [8, 4]} for name in names},
        },
        "device": "a CPU",
        "versions": {"torch": "2.15.0"},
        "models": dict.fromkeys(names, run),
    }


def write(folder, metrics=None, comparison=None, pictures=()):
    """Write these files and the page, and return it."""
    for name, content in (("metrics.json", metrics), ("comparison.json", comparison)):
        if content:
            (folder / name).write_text(json.dumps(content))
    for name in pictures:
        Image.new("L", (30, 20)).save(folder / name)
    path = page.write_page(folder)
    assert path == folder / "report.html"
    return Page(path)


@pytest.mark.parametrize("name", page.CAPTIONS)
def test_readme_shows_the_caption_beside_the_picture(name):
    rows = [row for row in README.splitlines() if f" | {page.CAPTIONS[name]}" in row]
    assert len(rows) == 1 and f"{name}`" in rows[0]


def test_every_picture_has_a_caption_of_one_sentence():
    assert all(caption.find(".") == len(caption) - 1 for caption in page.CAPTIONS.values())


def test_page_shows_results_pictures_and_settings_of_one_run(tmp_path):
    single = [name for name in page.CAPTIONS if name[0] != "_"]
    of_models = [f"{model}{name}" for name in page.CAPTIONS if name[0] == "_" for model in "ba"]
    shown = write(tmp_path, make_metrics("ba"), pictures=[*single, *of_models])
    assert shown.rows[:5] == [
        ["B", "A"],
        ["Parameters", "567,434", "567,434"],
        ["Training time", "2 min 5 s", "2 min 5 s"],
        ["Validation accuracy", "90.62%", "90.62%"],
        ["Test accuracy", "87.50%", "87.50%"],
    ]
    assert shown.rows[5][:3] == [
        "Test accuracy, predictions averaged over each image and its mirror image",
        "93.75%",
        "93.75%",
    ]
    order = []
    for name in page.CAPTIONS:
        order += [f"{model}{name}" for model in "ba"] if name[0] == "_" else [name]
    assert [image["src"] for image in shown.images] == order
    for image in shown.images:
        assert (image["width"], image["height"], image["loading"]) == ("30", "20", "lazy")
        assert image["alt"]
    assert [shown.texts.count(caption) for caption in map(page.CAPTIONS.get, single)] == [1] * 12
    assert f"B: {page.CAPTIONS['_loss.png']}" in shown.texts
    assert ["batch size", "512", "512"] in shown.rows
    assert ["learning rate", "0.004", "0.004"] in shown.rows
    assert shown.rows[-1][:3] == ["model", "widths [8, 4]", "widths [8, 4]"]
    for line in ("precision: float32", "seed: 3", "device: a CPU", "versions: torch 2.15.0"):
        assert line in shown.texts
    assert "nothing about Fashion-MNIST" not in shown.text
    # Nothing is loaded but the pictures beside the page.
    assert "script" not in shown.tags and "link" not in shown.tags and "//" not in shown.text


def test_several_seeds_are_shown_by_mean_and_deviation(tmp_path):
    summary = summarize_values([0.8, 0.9])
    model = dict.fromkeys(page.MEASURES, summary) | {"parameters": 1234}
    model["train_seconds"] = summarize_values([120.0, 130.0])
    comparison = {"seeds": [3, 4], "models": {"first": model, "second": model}}
    rows = write(tmp_path, make_metrics(), comparison).rows
    assert rows[1] == ["Parameters", "1,234", "1,234"]
    assert rows[2][1] == "2 min 5 s ±\N{NO-BREAK SPACE}7.1 s"
    assert rows[4][1:] == ["85.00% ±\N{NO-BREAK SPACE}7.07%"] * 2


def test_results_on_the_stand_in_are_marked(tmp_path):
    shown = write(tmp_path, make_metrics(dataset="synthetic"))
    assert any("nothing about Fashion-MNIST" in text for text in shown.texts)


def test_pictures_alone_make_a_page_and_others_complete_it(tmp_path):
    shown = write(tmp_path, pictures=["kernel_grid.png", "unknown.png"])
    assert [image["src"] for image in shown.images] == ["kernel_grid.png"]
    assert not shown.rows and "details" not in shown.tags
    shown = write(tmp_path, make_metrics(), pictures=["saliency.png", "second_loss.png"])
    sources = [image["src"] for image in shown.images]
    assert sources == ["second_loss.png", "kernel_grid.png", "saliency.png"]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_texts_of_files_are_no_html(tmp_path):
    hostile = "\"'><script>alert(1)</script>&amp;"
    metrics = make_metrics((hostile, "a #?%b"))
    metrics["dataset"]["title"] = metrics["device"] = metrics["versions"][hostile] = hostile
    metrics["settings"][hostile] = hostile
    for recipe in metrics["settings"]["recipes"].values():
        recipe[hostile] = hostile
    shown = write(tmp_path, metrics, pictures=["a #?%b_loss.png"])
    assert "script" not in shown.tags
    assert f"Results on {hostile}" in shown.texts
    assert [image["src"] for image in shown.images] == ["a%20%23%3F%25b_loss.png"]


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"models": {}}', '"text"', '{"models": 1}', "[" * 100_000]
)
def test_damaged_results_are_reported_and_the_page_stays(tmp_path, content):
    page.write_page(tmp_path).write_text("old")
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UsageError, match=r"metrics\.json"):
        page.write_page(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize("key", ["dataset", "seed", "settings", "device", "versions", "models"])
def test_missing_part_of_the_results_is_reported(tmp_path, key):
    metrics = make_metrics()
    del metrics[key]
    with pytest.raises(UsageError, match=r"metrics\.json"):
        write(tmp_path, metrics)


def test_unreadable_picture_is_reported(tmp_path):
    (tmp_path / "saliency.png").write_text("no picture")
    with pytest.raises(RunError, match=r"report\.html.*saliency\.png"):
        page.write_page(tmp_path)
