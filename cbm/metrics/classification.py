"""Accuracy, macro accuracy and calibration of class predictions, and a paired test of two classifiers."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, calibration and loss of class predictions.

    Args:
        logits: class logits ``[N, C]``.
        labels: class indices ``[N]``.

    Returns:
        ``accuracy``; ``accuracy_macro``, the mean over classes of the accuracy within the class; ``ece``, the expected
        calibration error over 15 bins (Guo et al., ICML 2017); ``loss``, the mean cross-entropy in nats.
    """
    classes = logits.shape[1]
    return {
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "accuracy_macro": float(multiclass_accuracy(logits, labels, classes, average="macro")),
        "ece": float(multiclass_calibration_error(logits.softmax(dim=1), labels, classes, n_bins=15)),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> float:
    """Exact two-sided McNemar test of two classifiers on the same images (McNemar, Psychometrika 1947).

    Args:
        correct_a: whether classifier A is right, ``[N]`` bool.
        correct_b: whether classifier B is right, ``[N]`` bool.

    Returns:
        Probability that the images on which exactly one is right would split so unevenly if both were equally good.
    """
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)
    ]
    return min(1.0, 2 * sum(math.exp(term) for term in log_terms))
