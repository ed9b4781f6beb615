import io
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fashion import plots
from fashion.comparison import Suspect, summarize_values
from fashion.data import CLASS_NAMES, SYNTHETIC, TITLES, Dataset
from fashion.evaluation import measure_calibration
from fashion.files import RunError

TITLE = TITLES[SYNTHETIC]
NAMES = ["first", "second", "third"]
STYLES = plots.assign_styles(NAMES)
STYLE = STYLES["first"]
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "validation_loss": 0.5 / epoch,
        "train_accuracy": 0.5 + epoch / 20,
        "validation_accuracy": 0.6 + epoch / 20,
    }
    for epoch in range(1, 6)
]


def make_comparison(seeds):
    """A result of compare with made-up numbers; class 9 has the lowest scores."""
    models = {}
    for place, name in enumerate(NAMES):
        matrix = np.diag([90] * 10)
        matrix[6, 0], matrix[2, 4] = 30, 20
        values = [0.85 + 0.04 * place + 0.001 * seed for seed in range(seeds)]
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
            "parameters": 1000 * (place + 1),
            "multiply_accumulates": 2_500_000,
            "train_seconds": summarize_values([12.0] * seeds),
            "latency_seconds": {"1": 0.001, "1000": 0.25},
        }
    return {"dataset": TITLE, "seeds": list(range(seeds)), "models": models}


@pytest.fixture(scope="module")
def predictions():
    """Images, labels and probabilities of 400 predictions, a fifth of them incorrect."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 10
    probabilities = generator.dirichlet(np.full(10, 0.1), 400)
    correct = generator.random(400) < 0.8
    for row in np.flatnonzero(correct):
        best = probabilities[row].argmax()
        probabilities[row, [best, labels[row]]] = probabilities[row, [labels[row], best]]
    images = generator.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    return images, labels, probabilities


def panels(figure):
    """The axes that show an image."""
    return [axes for axes in figure.axes if axes.images]


def uncut(figure):
    """Return a figure after checking that nothing exceeds its edges."""
    with plots.styled():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    return figure


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# Style


def test_styles_are_distinct_and_named_after_the_models():
    styles = plots.assign_styles(f"model{number}" for number in range(20))
    assert list(styles) == [f"model{number}" for number in range(20)]
    assert styles["model7"].label == "MODEL7"
    assert len({(style.colour, style.marker) for style in styles.values()}) == 20
    few = list(styles.values())[:5]
    assert len({style.colour for style in few}) == len({style.marker for style in few}) == 5


@pytest.mark.parametrize("count", [1, 3])
def test_grouped_bars_touch_and_fill_the_group(count):
    offsets, width = plots.group_bars(count, 0.8)
    assert np.diff(offsets) == pytest.approx([width] * (count - 1))
    assert offsets[0] - width / 2 == pytest.approx(-0.4)
    assert offsets[-1] + width / 2 == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.57, "57%"), (0.825, "82.5%"), (1.0, "100%"), (-0.15, "−15%"), (-1e-17, "0%")],
)
def test_percent_has_the_necessary_decimals(value, label):
    assert plots.percent(value) == label


def test_style_applies_only_while_a_figure_is_made():
    before = dict(matplotlib.rcParams)
    with plots.styled():
        assert plots.STYLE.items() <= matplotlib.rcParams.items()
    assert dict(matplotlib.rcParams) == before
    axes = plots.draw_confusion(np.eye(10), STYLE, TITLE).axes[0]
    assert not axes.spines["top"].get_visible()
    assert dict(matplotlib.rcParams) == before


def test_figure_is_saved_as_a_complete_png(tmp_path):
    plots.save_figure(Figure(figsize=(2, 3)), tmp_path / "a.png")
    image = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    image.load()
    assert image.format == "PNG" and image.size == (260, 390)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RunError, match="cannot write"):
        plots.save_figure(Figure(), tmp_path / "missing" / "a.png")


# Examples


@pytest.mark.parametrize("correct", [True, False])
def test_examples_are_evenly_distributed_over_the_classes(predictions, correct):
    _, labels, probabilities = predictions
    chosen = plots.choose_examples(labels, probabilities, correct)
    assert len(set(chosen)) == 25
    assert ((probabilities[chosen].argmax(1) == labels[chosen]) == correct).all()
    assert set(np.bincount(labels[chosen], minlength=10)) == {2, 3}


def test_errors_are_the_most_confident_of_their_class(predictions):
    _, labels, probabilities = predictions
    chosen = plots.choose_examples(labels, probabilities, correct=False)
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    for label in range(10):
        confidence = np.sort(probabilities[wrong[labels[wrong] == label]].max(1))[::-1]
        shown = chosen[labels[chosen] == label]
        assert list(probabilities[shown].max(1)) == list(confidence[: len(shown)])


def test_classes_without_errors_leave_their_places_to_others():
    labels = np.repeat([0, 1], 50)
    probabilities = np.eye(10)[np.repeat([0, 2], 50)]
    chosen = plots.choose_examples(labels, probabilities, correct=False)
    assert len(chosen) == 25 and set(labels[chosen]) == {1}


# One model


def test_learning_curves_show_training_and_validation():
    figure = uncut(plots.draw_loss(HISTORY, STYLE, TITLE))
    assert figure.get_suptitle() == f"Learning curves, FIRST on {TITLE}"
    for axes, measure in zip(figure.axes, ("loss", "accuracy"), strict=True):
        curves = [list(line.get_ydata()) for line in axes.get_lines()]
        assert curves == [
            [entry[f"{part}_{measure}"] for entry in HISTORY] for part in ("train", "validation")
        ]
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()
    assert legend(figure.axes[1]) == ["training, final 75.0%", "validation, final 85.0%"]


@pytest.mark.parametrize(
    ("correct", "title"),
    [(True, "Correct predictions"), (False, "Most confident errors of each class")],
)
def test_predictions_show_class_probability_and_truth(predictions, correct, title):
    images, labels, probabilities = predictions
    figure = uncut(plots.draw_predictions(*predictions, correct, STYLE, TITLE))
    assert figure.get_suptitle() == f"{title}, FIRST on {TITLE}"
    chosen = plots.choose_examples(labels, probabilities, correct)
    for axes, index in zip(panels(figure), chosen, strict=True):
        assert (axes.images[0].get_array() == images[index]).all()
        guess = probabilities[index].argmax()
        expected = f"{CLASS_NAMES[guess]} {probabilities[index, guess]:.0%}"
        if not correct:
            expected += f"\ntrue: {CLASS_NAMES[labels[index]]}"
        assert axes.get_title() == expected
        assert axes.get_xlabel() == f"test image {index}"


def test_confusion_matrix_is_in_percent_of_the_true_class():
    matrix = np.diag([90] * 10)
    matrix[3, 4] = 10
    figure = uncut(plots.draw_confusion(matrix, STYLE, TITLE))
    assert figure.get_suptitle() == f"Confusion matrix, FIRST on {TITLE}"
    axes, bar = figure.axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[(4, 3)] == "10.0" and texts[(3, 3)] == "90.0" and texts[(0, 0)] == "100.0"
    assert len(texts) == 11
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASS_NAMES)
    assert bar.get_ylabel() == "share of the true class (%)"


# Several models


@pytest.mark.parametrize(
    ("seeds", "title"),
    [(1, "Test accuracy by class"), (3, "Test F1 score by class, 95% intervals over seeds")],
)
def test_comparison_orders_classes_by_their_scores(seeds, title):
    by_class = plots.draw_comparison(make_comparison(seeds), STYLES).axes[0]
    assert by_class.get_title("left") == title
    labels = [label.get_text() for label in by_class.get_yticklabels()]
    assert labels == list(CLASS_NAMES)[::-1]
    assert legend(by_class) == ["FIRST", "SECOND", "THIRD"]
    expected = 0.85 + 0.001 * (seeds - 1) / 2 - 0.01 * np.arange(10)[::-1]
    assert by_class.containers[0].lines[0].get_xdata() == pytest.approx(expected)
    assert bool(by_class.containers[0].has_xerr) == (seeds > 1)


def test_comparison_shows_confusions_accuracies_and_costs_of_every_model():
    comparison = make_comparison(3)
    figure = uncut(plots.draw_comparison(comparison, STYLES))
    assert figure.get_suptitle() == f"Test results on {TITLE}, 3 seeds per model"
    _, confusions, accuracies, *costs = figure.axes
    labels = [label.get_text() for label in confusions.get_yticklabels()]
    assert len(labels) == 3 * plots.CONFUSIONS_SHOWN
    assert labels[0] == "FIRST: Shirt → T-shirt/top"
    assert labels[1] == "FIRST: Pullover → Coat"
    assert labels[2 * plots.CONFUSIONS_SHOWN] == "THIRD: Shirt → T-shirt/top"
    assert confusions.texts[0].get_text() == "25.0%"
    drawn = [list(line.get_xdata()) for line in accuracies.get_lines()]
    for model in comparison["models"].values():
        assert model["test_accuracy"]["values"] in drawn
    assert [text.get_text() for text in accuracies.texts][2] == "93.10% ± 0.10"
    assert [text.get_text() for text in costs[0].texts] == ["1,000", "2,000", "3,000"]
    assert [axes.texts[2].get_text() for axes in costs[1:]] == ["2.5 M", "12.0 s", "250.0 ms"]


def test_series_shows_mean_and_standard_deviation_over_seeds():
    other = [{**entry, "validation_loss": entry["validation_loss"] + 0.2} for entry in HISTORY]
    histories = {"first": [HISTORY, other], "second": [HISTORY] * 2, "third": [HISTORY[:2]] * 2}
    figure = uncut(plots.draw_learning_curves(histories, STYLES, TITLE))
    assert "2 seeds" in figure.get_suptitle()
    loss = figure.axes[0]
    mean = [entry["validation_loss"] + 0.1 for entry in HISTORY]
    assert list(loss.get_lines()[0].get_ydata()) == pytest.approx(mean)
    (band,) = loss.collections[0].get_paths()
    assert band.vertices[:, 1].max() == pytest.approx(mean[0] + 0.1 * np.sqrt(2))
    assert legend(loss) == ["FIRST, 5 epochs", "SECOND, 5 epochs", "THIRD, 2 epochs"]


def test_calibration_shows_every_model(predictions):
    _, labels, probabilities = predictions
    calibrations = {
        name: measure_calibration(probabilities[: 100 * number], labels[: 100 * number])
        for number, name in enumerate(NAMES, start=1)
    }
    figure = uncut(plots.draw_calibration(calibrations, make_comparison(2), STYLES))
    axes, shares = figure.axes
    diagonal, *curves = axes.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    bars = [container.patches for container in shares.containers]
    for calibration, curve, group in zip(calibrations.values(), curves, bars, strict=True):
        assert (curve.get_ydata() == calibration.accuracy).all()
        assert [bar.get_height() for bar in group] == list(calibration.share)
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for group in bars for bar in group)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))
    assert legend(axes)[1] == "FIRST, expected calibration error 2.0%"


@pytest.fixture
def dataset():
    images = torch.randint(256, (30, 28, 28), dtype=torch.uint8)
    labels, indices = torch.arange(30) % 10, torch.arange(30)
    test_images = images.flip(0)
    return Dataset(SYNTHETIC, images, labels, indices, indices, test_images, labels, 0.3, 0.35)


def test_suspects_show_image_label_and_prediction(dataset):
    suspects = [Suspect("test", 3, 6, 0.01, 0, 0.97), Suspect("validation", 5, 2, 0.02, 4, 0.9)]
    figure = plots.draw_suspects(suspects, dataset)
    first, second = panels(figure)
    assert (first.images[0].get_array() == dataset.test_images[3].numpy()).all()
    assert (second.images[0].get_array() == dataset.images[5].numpy()).all()
    assert first.get_title() == "label: Shirt\nmodels: T-shirt/top 97%"
    assert second.get_xlabel() == "training file, image 5"
    assert "2 images whose" in figure.get_suptitle()


def test_suspects_show_at_most_40_images_or_none(dataset):
    suspects = [Suspect("test", 3, 6, 0.01, 0, 0.97)] * 41
    figure = plots.draw_suspects(suspects, dataset)
    assert len(panels(figure)) == 40 and "41 images (40 shown)" in figure.get_suptitle()
    assert plots.draw_suspects([], dataset).texts[-1].get_text() == "none"


def test_benchmark_shows_every_loop_of_every_model():
    models = {
        name: {
            "target_accuracy": 0.922,
            "loops": {
                "ours": {"images_per_second": 5 * speed, "seconds_to_target": 12.34},
                "other": {"images_per_second": speed, "seconds_to_target": None},
                "absent": None,
            },
        }
        for name, speed in {"first": 3000, "second": 1000}.items()
    }
    first, second = uncut(plots.draw_benchmark(models, STYLES)).axes
    assert [bar.get_width() for bar in first.patches] == [15000, 3000]
    assert [text.get_text() for text in second.texts] == [
        "5,000 images/s, 12.3 s",
        "1,000 images/s, accuracy not reached",
    ]
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "other"]
    assert "92.2% test accuracy" in first.get_title() and "SECOND" in second.get_title()
