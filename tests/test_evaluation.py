"""Predictions and their measures, against numbers worked out by hand and SciPy."""

from fashion import evaluation
from fashion.data import normalize

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

LOGITS = torch.tensor([[2.0, 1.0, 0.0] + [-9.0] * 7, [0.0, 1.0, 0.0] + [-9.0] * 7])


def test_predict_equals_one_large_batch_and_leaves_the_mode(finished, tiny):
    model = finished["cnn"][0].model
    images = tiny.test_images.repeat(2, 1, 1)[:510]  # more than two batches
    with torch.inference_mode():
        expected = model.eval()(normalize(images, tiny.mean, tiny.std))
    model.train()
    logits = evaluation.predict(model, images, tiny.mean, tiny.std)
    assert model.training
    assert torch.allclose(logits, expected, atol=1e-4)


def test_evaluate_uses_the_validation_images(finished, tiny):
    run = finished["ffn"][0]
    loss, accuracy = evaluation.evaluate(run.model, tiny)
    logits, labels = run.logits["validation"], tiny.labels[tiny.validation]
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert accuracy == np.mean(logits.argmax(1).numpy() == labels.numpy())


def test_scores_by_class():
    matrix = np.zeros((10, 10), int)
    matrix[0, :2] = [6, 2]  # eight images of class 0, of which two are predicted as class 1
    matrix[1, :2] = [4, 8]
    scores = evaluation.scores_by_class(matrix.tolist())
    assert scores["precision"][:3] == pytest.approx([0.6, 0.8, 0])
    assert scores["recall"][:3] == pytest.approx([6 / 8, 8 / 12, 0])
    assert scores["f1"][:3] == pytest.approx([12 / 18, 16 / 22, 0])


def test_energy_is_the_negative_logsumexp():
    assert evaluation.energy(LOGITS).numpy() == pytest.approx(-logsumexp(LOGITS.numpy(), axis=1))


@pytest.mark.parametrize("factor", [0.5, 3])
def test_temperature_undoes_a_factor_of_the_logits(factor):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5000, 10, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert evaluation.fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_calibration_error_by_hand():
    # Two predictions of 0.9 of which one is right, two of 0.6 which are both right.
    rows = [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]]
    probabilities = np.array([row + [0] * 8 for row in rows])
    result = evaluation.calibration(probabilities, np.array([0, 0, 0, 1]))
    assert result.confidence == pytest.approx([0.6, 0.9])
    assert result.accuracy == pytest.approx([1, 0.5])
    assert result.share == pytest.approx([0.5, 0.5])
    assert result.error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert result.centre == pytest.approx([9.5 / 15, 13.5 / 15])
    certain = evaluation.calibration(np.eye(10), np.arange(10))  # in the last bin
    assert certain.centre == pytest.approx([14.5 / 15]) and certain.error == 0
