"""Predictions of a network, and how they compare with the labels."""

import math
from dataclasses import dataclass

from fashion.data import CLASSES, Dataset, normalize

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_SIZE = 250  # its feature maps fit into a processor's cache: twice as fast as 1,000
BINS = 15  # of equal width, as in Guo et al., arXiv:1706.04599


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """Return the logits (N, 10), float32, for images uint8 (N, 28, 28) on the model's device."""
    training = model.training
    model.eval()
    batches = images.split(BATCH_SIZE)
    logits = torch.cat([model(normalize(batch, mean, std)).float() for batch in batches])
    model.train(training)
    return logits


def average_over_flip(logits: Tensor, flipped: Tensor) -> Tensor:
    """Return logits of the mean probabilities of each image and its mirror image."""
    # Softmax ignores the factor 1/2 of the mean.
    return torch.logaddexp(logits.log_softmax(1), flipped.log_softmax(1))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of correct predictions."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def evaluate(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of the validation images."""
    images, labels = dataset.images[dataset.validation], dataset.labels[dataset.validation]
    logits = predict(model, images, dataset.mean, dataset.std)
    return F.cross_entropy(logits, labels).item(), accuracy(logits, labels)


def confusion_matrix(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Return numbers of images; rows are true classes, columns predicted classes."""
    count = len(CLASSES)
    pairs = labels * count + logits.argmax(1)
    return torch.bincount(pairs, minlength=count**2).view(count, count).tolist()


def scores_by_class(matrix: list[list[int]]) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 of each class, fractions (10,), from a confusion matrix.

    A class that is never predicted, or has no images, scores 0.
    """
    counts = np.asarray(matrix, dtype=float)
    hits, predicted, true = counts.diagonal(), counts.sum(0), counts.sum(1)
    return {
        "precision": hits / predicted.clip(min=1),
        "recall": hits / true.clip(min=1),
        "f1": 2 * hits / (predicted + true).clip(min=1),
    }


def energy(logits: Tensor) -> Tensor:
    """Return the energy (N,): high for images unlike those of the training (arXiv:2010.03759)."""
    return -logits.logsumexp(1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature, from 0.1 to 10, with the lowest loss of logits / temperature.

    Dividing by it makes confidence fit accuracy without changing predicted classes
    (Guo et al., arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar  # half a second that only finished trainings need

    def loss(logarithm: float) -> float:
        return F.cross_entropy(logits / math.exp(logarithm), labels).item()

    bounds = (-math.log(10), math.log(10))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


@dataclass(frozen=True)
class Calibration:
    """How often predictions are correct, by their confidence. Empty bins are left out."""

    centre: np.ndarray  # of each bin
    confidence: np.ndarray  # mean of the predictions in the bin
    accuracy: np.ndarray  # share of them that is correct
    share: np.ndarray  # of all predictions that is in the bin

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al., AAAI 2015), a fraction."""
        return float((self.share * np.abs(self.confidence - self.accuracy)).sum())


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Group predictions, probabilities (N, 10), by confidence and compare them with labels (N,)."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    filled, bins, counts = np.unique(bins, return_inverse=True, return_counts=True)
    mean, share = (np.bincount(bins, values) / counts for values in (confidence, correct))
    return Calibration((filled + 0.5) / BINS, mean, share, counts / len(labels))
