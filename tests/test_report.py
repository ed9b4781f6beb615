from types import SimpleNamespace

import pytest

from fashion import report
from fashion.comparison import summarize_values
from fashion.data import CLASS_NAMES
from fashion.evaluation import Evaluation


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.44, "8.4 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.6, "1 h 0 min"),
        (4200, "1 h 10 min"),
    ],
)
def test_durations_are_easy_to_read(seconds, text):
    assert report.format_duration(seconds) == text


def test_dataset_is_described_by_its_sizes_and_statistics(capsys):
    dataset = SimpleNamespace(
        title="Fashion-MNIST",
        train_indices=range(55_000),
        validation_indices=range(5_000),
        test_images=range(10_000),
        mean=0.28604,
        std=0.353,
    )
    report.print_dataset(dataset)
    assert capsys.readouterr().out == (
        "Fashion-MNIST: 55,000 training, 5,000 validation and 10,000 test images; pixel mean "
        "0.2860, standard deviation 0.3530\n"
    )


def test_epoch_is_a_row_below_the_header_with_the_time_left(capsys):
    row = {
        "epoch": 3,
        "train_loss": 0.5,
        "train_accuracy": 0.8125,
        "validation_loss": 0.25,
        "validation_accuracy": 0.90625,
        "learning_rate": 0.004,
    }
    trainer = SimpleNamespace(
        history=[{}, {}, row],
        recipe=SimpleNamespace(epochs=10),
        epoch_seconds=[100.0, 100.0, 2.0],  # two epochs of an earlier, slower process
    )
    report.print_epoch_header()
    report.print_epoch(trainer, resumed_at=2)
    header, line = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()) == "3/10 0.5000 0.2500 81.25% 90.62% 4.00e-03 2.0 14 s"
    # The numbers end where the names of their columns end.
    for name, value in (("train loss", "0.5000"), ("val acc", "90.62%"), ("seconds", "2.0")):
        assert header.index(name) + len(name) == line.index(value) + len(value)


def make_run(flip):
    """Return what the table of results shows of a run, trained with or without mirror images."""
    return SimpleNamespace(
        parameters=567_434,
        train_seconds=125.0,
        history=[{"validation_accuracy": 0.90625}],
        test=Evaluation(0.25, 0.875, [], []),
        flip_averaged_accuracy=0.9375,
        seed=3,
        metadata={"recipe": {"flip": flip}},
    )


def test_results_are_a_row_per_model_and_the_stand_in_is_pointed_out(capsys):
    run = make_run(flip=True)
    for name, warning in (("fashion-mnist", []), ("synthetic", ["nothing about Fashion-MNIST."])):
        dataset = SimpleNamespace(name=name, title="some images")
        report.print_results(dataset, {"ffn": run, "third": run})
        title, header, *rows = capsys.readouterr().out.strip().splitlines()
        assert title == "Results on some images, seed 3"
        assert " ".join(rows[0].split()) == "FFN 567,434 2 min 5 s 90.62% 87.50% 93.75%"
        assert rows[1].startswith("THIRD ")
        assert len(header) == len(rows[0]) == len(rows[1])
        assert rows[2].endswith("averaged over each image and its mirror image")
        assert [line[-len(warning[0]) :] for line in rows[3:]] == warning


def test_models_trained_without_mirror_images_are_named(capsys):
    run = make_run(flip=False)
    dataset = SimpleNamespace(name="fashion-mnist", title="some images")
    report.print_results(dataset, {"ffn": run})
    assert "(FFN trained without mirror images)" in capsys.readouterr().out


def test_comparison_shows_any_number_of_models(capsys):
    accuracy, score = summarize_values([0.8, 0.9]), summarize_values([0.25, 0.5])
    model = {
        "test_accuracy": accuracy,
        "flip_averaged_accuracy": accuracy,
        "ensemble_accuracy": 0.9,
        "expected_calibration_error": summarize_values([0.01, 0.02]),
        "parameters": 1234,
        "multiply_accumulates": 56789,
        "train_seconds": summarize_values([120.0, 130.0]),
        "latency_seconds": {"1": 0.001, "1000": 0.25},
        "seeds_needed": {"0.001": 17},
        "by_class": {
            name: dict.fromkeys(("precision", "recall", "f1"), score) for name in CLASS_NAMES
        },
    }
    mcnemar = {"first": "b", "second": "a", "seed": 4, "p_value": 0.5}
    difference = {
        "of": "a - b",
        "test_accuracy": summarize_values([0.01, 0.02]),
        "mcnemar_of_first_seed": mcnemar | {"only_first_correct": 8, "only_second_correct": 9},
    }
    report.print_comparison(
        {
            "seeds": [4, 5],
            "dataset": "some images",
            "models": dict.fromkeys(("a", "b", "c"), model),
            "differences": [difference] * 3,
        }
    )
    printed = capsys.readouterr().out
    assert "Seeds 4, 5 on some images" in printed
    for name in "ABC":
        assert f"{name}: test accuracy 80.00% 90.00%\n  mean 85.00%, standard dev" in printed
    assert printed.count("1.0 ms for 1 image, 250.0 ms for 1000 images") == 3
    assert printed.count("0.1 points: 17") == 3
    assert printed.count("A - B: +1.50 points (") == 3
    assert "on seed 4: 8 images classified correctly only by B, 9 only by A, p = 0.5" in printed
    header, *rows = printed.splitlines()[-11:]
    assert [row[:11].strip() for row in rows] == list(CLASS_NAMES)
    # Student's t for 1 degree of freedom is 12.7; the standard error is 12.5 points.
    assert all(row[11:].split() == ["37.5", "±", "158.8"] * 9 for row in rows)
    assert header[11:].split()[:18:2] == ["A"] * 3 + ["B"] * 3 + ["C"] * 3
