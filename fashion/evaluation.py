"""Logits of a trained model, and how they compare with the labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from fashion.data import CLASS_COUNT, normalize

# Small enough for the feature maps to fit into a processor's cache, which is twice as fast as
# batches of 1,000.
EVALUATION_BATCH_SIZE = 250
CALIBRATION_BINS = 15  # of equal width, as in Guo et al., arXiv:1706.04599


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """Return a model's logits (N, 10), float32, for images uint8 (N, 28, 28) on its device.

    mean and std are the pixel statistics that the model was trained with. Meanwhile the model is in
    evaluation mode; it returns to its previous mode.
    """
    training = model.training
    model.eval()
    logits = [
        model(normalize(batch, mean, std)).float() for batch in images.split(EVALUATION_BATCH_SIZE)
    ]
    model.train(training)
    return torch.cat(logits)


def average_over_flip(model: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """Return logits (N, 10) of the mean probabilities of each image and its mirror image.

    The arguments are those of predict_logits.
    """
    logits, flipped = (predict_logits(model, x, mean, std) for x in (images, images.flip(2)))
    # Softmax ignores the factor 1/2 of the mean.
    return torch.logaddexp(logits.log_softmax(1), flipped.log_softmax(1))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature, between 0.1 and 10, with the lowest loss of logits / temperature.

    Dividing logits (N, 10) by it makes the confidence of predictions fit the labels (N,) without
    changing the predicted classes (Guo et al., arXiv:1706.04599).
    """

    def loss(logarithm: float) -> float:
        return F.cross_entropy(logits / math.exp(logarithm), labels).item()

    bounds = (-math.log(10), math.log(10))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def energy(logits: Tensor) -> Tensor:
    """Return the energy (N,) of logits (N, 10), high for images unlike those of the training.

    Such images get no high logit (Liu et al., arXiv:2010.03759).
    """
    return -logits.logsumexp(1)


@dataclass(frozen=True)
class Evaluation:
    """How predictions compare with the labels.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Fraction of correct predictions.
        accuracy_by_class: The same for each true class; None for a class without images.
        confusion_matrix: Numbers of images; rows are true classes, columns predicted classes.
    """

    loss: float
    accuracy: float
    accuracy_by_class: list[float | None]
    confusion_matrix: list[list[int]]


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compare logits (N, 10) with labels (N,)."""
    pairs = labels * CLASS_COUNT + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=CLASS_COUNT**2).view(CLASS_COUNT, CLASS_COUNT)
    rows = confusion.tolist()
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=(confusion.trace() / confusion.sum()).item(),
        accuracy_by_class=[
            row[label] / sum(row) if any(row) else None for label, row in enumerate(rows)
        ],
        confusion_matrix=rows,
    )


def scores_by_class(matrix: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 of each class, fractions (10,), from a confusion matrix.

    A class that is never predicted, or has no images, scores 0.
    """
    counts = np.asarray(matrix, dtype=float)
    hits = counts.diagonal()
    predicted, true = counts.sum(0), counts.sum(1)
    return {
        "precision": hits / predicted.clip(min=1),
        "recall": hits / true.clip(min=1),
        "f1": 2 * hits / (predicted + true).clip(min=1),
    }


@dataclass(frozen=True)
class Calibration:
    """How often predictions are correct, by their confidence. Empty bins are left out.

    Attributes:
        centre: Centre of each bin.
        confidence: Mean confidence of the predictions in the bin.
        accuracy: Fraction of them that is correct.
        share: Fraction of all predictions that is in the bin.
    """

    centre: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al., AAAI 2015), a fraction."""
        return float((self.share * np.abs(self.confidence - self.accuracy)).sum())


def measure_calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Group predictions, probabilities (N, 10), by confidence and compare with labels (N,)."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    sums = [np.bincount(bins, values, CALIBRATION_BINS)[filled] for values in (confidence, correct)]
    return Calibration(
        centre=(np.flatnonzero(filled) + 0.5) / CALIBRATION_BINS,
        confidence=sums[0] / counts[filled],
        accuracy=sums[1] / counts[filled],
        share=counts[filled] / len(labels),
    )
