import matplotlib
import numpy as np
import pytest
from PIL import Image

from fashion import explain_plots, plots
from fashion.data import CLASS_NAMES
from fashion.explain import KernelKind, Progression, Unit
from fashion.explain_plots import Explanation, PictureReport
from fashion.files import RunError

NAMES = ["first", "second", "third"]
STYLES = plots.assign_styles(NAMES)
TITLE = "The content of the figure, CNN on synthetic images, not Fashion-MNIST\nand a second line"


def panels(figure):
    """All axes that show an image, in order."""
    return [axes for axes in figure.axes if axes.images]


def uncut(figure):
    """Return a figure after checking that nothing exceeds its edges."""
    with plots.styled():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    return figure


def array(axes):
    """The image that axes show."""
    return np.asarray(axes.images[0].get_array())


def check_column(column, style, method, maps):
    """Check the header and the scale of a column of saliency maps."""
    header, *shown = column
    assert header.get_title() == f"{style.label}\n{method}"
    assert header.child_axes[0].get_xlabel() == "support (log-odds)"
    assert all((array(axes) == values).all() for axes, values in zip(shown, maps, strict=True))
    ((low, high),) = {axes.images[0].get_clim() for axes in shown}
    assert low == -high and header.child_axes[0].get_xlim() == pytest.approx((low, high))
    assert np.mean(np.abs(maps) > high) == pytest.approx(0.005, abs=1e-3)
    norm = shown[0].images[0].norm
    assert norm([-high, -high / 100, 0, high / 4]).tolist() == pytest.approx([0, 0.45, 0.5, 0.75])


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def image(generator):
    return generator.integers(0, 256, (28, 28), dtype=np.uint8)


def make_explanations(generator, names, scale):
    return {
        name: Explanation(
            label, 0.7, scale * generator.normal(size=(28, 28)), generator.normal(size=(28, 28))
        )
        for label, name in enumerate(names)
    }


def make_report(generator, names, file_name):
    return PictureReport(
        name=file_name,
        original=Image.new("RGB", (300, 200), (10, 200, 30)),
        seen=generator.integers(0, 256, (28, 28), dtype=np.uint8),
        probabilities={name: generator.dirichlet(np.ones(10)) for name in names},
        excess=dict(zip(names, (0.2, -3.0, 5.0), strict=False)),
        saliency={name: generator.normal(size=(28, 28)) for name in names},
    )


# Kernels and maps


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (KernelKind("edge", 0, 0), "7 →"),
        (KernelKind("edge", 100, 0), "7 ↑"),
        (KernelKind("edge", 350, 0), "7 →"),
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


def test_kernels_before_and_after_training_share_numbers_and_a_symmetric_scale(generator):
    trained, untrained = generator.normal(size=(2, 9, 3, 3))
    trained[5] = -7  # a larger share than may be clipped
    names = [f"{number} →" for number in range(20, 29)]
    figure = uncut(explain_plots.draw_kernels(trained, untrained, names, TITLE))
    tiles = panels(figure)
    # The symbols are those of the trained kernels.
    numbers = [name.split()[0] for name in names]
    assert [axes.get_title() for axes in tiles] == numbers + names
    assert {axes.images[0].get_clim() for axes in tiles} == {(-7, 7)}
    for axes, kernel in zip(tiles, [*untrained, *trained], strict=True):
        assert (array(axes) == kernel).all()
    assert figure.axes[-1].get_ylabel() == "weight"


@pytest.mark.parametrize("signed", [True, False])
def test_image_transform_shows_image_and_maps_on_a_common_scale(generator, image, signed):
    maps = generator.normal(size=(9, 28, 28))
    maps = maps if signed else np.maximum(maps, 0)
    names = [f"{number} ↗" for number in range(9)]
    figure = uncut(explain_plots.draw_image_transform(image, maps, names, signed, TITLE))
    first, *tiles = panels(figure)
    assert (array(first) == image).all()
    assert [axes.get_title() for axes in tiles] == names
    ((low, high),) = {axes.images[0].get_clim() for axes in tiles}
    assert low == (-high if signed else 0)
    assert np.mean(np.abs(maps) > high) == pytest.approx(0.005, abs=1e-3)


def test_progression_shows_maps_hidden_layers_and_probabilities(generator, image):
    activations = [np.zeros((12, 14, 14)), np.zeros((64, 7, 7))]
    for maps in activations:
        maps[7, 2, 2], maps[11, 1, 1] = 5, 9
        maps[4] = 50  # high everywhere
    hidden = [generator.random(width) for width in (256, 128)]
    probabilities = np.array([0.9, 0.06, 0.04, *[0.0] * 7])
    progression = Progression([], activations, [], hidden, probabilities)
    figure = uncut(explain_plots.draw_progression(image, progression, STYLES["second"], TITLE))
    first, *tiles = panels(figure)
    assert (array(first) == image).all()
    titles = [axes.get_title() for axes in tiles]
    assert titles[:2] == titles[8:10] == ["11", "7"]
    for strip, values in zip(tiles[16:], hidden, strict=True):
        assert (array(strip) == values).all()
    (bars,) = (axes for axes in figure.axes if len(axes.patches) == 10)
    assert [bar.get_height() for bar in bars.patches] == list(probabilities)
    assert [label.get_text() for label in bars.get_xticklabels()] == list(CLASS_NAMES)
    assert [text.get_text() for text in bars.texts] == ["90%", "6%", "4%", *[""] * 7]


# Units


def test_top_activations_are_bright_in_their_patches_only():
    images = np.full((20, 28, 28), 200, np.uint8)
    patches = [(-3, 2, 10), (20, 25, 10), *[(8, 8, 4)] * 7]
    units = [Unit(105, 0.9, np.arange(3, 12), np.linspace(7.5, 1, 9), patches)]
    labels = np.arange(20) % 10
    figure = uncut(explain_plots.draw_top_activations(units, images, labels, TITLE))
    first, second, *_ = panels(figure)
    shown = array(first)
    assert (shown[:7, 2:12] == 200).all() and shown[7:].max() == shown[:, 12:].max() == 60
    shown = array(second)
    assert (shown[20:, 25:] == 200).all() and (shown == 200).sum() == 8 * 3
    assert first.get_title() == "Dress\n7.5"
    assert first.get_ylabel() == "unit 105\nselectivity 0.90"
    frame = first.patches[0]
    assert (frame.get_x(), frame.get_y()) == (1.5, -0.5)
    assert (frame.get_width(), frame.get_height()) == (10, 7)


# Saliency


@pytest.mark.parametrize("count", [1, 3])
def test_saliency_has_one_scale_per_method_and_model(generator, count):
    names = NAMES[:count]
    images = generator.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    explanations = [make_explanations(generator, names, scale) for scale in (5, 20)]
    captions = ["test image 1234: Ankle boot", "two"]
    title = "Saliency maps, synthetic images, not Fashion-MNIST"
    figure = uncut(explain_plots.draw_saliency(images, captions, explanations, STYLES, title))
    first, *columns = np.array(figure.axes).reshape(3, 1 + 2 * count).T
    for axes, image, caption in zip(first[1:], images, captions, strict=True):
        assert (array(axes) == image).all() and axes.get_title() == caption
    for name, column in zip(names, columns, strict=False):
        maps = [by_model[name].occlusion for by_model in explanations]
        check_column(column, STYLES[name], "occlusion", maps)
    for name, column in zip(names, columns[count:], strict=True):
        maps = [by_model[name].gradients for by_model in explanations]
        check_column(column, STYLES[name], "integrated gradients", maps)
    titles = ["T-shirt/top 70%", "Trouser 70%", "Pullover 70%"][:count] * 2
    for row in np.array(columns).T[1:]:
        assert [axes.get_title() for axes in row] == titles


def test_saliency_without_any_effect_is_drawn(generator, image):
    flat = Explanation(0, 1.0, np.zeros((28, 28)), np.zeros((28, 28)))
    figure = explain_plots.draw_saliency([image], ["flat"], [{"first": flat}], STYLES, TITLE)
    assert [axes.images[0].get_clim() for axes in panels(figure)[1:]] == [(-1, 1)] * 2


# Embedding


def test_embedding_colours_images_by_class_and_circles_errors(generator):
    labels = np.arange(100) % 10
    wrong = labels.copy()
    wrong[:30] = (wrong[:30] + 1) % 10
    names = [*NAMES, "fourth"]  # more than fit into one row
    places = {name: generator.normal(size=(100, 2)) for name in names}
    predictions = dict.fromkeys(names, labels) | {"first": wrong}
    styles = plots.assign_styles(names)
    figure = uncut(explain_plots.draw_embedding(places, predictions, labels, styles, TITLE))
    first, second, *others = figure.axes
    assert first.get_title() == "FIRST: 30.0% errors"
    assert second.get_title() == "SECOND: 0.0% errors"
    assert [bool(axes.collections) for axes in others] == [True, True, False, False]
    plain, circled = first.collections
    assert (circled.get_offsets() == places["first"][:30]).all()
    assert (plain.get_offsets() == places["first"][30:]).all()
    colours = matplotlib.colors.to_rgba_array(explain_plots.CLASS_COLOURS)
    assert (circled.get_facecolor() == colours[labels[:30]]).all()
    assert [text.get_text() for text in second.texts] == list(CLASS_NAMES)


# Recording


def test_recording_becomes_an_endless_gif_of_all_frames(tmp_path, generator):
    kernels = generator.normal(size=(3, 9, 3, 3))
    names, titles = [str(n) for n in range(9)], [f"epoch {n}" for n in range(3)]
    images = list(explain_plots.draw_recording(kernels, names, titles))
    assert len({image.size for image in images}) == 1
    explain_plots.save_gif(iter(images), tmp_path / "training.gif")
    with Image.open(tmp_path / "training.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0
        gif.seek(2)
        assert gif.info["duration"] == explain_plots.GIF_LAST_MS
        last = np.asarray(gif.convert("RGB"), dtype=float)
    assert np.abs(last - np.asarray(images[-1], dtype=float)).mean() < 3
    assert np.abs(last - np.asarray(images[0], dtype=float)).mean() > 3
    with pytest.raises(RunError, match="cannot write"):
        explain_plots.save_gif(images, tmp_path / "missing" / "a.gif")


# Predictions


@pytest.mark.parametrize("count", [1, 3])
def test_reports_show_picture_input_probabilities_and_saliency(generator, count):
    names = NAMES[:count]
    files = "folder/hat.png", "n" * 60 + ".png"
    reports = [make_report(generator, names, file) for file in files]
    figure = uncut(explain_plots.draw_reports(reports, STYLES, TITLE))
    headers, *rows = np.array(figure.axes).reshape(3, 3 + count)
    assert [axes.get_title() for axes in headers[:2]] == ["picture", "input of the models"]
    labels = [text.get_text() for text in headers[2].get_legend().get_texts()]
    assert labels == [name.upper() for name in names]
    strange = "FIRST" if count == 1 else "FIRST, THIRD"
    for row, report in zip(rows, reports, strict=True):
        assert row[0].get_title() == explain_plots.shorten(report.name)
        assert array(row[0]).shape == (200, 300, 3)
        assert (array(row[1]) == report.seen).all()
        assert row[1].get_title() == f"unlike the training images\n({strange})"
        expected = np.concatenate(list(report.probabilities.values()))
        assert [bar.get_width() for bar in row[2].patches] == list(expected)
        for axes, values in zip(row[3:], report.probabilities.values(), strict=True):
            assert axes.get_title() == f"{CLASS_NAMES[values.argmax()]} {values.max():.0%}"
    for name, column in zip(names, np.array([headers, *rows]).T[3:], strict=True):
        maps = [report.saliency[name] for report in reports]
        check_column(column, STYLES[name], "occlusion", maps)


@pytest.mark.parametrize(
    ("name", "short"),
    [("a/b/shoe.png", "shoe.png"), ("x" * 40 + ".jpeg", "x" * 18 + "…" + "xx.jpeg")],
)
def test_long_names_are_shortened(name, short):
    assert explain_plots.shorten(name) == short
