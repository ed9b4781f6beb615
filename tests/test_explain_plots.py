import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

import explain_plots
import plots
from data import CLASS_NAMES
from explain import KernelKind, Progression, Unit
from explain_plots import Explanation, PictureReport
from files import WorldFault


def panels(figure):
    """All axes that show an image, in order."""
    return [axes for axes in figure.axes if axes.images]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def image(generator):
    return generator.integers(0, 256, (28, 28), dtype=np.uint8)


def make_progression(generator):
    sizes = ((32, 28), (64, 14), (128, 7))
    return Progression(
        responses=[generator.normal(size=(k, s, s)) for k, s in sizes],
        activations=[generator.random((k, s // 2, s // 2)) for k, s in sizes],
        rectified=[generator.random((k, s, s)) for k, s in sizes],
        hidden=[generator.random(256), generator.random(128)],
        probabilities=np.array([0.9, 0.06, 0.04, *[0.0] * 7]),
    )


def make_explanations(generator, scale=1.0):
    return {
        name: Explanation(
            label, 0.7, scale * generator.normal(size=(28, 28)), generator.normal(size=(28, 28))
        )
        for name, label in (("ffn", 3), ("cnn", 8))
    }


# Kernels and maps


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (KernelKind("edge", 0, 0), "7 →"),
        (KernelKind("edge", 100, 0), "7 ↑"),
        (KernelKind("edge", 350, 0), "7 →"),
        (KernelKind("edge", 225, 0), "7 ↙"),
        (KernelKind("spot", 0, 1), "7 ●"),
        (KernelKind("spot", 0, -1), "7 ○"),
        (KernelKind("area", 0, 1), "7 ■"),
        (KernelKind("area", 0, -1), "7 □"),
        (KernelKind("other", 0, 0), "7"),
    ],
)
def test_kernels_are_named_by_number_and_kind(kind, name):
    assert explain_plots.kernel_name(7, kind) == name
    assert name[2:] in explain_plots.LEGEND or kind.kind == "edge"


def test_kernels_before_and_after_share_one_symmetric_scale_and_their_names(generator):
    trained, untrained = generator.normal(size=(2, 12, 3, 3))
    trained[5] = -7  # more than may be cut off
    names = [f"{n} →" for n in range(20, 32)]
    figure = explain_plots.draw_kernels(trained, untrained, names, "title")
    tiles = panels(figure)
    assert [axes.get_title() for axes in tiles] == names * 2
    assert {axes.images[0].get_clim() for axes in tiles} == {(-7, 7)}
    for axes, kernel in zip(tiles, [*untrained, *trained], strict=True):
        assert (axes.images[0].get_array() == kernel).all()
    assert figure.axes[-1].get_ylabel() == "weight"


@pytest.mark.parametrize("signed", [True, False])
def test_image_transform_shows_the_picture_and_all_maps_on_one_scale(generator, image, signed):
    maps = generator.normal(size=(12, 28, 28))
    maps = maps if signed else np.maximum(maps, 0)
    names = [str(number) for number in range(12)]
    figure = explain_plots.draw_image_transform(image, maps, names, signed, "title")
    picture, *tiles = panels(figure)
    assert (picture.images[0].get_array() == image).all()
    assert [axes.get_title() for axes in tiles] == names
    ((low, high),) = {axes.images[0].get_clim() for axes in tiles}
    assert low == (-high if signed else 0)
    assert np.mean(np.abs(maps) > high) == pytest.approx(0.005, abs=1e-3)


def test_progression_goes_from_the_strongest_maps_to_ten_probabilities(generator, image):
    progression = make_progression(generator)
    first = progression.activations[0]
    first[:] = 0
    first[7, 3, 3], first[11, 2, 2], first[4] = 5, 9, 50  # map 4 is high, but the same everywhere
    figure = explain_plots.draw_progression(image, progression, "title")
    picture, *tiles = panels(figure)
    assert (picture.images[0].get_array() == image).all()
    assert [axes.get_title() for axes in tiles[:2]] == ["11", "7"]
    strips = tiles[3 * explain_plots.MAPS_PER_BLOCK :]
    for strip, values in zip(strips, progression.hidden, strict=True):
        assert (strip.images[0].get_array() == values).all()
    (bars,) = (axes for axes in figure.axes if len(axes.patches) == 10)
    assert [bar.get_height() for bar in bars.patches] == list(progression.probabilities)
    assert [label.get_text() for label in bars.get_xticklabels()] == list(CLASS_NAMES)
    assert [text.get_text() for text in bars.texts] == ["90%", "6%", "4%", *[""] * 7]


# Units


def test_top_activations_show_each_image_bright_in_its_patch_only():
    images = np.full((20, 28, 28), 200, np.uint8)
    units = [
        Unit(5, 0.9, np.array([3, 4]), np.array([7.5, 6.0]), [(-3, 2, 10), (20, 25, 10)]),
        Unit(9, 0.8, np.array([10, 11]), np.array([2.0, 1.0]), [(0, 0, 4), (8, 8, 4)]),
    ]
    labels = np.arange(20) % 10
    figure = explain_plots.draw_top_activations(units, images, labels, "title")
    first, second, *_ = panels(figure)
    shown = np.asarray(first.images[0].get_array())
    assert (shown[:7, 2:12] == 200).all() and shown[7:].max() == shown[:, 12:].max() == 60
    shown = np.asarray(second.images[0].get_array())
    assert (shown[20:, 25:] == 200).all() and (shown == 200).sum() == 8 * 3
    assert first.get_title() == "Dress\n7.5"
    assert first.get_ylabel() == "unit 5\nselectivity 0.90"
    frame = first.patches[0]
    assert (frame.get_x(), frame.get_y()) == (1.5, -0.5)
    assert (frame.get_width(), frame.get_height()) == (10, 7)


# Saliency


def test_saliency_has_one_scale_a_method_over_all_pictures_and_models(generator):
    pictures = generator.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    explanations = [make_explanations(generator, scale) for scale in (1, 5, 20)]
    heads = ["one", "two", "three"]
    figure = explain_plots.draw_saliency(pictures, heads, explanations, "title")
    rows = np.array(panels(figure)).reshape(3, 5)
    for row, picture, head, by_model in zip(rows, pictures, heads, explanations, strict=True):
        assert (row[0].images[0].get_array() == picture).all() and row[0].get_title() == head
        shown = [axes.images[0].get_array() for axes in row[1:]]
        ffn, cnn = by_model["ffn"], by_model["cnn"]
        expected = [ffn.occlusion, cnn.occlusion, ffn.gradients, cnn.gradients]
        assert all((a == b).all() for a, b in zip(shown, expected, strict=True))
        titles = [axes.get_title() for axes in row[1:]]
        assert titles == ["FFN: Dress\n70%", "CNN: Bag\n70%"] * 2
    limits = [{axes.images[0].get_clim() for axes in rows[:, k].flat} for k in ([1, 2], [3, 4])]
    ((low, high),), ((low_gradient, high_gradient),) = limits
    assert low == -high and low_gradient == -high_gradient and high > 5 * high_gradient


# Embedding


def test_embedding_shows_every_image_in_its_classes_colour_and_rings_mistakes(generator):
    labels = np.arange(100) % 10
    right, wrong = labels.copy(), labels.copy()
    wrong[:30] = (wrong[:30] + 1) % 10
    places = {name: generator.normal(size=(100, 2)) for name in ("ffn", "cnn")}
    figure = explain_plots.draw_embedding(places, {"ffn": wrong, "cnn": right}, labels, "title")
    ffn, cnn = figure.axes
    assert ffn.get_title() == "FFN: 30.0% wrong" and cnn.get_title() == "CNN: 0.0% wrong"
    plain, ringed = ffn.collections
    assert (ringed.get_offsets() == places["ffn"][:30]).all()
    assert (plain.get_offsets() == places["ffn"][30:]).all()
    colours = matplotlib.colors.to_rgba_array(explain_plots.CLASS_COLOURS)
    assert (ringed.get_facecolor() == colours[labels[:30]]).all()
    assert [text.get_text() for text in cnn.texts] == list(CLASS_NAMES)


# Recording


def test_recording_is_a_gif_of_all_frames_that_runs_forever(tmp_path, generator):
    kernels = generator.normal(size=(5, 12, 3, 3))
    names, heads = [str(n) for n in range(12)], [f"epoch {n}" for n in range(5)]
    images = list(explain_plots.draw_recording(kernels, names, heads))
    assert len({image.size for image in images}) == 1
    assert all(np.asarray(image).std() > 10 for image in images)
    explain_plots.save_gif(iter(images), tmp_path / "training.gif")
    with Image.open(tmp_path / "training.gif") as gif:
        assert gif.n_frames == 5 and gif.info["loop"] == 0
        gif.seek(4)
        assert gif.info["duration"] == explain_plots.GIF_LAST_MS
        last = np.asarray(gif.convert("RGB"), dtype=float)
    assert np.abs(last - np.asarray(images[-1], dtype=float)).mean() < 3
    assert np.abs(last - np.asarray(images[0], dtype=float)).mean() > 3


def test_gif_that_cannot_be_written_is_an_error_in_words(tmp_path):
    with pytest.raises(WorldFault, match="cannot write"):
        explain_plots.save_gif(iter([Image.new("RGB", (8, 8))] * 2), tmp_path / "no" / "a.gif")


# Predictions


def make_report(generator, name="shoe.png"):
    return PictureReport(
        name=name,
        original=Image.new("RGB", (300, 200), (10, 200, 30)),
        seen=generator.integers(0, 256, (28, 28), dtype=np.uint8),
        probabilities={each: generator.dirichlet(np.ones(10)) for each in ("ffn", "cnn")},
        saliency={each: generator.normal(size=(28, 28)) for each in ("ffn", "cnn")},
    )


def test_report_shows_original_what_is_seen_both_bars_and_why(generator):
    reports = [make_report(generator, "shoe.png"), make_report(generator, "folder/hat.png")]
    figure = explain_plots.draw_reports(reports, "title")
    rows = np.array(figure.axes[:-1]).reshape(2, 5)
    for row, report in zip(rows, reports, strict=True):
        assert row[0].get_title() == report.name.split("/")[-1]
        assert row[0].images[0].get_array().shape == (200, 300, 3)
        assert (row[1].images[0].get_array() == report.seen).all()
        widths = [bar.get_width() for bar in row[2].patches]
        assert widths == [*report.probabilities["ffn"], *report.probabilities["cnn"]]
        for axes, name in zip(row[3:], ("ffn", "cnn"), strict=True):
            assert (axes.images[0].get_array() == report.saliency[name]).all()
            guess = CLASS_NAMES[report.probabilities[name].argmax()]
            assert axes.get_title() == f"{name.upper()}: why {guess}?"
    assert len({axes.images[0].get_clim() for axes in rows[:, 3:].flat}) == 1


@pytest.mark.parametrize(
    ("name", "short"),
    [("a/b/shoe.png", "shoe.png"), ("x" * 40 + ".jpeg", "x" * 18 + "…" + "xx.jpeg")],
)
def test_long_names_are_shortened(name, short):
    assert explain_plots.shorten(name) == short


# All


def test_nothing_is_cut_off(generator, image):
    names = [f"{number} ↗" for number in range(32)]
    units = [Unit(100 + k, 0.5, np.arange(9), np.ones(9), [(0, 0, 22)] * 9) for k in range(8)]
    labels = np.arange(9)
    title = "A question that fills a line of the title?\na second line; trained on Fashion-MNIST"
    for figure in (
        explain_plots.draw_kernels(*generator.normal(size=(2, 32, 3, 3)), names, title),
        explain_plots.draw_image_transform(image, np.ones((32, 28, 28)), names, True, title),
        explain_plots.draw_progression(image, make_progression(generator), title),
        explain_plots.draw_top_activations(units, np.stack([image] * 9), labels, title),
        explain_plots.draw_saliency(
            image[None], ["test image 1234: Ankle boot"], [make_explanations(generator)], title
        ),
        explain_plots.draw_embedding(
            {"ffn": np.eye(9)[:, :2], "cnn": np.eye(9)[:, :2]},
            {"ffn": labels, "cnn": labels},
            labels,
            title,
        ),
        explain_plots.draw_reports([make_report(generator, "n" * 60 + ".png")], title),
    ):
        with matplotlib.rc_context(plots.STYLE):
            figure.draw_without_rendering()
            box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_figures_are_whole_pngs_and_style_stays_inside(tmp_path, generator):
    before = dict(matplotlib.rcParams)
    plots.save_figure(explain_plots.draw_reports([make_report(generator)], "t"), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    picture = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    picture.load()
    assert picture.format == "PNG" and picture.size[0] > 700
