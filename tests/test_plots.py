import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

import plots
from comparison import Suspect, calibrate, summarize_values
from data import CLASS_NAMES
from files import WorldFault

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


def make_comparison(seeds):
    """What compare returns, in short, with made-up numbers: class 9 is the hardest."""
    models = {}
    for name, accuracy in (("ffn", 0.85), ("cnn", 0.93)):
        matrix = np.diag([90] * 10)
        matrix[6, 0], matrix[2, 4] = 30, 20
        values = [accuracy + 0.001 * seed for seed in range(seeds)]
        models[name] = {
            "test_accuracy": summarize_values(values),
            "by_class": {
                label: {
                    measure: summarize_values([value - 0.01 * number for value in values])
                    for measure in ("precision", "recall", "f1")
                }
                for number, label in enumerate(CLASS_NAMES)
            },
            "expected_calibration_error": summarize_values([0.02] * seeds),
            "confusion_matrix": matrix.tolist(),
            "parameters": 1000,
            "multiply_accumulates": 2_500_000,
            "train_seconds": summarize_values([12.0] * seeds),
            "latency_seconds": {"1": 0.001, "1000": 0.25},
        }
    return {"dataset": TITLE, "seeds": list(range(seeds)), "models": models}


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


@pytest.mark.parametrize(("seeds", "measure"), [(1, "Test accuracy"), (3, "F1")])
def test_comparison_shows_classes_hardest_at_the_bottom(seeds, measure):
    by_class = plots.draw_comparison(make_comparison(seeds)).axes[0]
    assert by_class.get_title("left").startswith(f"{measure} by class")
    assert by_class.get_yticklabels()[0].get_text() == CLASS_NAMES[9]
    assert {text.get_text() for text in by_class.get_legend().get_texts()} == {"FFN", "CNN"}
    # Only several seeds have an interval to draw.
    assert bool(by_class.containers[0].has_xerr) == (seeds > 1)


def test_comparison_shows_the_most_frequent_confusions():
    confusions = plots.draw_comparison(make_comparison(2)).axes[1]
    texts = [label.get_text() for label in confusions.get_yticklabels()]
    assert texts[0] == "FFN: Shirt taken for T-shirt/top"
    assert texts[1] == "FFN: Pullover taken for Coat"
    assert texts[plots.CONFUSIONS_SHOWN] == "CNN: Shirt taken for T-shirt/top"
    assert confusions.texts[0].get_text() == "25.0%"


def test_comparison_shows_each_seed_and_the_costs():
    _, _, accuracies, *costs = plots.draw_comparison(make_comparison(3)).axes
    drawn = [list(line.get_xdata()) for line in accuracies.get_lines()]
    assert [0.85, 0.851, 0.852] in drawn and [0.93, 0.931, 0.932] in drawn
    shown = [axes.texts[0].get_text() for axes in costs]
    assert shown == ["1,000", "2.5 million", "12.0 s", "250 ms"]


def test_series_shows_mean_and_band_over_seeds():
    other = [{**entry, "validation_loss": entry["validation_loss"] + 0.2} for entry in HISTORY]
    figure = plots.draw_series({"ffn": [HISTORY, other], "cnn": [HISTORY, HISTORY]}, TITLE)
    loss = figure.axes[0]
    mean = [entry["validation_loss"] + 0.1 for entry in HISTORY]
    assert list(loss.get_lines()[0].get_ydata()) == pytest.approx(mean)
    (band,) = loss.collections[0].get_paths()
    assert band.vertices[:, 1].max() == pytest.approx(mean[0] + 0.1 * np.sqrt(2))
    assert "2 seeds" in figure.get_suptitle()


def test_calibration_shows_each_bin_and_the_error(predictions):
    _, labels, probabilities = predictions
    calibration = calibrate(probabilities, labels)
    figure = plots.draw_calibration({"ffn": calibration, "cnn": calibration}, make_comparison(2))
    diagonal, curve, _ = figure.axes[0].get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert (curve.get_ydata() == calibration.accuracy).all()
    assert "error 2.0%" in figure.axes[0].get_legend().get_texts()[1].get_text()


def test_suspects_show_image_label_and_suggestion(tiny_dataset):
    training_index = int(tiny_dataset.validation_indices[0])
    suspects = [
        Suspect("test", 3, 6, 0.01, 0, 0.97),
        Suspect("validation", training_index, 2, 0.02, 4, 0.9),
    ]
    figure = plots.draw_suspects(suspects, tiny_dataset)
    first, second = panels(figure)
    assert (first.images[0].get_array() == tiny_dataset.test_images[3].numpy()).all()
    assert (second.images[0].get_array() == tiny_dataset.images[training_index].numpy()).all()
    assert first.get_title() == "label: Shirt\nT-shirt/top 97%"
    assert "2 images" in figure.get_suptitle()


def test_no_suspects_are_said_to_be_none(tiny_dataset):
    assert "none" in plots.draw_suspects([], tiny_dataset).texts[-1].get_text()


# Style and files


@pytest.mark.parametrize("model", ["ffn", "cnn"])
def test_titles_name_model_and_data(predictions, model):
    for figure in (
        plots.draw_learning_curves(HISTORY, model, TITLE),
        plots.draw_predictions(*predictions, True, model, TITLE),
        plots.draw_confusion(np.eye(10, dtype=int), model, TITLE),
    ):
        assert figure.get_suptitle().startswith(f"{model.upper()} on {TITLE}")
    assert TITLE in plots.draw_comparison(make_comparison(3)).get_suptitle()


def test_figure_is_a_whole_png_and_style_stays_inside(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save_figure(plots.draw_comparison(make_comparison(3)), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    image = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    image.load()
    assert image.format == "PNG" and min(image.size) > 700
    assert len(list(tmp_path.iterdir())) == 1


def test_figure_that_cannot_be_written_is_an_error_in_words(tmp_path):
    with pytest.raises(WorldFault, match="cannot write"):
        plots.save_figure(plots.draw_comparison(make_comparison(3)), tmp_path / "nowhere" / "a.png")


def test_nothing_is_cut_off(predictions):
    for figure in (
        plots.draw_learning_curves(HISTORY, "cnn", TITLE),
        plots.draw_predictions(*predictions, False, "cnn", TITLE),
        plots.draw_confusion(np.full((10, 10), 7), "cnn", TITLE),
        plots.draw_comparison(make_comparison(1)),
        plots.draw_comparison(make_comparison(3)),
        plots.draw_series({"ffn": [HISTORY] * 2, "cnn": [HISTORY] * 2}, TITLE),
    ):
        with matplotlib.rc_context(plots.STYLE):
            figure.draw_without_rendering()
            box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_benchmark_shows_speeds_from_zero_and_growth_by_size():
    models = {
        name: {
            "classic_images_per_second": 1000 * factor,
            "images_per_second": 5000 * factor,
            "growth": {
                "seconds_by_images": {6000: 0.1 * factor, 55000: factor},
                "seconds_by_width": {0.5: 0.3 * factor, 4: 11 * factor},
            },
        }
        for name, factor in (("ffn", 3), ("cnn", 1))
    }
    speed, images, width = plots.draw_benchmark(models).axes
    assert [bar.get_height() for bar in speed.patches] == [3000, 1000, 15000, 5000]
    assert speed.get_ylim()[0] == 0
    for axes, key in ((images, "seconds_by_images"), (width, "seconds_by_width")):
        for line, model in zip(axes.lines, models.values(), strict=True):
            assert dict(zip(*line.get_data(), strict=True)) == model["growth"][key]
