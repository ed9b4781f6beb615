import numpy as np
import pytest
import torch
from torch import nn

from fashion.data import normalize
from fashion.evaluation import (
    EVALUATION_BATCH_SIZE,
    average_over_flip,
    energy,
    evaluate,
    fit_temperature,
    measure_calibration,
    predict_logits,
    scores_by_class,
)


@pytest.fixture
def model():
    """A linear model with dropout, in training mode."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))


@pytest.fixture
def images():
    """Random images: a full batch and an incomplete one."""
    return torch.randint(256, (EVALUATION_BATCH_SIZE + 7, 28, 28), dtype=torch.uint8)


def test_logits_are_those_of_the_model_in_evaluation_mode(model, images):
    logits = predict_logits(model, images, 0.25, 0.5)
    assert model.training and not logits.requires_grad
    expected = model.eval()(normalize(images, 0.25, 0.5))
    torch.testing.assert_close(logits, expected.detach())
    predict_logits(model, images, 0.25, 0.5)
    assert not model.training


def test_flip_averaging_is_the_mean_over_both_views(model, images):
    averaged = average_over_flip(model, images, 0.25, 0.5).softmax(1)
    mirrored = torch.from_numpy(images.numpy()[:, :, ::-1].copy())
    plain, flipped = (predict_logits(model, x, 0.25, 0.5).softmax(1) for x in (images, mirrored))
    torch.testing.assert_close(averaged, (plain + flipped) / 2)
    assert (averaged - plain).abs().max() > 0.01


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_factor_of_the_logits(factor):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator)
    labels = logits.softmax(1).multinomial(1, generator=generator).squeeze(1)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)


def test_temperature_of_perfect_predictions_is_limited():
    assert fit_temperature(0.5 * torch.eye(10), torch.arange(10)) == pytest.approx(0.1, rel=0.01)


def test_energy_is_low_if_any_logit_is_high():
    logits = torch.zeros(3, 10)
    logits[1, 4], logits[2] = 50, -50
    assert energy(logits).tolist() == pytest.approx([-np.log(10), -50, 50 - np.log(10)])


def test_evaluation_of_four_predictions_by_hand():
    labels = torch.tensor([0, 0, 1, 2])
    logits = torch.full((4, 10), -100.0)
    for row, prediction in enumerate([0, 1, 1, 1]):
        logits[row, prediction] = 0
    result = evaluate(logits, labels)
    assert result.accuracy == 0.5
    assert result.accuracy_by_class[:3] == [0.5, 1, 0]
    assert result.accuracy_by_class[3:] == [None] * 7
    expected = np.zeros((10, 10), dtype=int)
    expected[0, 0] = expected[0, 1] = expected[1, 1] = expected[2, 1] = 1
    assert result.confusion_matrix == expected.tolist()
    # Two correct predictions cost nothing, two wrong ones 100 nats each.
    assert result.loss == pytest.approx(50)


def test_precision_recall_and_f1_by_hand():
    matrix = np.zeros((10, 10))
    matrix[0, :2] = 6, 2
    matrix[1, :2] = 4, 8
    scores = scores_by_class(matrix)
    assert scores["precision"] == pytest.approx([0.6, 0.8] + [0] * 8)
    assert scores["recall"] == pytest.approx([0.75, 8 / 12] + [0] * 8)
    assert scores["f1"] == pytest.approx([12 / 18, 16 / 22] + [0] * 8)


def test_calibration_by_hand():
    probabilities = np.full((4, 10), 0.0)
    for row, confidence in enumerate([0.9, 0.92, 0.61, 0.63]):
        probabilities[row] = (1 - confidence) / 9
        probabilities[row, 0] = confidence
    calibration = measure_calibration(probabilities, np.array([0, 0, 0, 5]))
    assert calibration.centre == pytest.approx([9.5 / 15, 13.5 / 15])
    assert calibration.confidence == pytest.approx([0.62, 0.91])
    assert calibration.accuracy == pytest.approx([0.5, 1.0])
    assert calibration.share == pytest.approx([0.5, 0.5])
    assert calibration.error == pytest.approx(0.5 * 0.12 + 0.5 * 0.09)


def test_full_confidence_is_in_the_last_bin():
    calibration = measure_calibration(np.eye(10), np.arange(10))
    assert calibration.centre == pytest.approx([14.5 / 15])
    assert calibration.error == 0
