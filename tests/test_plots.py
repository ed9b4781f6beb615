from dataclasses import replace

from fashion import plots, style
from fashion.comparison import Suspect
from fashion.data import CLASSES, Views
from fashion.evaluation import calibration, fit_temperature
from fashion.recipe import Recipe
from fashion.style import label, styled

import numpy as np
import pytest
import torch

TITLE = "Fashion-MNIST sample, 10,000 images"
PARTS = ("training", "validation")
NAMES = ["ffn", "cnn", "softmax"]
KEYS = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
VALUES = [[1 / n, 0.5 / n, 0.5 + n / 20, 0.6 + n / 20] for n in range(1, 6)]
HISTORY = [{"epoch": n, **dict(zip(KEYS, row, strict=True))} for n, row in enumerate(VALUES, 1)]


def uncut(figure):
    """Return a figure after checking that nothing exceeds its edges."""
    with styled():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    return figure


def texts(things):
    return [thing.get_text() for thing in things]


def tiles(figure, panel=0):
    """Images and names in a panel of a figure of images."""
    axes = figure.axes[panel]
    return [image.get_array() for image in axes.images], texts(axes.texts)


@pytest.mark.parametrize("quick", [True, False])
def test_dataset_shows_training_images_of_each_class_and_views_of_one(tiny, quick):
    recipe = Recipe(epochs=20, batch_size=1, learning_rate=1, shift_share=0.5)
    still = replace(recipe, shift_share=0, flip=False)
    figure = plots.draw_dataset(tiny, {"ffn": still, "cnn": still if quick else recipe})
    (drawn, names), (shown, _) = tiles(figure), tiles(figure, 1)
    assert names[::6] == list(CLASSES)
    for number in range(10):
        first = [i for i in tiny.train.tolist() if tiny.labels[i] == number][:6]
        assert (np.array(drawn[6 * number :][:6]) == tiny.images[first].numpy()).all()
    title = " ".join(figure.axes[1].get_title().split())
    use = (
        "with augmentation, which this training does not use"
        if quick
        else "in 18 epochs of the CNN"
    )
    assert title.startswith(f"Training image {first[0]} {use}: shifted by up to 1 px")
    views = Views(tiny.images[first[:1]], replace(recipe, shift_share=1.0))
    possible = {views.show(torch.tensor([0]), n).numpy().tobytes() for n in range(18)}
    different = {np.asarray(each).tobytes() for each in shown}
    assert different == possible if quick else different < possible  # half stay in the centre


@pytest.mark.parametrize("epochs", [1, 5])
def test_learning_curves_show_training_and_validation(finished, epochs):
    history = HISTORY[:epochs]
    figure = plots.draw_loss(replace(finished["cnn"][0], history=history), TITLE)
    assert figure.get_suptitle().endswith("with augmentation, with dropout, with label smoothing")
    for axes, measure in zip(figure.axes, ("loss", "accuracy"), strict=True):
        curves = [list(line.get_ydata()) for line in axes.get_lines()]
        expected = [[row[key] for row in history] for key in KEYS if measure in key]
        assert curves == expected
        low, high = axes.get_ylim()
        assert all(low < value < high for curve in expected for value in curve[epochs > 2 :])
        assert all(low < curve[0] < high for curve in expected) == (epochs < 3)
        names = [
            f"{name}, final {curve[-1]:.3f}" for name, curve in zip(PARTS, curves, strict=True)
        ]
        assert texts(axes.get_legend().get_texts()) == names


def test_series_shows_mean_and_standard_deviation_over_seeds(finished):
    run = replace(finished["cnn"][0], history=HISTORY)
    other = [row | {"validation_loss": row["validation_loss"] + 0.2} for row in HISTORY]
    short = replace(run, history=HISTORY[:2])
    series = {"ffn": [run, replace(run, history=other)], "softmax": [short, short]}
    figure = plots.draw_learning_curves(series, TITLE)
    loss, mean = figure.axes[0], [row["validation_loss"] + 0.1 for row in HISTORY]
    assert list(loss.get_lines()[0].get_ydata()) == pytest.approx(mean)
    (band,) = loss.collections[0].get_paths()
    assert band.vertices[:, 1].max() == pytest.approx(mean[0] + 0.1 * np.sqrt(2))
    assert texts(loss.get_legend().get_texts()) == ["FFN, final 0.200", "SOFTMAX, final 0.250"]


@pytest.mark.parametrize("correct", [True, False])
def test_predictions_show_three_images_of_each_class(finished, tiny, correct):
    run, labels = finished["cnn"][0], tiny.test_labels.numpy()
    figure = plots.draw_predictions(run, tiny, correct)
    assert figure.get_suptitle().startswith("Correct" if correct else "Most confident errors")
    probabilities = run.probabilities.numpy()
    guesses, expected, names = probabilities.argmax(1), [], []
    for true, name in enumerate(CLASSES):
        chosen = [i for i in range(300) if labels[i] == true and (guesses[i] == true) == correct]
        if not correct:
            chosen.sort(key=lambda i: -probabilities[i].max())
        expected += chosen[:3]
        for i in chosen[:3]:
            guess = f"{CLASSES[guesses[i]]} {probabilities[i].max():.0%}"
            names.append(f"{guess}\ntrue: {name}\ntest image {i}")
    drawn, titles = tiles(figure)
    assert titles == names and (np.array(drawn) == tiny.test_images[expected].numpy()).all()


def test_confusion_matrix_is_in_percent_of_the_true_class():
    matrix = np.diag([90] * 10)
    matrix[3, 4] = 10
    axes, bar = uncut(plots.draw_confusion("cnn", matrix, TITLE)).axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[(4, 3)] == "10.0" and cells[(3, 3)] == "90.0" and cells[(0, 0)] == "100.0"
    assert len(cells) == 11 and axes.images[0].get_array()[3, 4] == 10
    assert texts(axes.get_yticklabels()) == texts(axes.get_xticklabels()) == list(CLASSES)
    assert axes.get_ylabel() == "true class" and bar.get_ylabel() == "share of the true class (%)"


@pytest.mark.parametrize("seeds", [1, 3])
def test_comparison_shows_scores_and_costs_of_every_network(seeds):
    models = {}
    for place, name in enumerate(NAMES):
        means = [0.85 + 0.04 * place - 0.01 * number for number in range(10)]
        scores = [{"mean": m, "min": m - 0.002, "max": m + 0.001} for m in means]
        models[name] = {
            "test_accuracy": scores[0] | {"values": [0.9] * seeds},
            "by_class": {each: {"f1": score} for each, score in zip(CLASSES, scores, strict=True)},
            "parameters": 1000 * (place + 1),
            "multiply_accumulates": 2_500_000,
            "train_seconds": {"mean": 12},
            "latency_seconds": {"1000": 0.25},
            "confusion_matrix": np.arange(100).reshape(10, 10) * seeds + place,
        }
    comparison = {"dataset": TITLE, "seeds": list(range(seeds)), "models": models}
    figure = uncut(plots.draw_comparison(comparison))
    assert ("3 seeds" in figure.get_suptitle()) == (seeds > 1)
    axes, confusions, *costs = figure.axes
    pairs = texts(confusions.get_yticklabels())  # the last is on the diagonal
    assert pairs[:2] == ["Ankle boot → Bag", "Ankle boot → Sneaker"] and len(pairs) == 8
    for place, bars in enumerate(confusions.containers):
        widths = [98, 97, 96, 95, 94, 93, 92, 91]
        assert [bar.get_width() for bar in bars] == pytest.approx(np.add(widths, place / seeds))
    assert ("seeds" in axes.get_title("left")) == (seeds > 1)
    assert texts(axes.get_yticklabels()) == [*CLASSES[::-1], "All (accuracy)"]  # by their scores
    drawn = zip(NAMES, (0.85, 0.89, 0.93), axes.get_lines(), axes.collections[1:], strict=True)
    for name, accuracy, line, ranges in drawn:
        means = accuracy - 0.01 * np.array([*range(9, -1, -1), 0])
        assert line.get_xdata() == pytest.approx(means)
        ends = np.array(ranges.get_segments())[:, :, 0]
        assert ends == pytest.approx(np.stack([means - 0.002, means + 0.001], axis=1))
        assert line.get_color() == style.colour(name)
        assert line.get_label() == f"{label(name)}, accuracy {accuracy:.2%}"
    assert texts(costs[0].texts) == ["1,000", "2,000", "3,000"]
    assert texts(costs[0].get_yticklabels()) == ["FFN", "CNN", "SOFTMAX"]
    assert [axes.texts[2].get_text() for axes in costs[1:]] == ["2.50 M", "12.0 s", "250.0 ms"]


def test_disagreements_show_both_answers_to_the_same_image(finished, tiny):
    runs, labels = [finished["ffn"][0], finished["cnn"][1]], tiny.test_labels
    figure = uncut(plots.draw_disagreements(*runs, tiny))
    confidence, guesses = torch.stack([run.logits["test"].softmax(1) for run in runs]).max(2)
    for panel, title in enumerate(("FFN correct, CNN wrong", "CNN correct, FFN wrong")):
        only = (guesses[panel] == labels) & (guesses[1 - panel] != labels)
        title += f": {int(only.sum())} of 300 images"
        assert figure.subfigs[panel].get_suptitle() == title
        surest = sorted(only.nonzero()[:, 0].tolist(), key=lambda i: -confidence[:, i].min())[:8]
        drawn, names = tiles(figure, panel)
        assert (np.array(drawn) == tiny.test_images[surest].numpy()).all()
        for name, i in zip(names, surest, strict=True):
            ffn, cnn = (f"{CLASSES[guesses[k, i]]} {confidence[k, i]:.0%}" for k in (0, 1))
            assert name == f"FFN: {ffn}\nCNN: {cnn}\ntrue: {CLASSES[labels[i]]}\ntest image {i}"


@pytest.mark.parametrize("scaled", [False, True])
def test_calibration_pools_the_runs_of_every_network(finished, tiny, scaled):
    panels = np.reshape(uncut(plots.draw_calibration(finished, tiny)).axes, (2, 2))[:, int(scaled)]
    labels, held_out = tiny.test_labels.numpy(), tiny.labels[tiny.validation]
    curves, bars = panels[0].get_lines()[1:], panels[1].containers
    for (name, runs), curve, shares in zip(finished.items(), curves, bars, strict=True):
        fitted = [fit_temperature(run.logits["validation"], held_out) for run in runs]
        pairs = zip(runs, fitted if scaled else (1, 1), strict=True)
        predicted = [(run.logits["test"] / t).softmax(1).numpy() for run, t in pairs]
        pooled = calibration(np.concatenate(predicted), np.tile(labels, 2))
        assert [bar.get_height() for bar in shares] == pytest.approx(pooled.share)
        expected = pooled.accuracy[pooled.share * 600 >= 20]
        assert list(curve.get_ydata()) == pytest.approx(expected)
        error = np.mean([calibration(each, labels).error for each in predicted])
        text = f"{label(name)}, expected calibration error {error:.1%}"
        assert curve.get_label() == text + f", temperature {np.mean(fitted):.2f}" * scaled


def test_suspects_show_image_label_and_prediction(tiny):
    suspect = Suspect("test", 3, "Shirt", 0.01, "T-shirt/top", 0.97)
    suspects = [suspect, Suspect("validation", 5, "Pullover", 0.02, "Coat", 0.9)] * 21
    figure = plots.draw_suspects(suspects, tiny)
    assert "40 of 42 images" in figure.get_suptitle()
    (first, second, *others), names = tiles(figure)
    assert (first == tiny.test_images[3].numpy()).all() and len(others) == 38
    assert (second == tiny.images[5].numpy()).all()
    assert names[0] == "label: Shirt\nnetworks: T-shirt/top 97%\ntest file, image 3"
    assert names[1].endswith("Coat 90%\ntraining file, image 5")
    assert plots.draw_suspects([], tiny).get_suptitle().endswith("in every run: none")
