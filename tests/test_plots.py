import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

import plots
from data import CLASS_NAMES, WorldFault

TITLE = "drawn stand-in, not Fashion-MNIST"
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "validation_loss": 0.5 / epoch,
        "train_accuracy": 0.5 + epoch / 20,
        "validation_accuracy": 0.6 + epoch / 20,
        "learning_rate": 0.001,
    }
    for epoch in range(1, 6)
]
MODELS = {
    name: {
        "test_accuracy": accuracy,
        "test_accuracy_by_class": [accuracy - 0.01 * label for label in range(10)],
        "parameters": 1000,
        "train_seconds": 12.0,
    }
    for name, accuracy in (("ffn", 0.85), ("cnn", 0.93))
}


@pytest.fixture
def predictions():
    """Images, labels and probabilities of 400 predictions, about every fifth of them wrong."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 10
    probabilities = generator.dirichlet(np.full(10, 0.1), 400)
    right = generator.random(400) < 0.8
    for row in np.flatnonzero(right):
        best = probabilities[row].argmax()
        probabilities[row, [best, labels[row]]] = probabilities[row, [labels[row], best]]
    images = generator.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    return images, labels, probabilities


def panels(figure):
    """The axes that show a picture."""
    return [axes for axes in figure.axes if axes.images]


# Choosing examples


@pytest.mark.parametrize("correct", [True, False])
def test_examples_are_what_they_are_called_and_spread_over_the_classes(predictions, correct):
    _, labels, probabilities = predictions
    chosen = plots.choose_examples(labels, probabilities, correct)
    assert len(set(chosen)) == 25
    assert ((probabilities[chosen].argmax(1) == labels[chosen]) == correct).all()
    counts = np.bincount(labels[chosen], minlength=10)
    assert set(counts) == {2, 3}


def test_mistakes_are_the_most_confident_of_their_class(predictions):
    _, labels, probabilities = predictions
    chosen = plots.choose_examples(labels, probabilities, correct=False)
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    for label in range(10):
        confidence = np.sort(probabilities[wrong[labels[wrong] == label]].max(1))[::-1]
        shown = chosen[labels[chosen] == label]
        assert list(probabilities[shown].max(1)) == list(confidence[: len(shown)])


def test_classes_without_mistakes_leave_their_places_to_the_others():
    labels = np.repeat([0, 1], 50)
    probabilities = np.eye(10)[np.repeat([0, 2], 50)]
    chosen = plots.choose_examples(labels, probabilities, correct=False)
    assert len(chosen) == 25 and set(labels[chosen]) == {1}


# What the figures show


def test_learning_curves_show_both_parts_of_the_history():
    figure = plots.draw_learning_curves(HISTORY, "cnn", TITLE)
    loss, accuracy = figure.axes
    for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
        curves = [list(line.get_ydata()) for line in axes.get_lines()]
        assert curves == [
            [entry[f"{part}_{measure}"] for entry in HISTORY] for part in ("train", "validation")
        ]
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()
        assert "at the end" in axes.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("correct", [True, False])
def test_prediction_grid_says_guess_probability_and_truth(predictions, correct):
    images, labels, probabilities = predictions
    figure = plots.draw_predictions(images, labels, probabilities, correct, "ffn", TITLE)
    chosen = plots.choose_examples(labels, probabilities, correct)
    assert len(panels(figure)) == 25
    for axes, index in zip(panels(figure), chosen, strict=True):
        assert (axes.images[0].get_array() == images[index]).all()
        guess = probabilities[index].argmax()
        expected = f"{CLASS_NAMES[guess]} {probabilities[index, guess]:.0%}"
        if not correct:
            expected += f"\nis: {CLASS_NAMES[labels[index]]}"
        assert axes.get_title() == expected


def test_mistakes_are_called_the_most_confident(predictions):
    figure = plots.draw_predictions(*predictions, False, "ffn", TITLE)
    assert "most confident mistakes" in figure.get_suptitle()


def test_prediction_grid_without_examples_says_so(predictions):
    images, labels, _ = predictions
    figure = plots.draw_predictions(images, labels, np.eye(10)[labels], False, "ffn", TITLE)
    assert not panels(figure) and "none" in figure.texts[-1].get_text()


def test_confusion_is_in_percent_of_the_true_class():
    matrix = np.diag([90] * 10)
    matrix[3, 4] = 10
    figure = plots.draw_confusion(matrix, "cnn", TITLE)
    axes, bar = figure.axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[(4, 3)] == "10.0" and texts[(3, 3)] == "90.0" and texts[(0, 0)] == "100.0"
    assert len(texts) == 11
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASS_NAMES)
    assert "true class" in bar.get_ylabel()


def test_comparison_shows_both_models_with_their_numbers():
    figure = plots.draw_comparison(MODELS, TITLE)
    by_class, *bars = figure.axes
    assert [text.get_text() for text in by_class.get_legend().get_texts()] == ["FFN", "CNN"]
    # The hardest class, here the last label, is at the bottom.
    assert by_class.get_yticklabels()[0].get_text() == CLASS_NAMES[9]
    shown = [text.get_text() for axes in bars for text in axes.texts]
    assert shown == ["93.00%", "85.00%", "1,000", "1,000", "12.0 s", "12.0 s"]


def test_kernels_share_one_symmetric_scale_and_carry_their_numbers():
    kernels = np.random.default_rng(0).normal(size=(12, 3, 3))
    kernels[5, 1, 1] = -7
    figure = plots.draw_kernels(kernels, range(20, 32), "title")
    tiles = panels(figure)
    assert [axes.get_title() for axes in tiles] == [str(n) for n in range(20, 32)]
    assert {axes.images[0].get_clim() for axes in tiles} == {(-7, 7)}
    for axes, kernel in zip(tiles, kernels, strict=True):
        assert (axes.images[0].get_array() == kernel).all()
    assert figure.axes[-1].get_ylabel() == "weight"


def test_image_transform_shows_the_picture_and_all_maps_on_one_symmetric_scale():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (28, 28), dtype=np.uint8)
    maps = generator.normal(size=(12, 28, 28))
    picture, *tiles = panels(plots.draw_image_transform(image, maps, range(12), "title"))
    assert (picture.images[0].get_array() == image).all()
    assert len(tiles) == 12
    ((low, high),) = {axes.images[0].get_clim() for axes in tiles}
    assert low == -high and np.mean(np.abs(maps) > high) == pytest.approx(0.005, abs=1e-3)


def test_progression_shows_the_maps_that_vary_most():
    maps = np.zeros((20, 14, 14))
    maps[7, 3, 3], maps[11, 2, 2], maps[4] = 5, 9, 50  # map 4 is high, but the same everywhere
    figure = plots.draw_progression(np.zeros((28, 28), np.uint8), [maps], "title")
    _, first, second, *_ = panels(figure)
    assert (first.get_title(), second.get_title()) == ("11", "7")


# Style and files


@pytest.mark.parametrize("model", ["ffn", "cnn"])
def test_titles_name_model_and_data(predictions, model):
    for figure in (
        plots.draw_learning_curves(HISTORY, model, TITLE),
        plots.draw_predictions(*predictions, True, model, TITLE),
        plots.draw_confusion(np.eye(10, dtype=int), model, TITLE),
    ):
        assert figure.get_suptitle().startswith(f"{model.upper()} on {TITLE}")
    assert TITLE in plots.draw_comparison(MODELS, TITLE).get_suptitle()


def test_figure_is_a_whole_png_and_style_stays_inside(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save_figure(plots.draw_comparison(MODELS, TITLE), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    image = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    image.load()
    assert image.format == "PNG" and min(image.size) > 700
    assert len(list(tmp_path.iterdir())) == 1


def test_figure_that_cannot_be_written_is_an_error_in_words(tmp_path):
    with pytest.raises(WorldFault, match="cannot write"):
        plots.save_figure(plots.draw_comparison(MODELS, TITLE), tmp_path / "nowhere" / "a.png")


def test_nothing_is_cut_off(predictions):
    for figure in (
        plots.draw_learning_curves(HISTORY, "cnn", TITLE),
        plots.draw_predictions(*predictions, False, "cnn", TITLE),
        plots.draw_confusion(np.full((10, 10), 7), "cnn", TITLE),
        plots.draw_comparison(MODELS, TITLE),
        plots.draw_kernels(np.ones((32, 3, 3)), range(32), "title"),
    ):
        with matplotlib.rc_context(plots.STYLE):
            figure.draw_without_rendering()
            box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
