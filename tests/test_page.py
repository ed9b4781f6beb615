import json
import re
from html import unescape

from fashion import page
from fashion.style import make_figure, save_figure

import pytest


def pictures(text):
    return re.findall(r'src="(.*?)"', text)


def below(text, heading):
    """The addresses of the pictures below a heading."""
    return pictures(text.partition(f">{heading}</h2>")[2].split("<h2 ")[0])


def table(text):
    """The rows of the table."""
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text)]


def entry(*accuracies, dataset="Fashion-MNIST", flip=0.9375):
    """The entry of a network in metrics.json, as far as the page shows it."""
    brief = {"parameters": 7850, "train_seconds": 125.0, "validation_accuracy": 0.875}
    brief["flip_averaged_accuracy"] = flip
    runs = [brief | {"seed": n, "test_accuracy": each} for n, each in enumerate(accuracies, 3)]
    recipe = {"batch_size": 512, "model": {}, "flip": True, "shift_share": 0}
    settings = {"recipe": recipe, "environment": {"device": "a CPU"}}
    return {"dataset": dataset, "runs": runs, "tested_at": "2026-01-02T03:04:05", **settings}


def write(folder, models=None, **pictures):
    """Write these files and the page, and return its text. A picture is given by its source."""
    if models is not None:
        (folder / "metrics.json").write_text(json.dumps({"models": models}))
    for name, source in pictures.items():
        save_figure(make_figure("", 1, 1), folder / f"{name}.png", source)
    return page.write_page(folder).read_text()


def test_table_shows_every_network(tmp_path):
    models = {"ffn": entry(0.8, 0.9), "cnn": entry(0.95), "softmax": entry(0.5, flip=None)}
    rows = {row[0]: row[1:] for row in table(write(tmp_path, models))}
    assert rows[""] == ["FFN", "CNN", "SOFTMAX"]
    assert rows["Runs"] == ["seeds 3, 4", "seed 3", "seed 3"]
    assert rows["Dataset"] == ["Fashion-MNIST"] * 3 and rows["Parameters"] == ["7,850"] * 3
    assert rows["Training time"][1] == "2 min 5 s" and rows["Validation accuracy"][1] == "87.50%"
    assert rows["Test accuracy"] == ["85.00% ± 7.07%", "95.00%", "50.00%"]
    assert rows["Test accuracy with mirror images"] == ["93.75% ± 0.00%", "93.75%", "–"]
    assert (
        rows["Batch size"] == ["512"] * 3 and rows["Arguments of the network"] == ["defaults"] * 3
    )
    assert rows["Mirrored images"][0] == "yes" and rows["Share of shifted images"][0] == "none"
    assert rows["Device"] == ["a CPU"] * 3 and rows["Tested"][0] == "2026-01-02 03:04:05"


def test_pictures_stand_below_their_subject_and_say_what_they_are_from(tmp_path):
    models = {"cnn": entry(0.95), "ffn": entry(0.8)}
    cnn, ffn = (page.source(name, each["dataset"], each["runs"]) for name, each in models.items())
    files = {"ffn_loss": ffn, "cnn_loss": cnn, "saliency": cnn, "comparison": f"{cnn}; {ffn}"}
    shown = write(tmp_path, models, **files)
    assert below(shown, "Comparison") == ["comparison.png"]
    assert below(shown, "Training and predictions") == ["cnn_loss.png", "ffn_loss.png"]
    assert below(shown, "What the networks have learned") == ["saliency.png"]
    assert shown.count("FFN on Fashion-MNIST, seed 3: 80.00% test accuracy<") == 2
    assert shown.count('width="22" height="22"') == 4  # three quarters of the pixels
    assert shown.count("<figure ") == 3 and shown.count("<figcaption>Look for ") == 3
    for anchor in ("Comparison", "Learning_curves", "Saliency_maps"):
        assert f'<a href="#{anchor}">' in shown and f' id="{anchor}">' in shown
    assert "<script" not in shown and "//" not in shown  # it loads nothing but the pictures


def test_pictures_of_other_networks_stand_apart(tmp_path):
    runs = entry(0.8, 0.9)["runs"]
    first, both = (page.source("ffn", "Fashion-MNIST", part) for part in (runs[:1], runs))
    older = page.source("ffn", "Fashion-MNIST sample", runs)
    files = {"ffn_loss": first, "calibration": both, "saliency": older}
    files["comparison"] = f"{both}; {older}"
    shown = write(tmp_path, {"ffn": entry(0.8, 0.9)}, **files, embedding="")
    assert below(shown, page.OTHERS) == ["comparison.png", "saliency.png"]
    assert below(shown, "Training and predictions") == ["ffn_loss.png"]
    assert below(shown, "Comparison") == ["calibration.png"]
    assert below(shown, "What the networks have learned") == ["embedding.png"]  # of unknown origin


def test_texts_of_files_are_no_html(tmp_path):
    hostile = "\"'><script>alert(1)</script>&amp;\ud800"
    bad = entry(0.8, dataset=hostile)
    bad["recipe"][hostile] = bad["environment"]["device"] = bad["tested_at"] = hostile
    shown = write(tmp_path, {hostile: bad, "a #?%b": bad}, **{"a #?%b_loss": hostile[:-1]})
    assert "<script" not in shown and unescape(shown).count(hostile[:-1]) > 6
    assert pictures(shown) == ["a%20%23%3F%25b_loss.png"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[1]", b'{"models": 1}', b'{"models": {"ffn": []}}', b'{"models": {"ffn": {}}}'),
        *(b"[" * 100_000, b"\xff\0"),
    ],
)
def test_damaged_results_and_pictures_are_left_out(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    (tmp_path / "saliency.png").write_text("no picture")
    (tmp_path / "embedding.png").mkdir()
    shown = write(tmp_path, kernel_grid="")
    assert pictures(shown) == ["kernel_grid.png"] and "<table>" not in shown


def test_page_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    page.write_page(tmp_path)
    assert "report.html was not written" in capsys.readouterr().out


def test_row_without_a_value_is_left_out():
    assert page.table({"FFN": {"a": "–", "b": "1"}, "CNN": {"b": "–"}}) == [
        ["", "FFN", "CNN"],
        ["b", "1", "–"],
    ]
