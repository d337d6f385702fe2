"""Accuracy, macro accuracy and calibration of class predictions, and a paired test of two classifiers."""

import math

import torch
from torch import Tensor


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, calibration and loss of class predictions.

    Args:
        logits: class logits ``[N, C]``.
        labels: class indices ``[N]``.

    Returns:
        ``accuracy``; ``accuracy_macro``, the mean of the accuracy within a class over the classes that have images;
        ``ece``, the expected calibration error over 15 bins (Guo et al., ICML 2017); ``loss``, the mean cross-entropy
        in nats.

    >>> values = classification_metrics(torch.eye(3)[[0, 0, 2, 1]], torch.tensor([0, 0, 0, 1]))  # no image of class 2
    >>> round(values["accuracy_macro"], 4)
    0.8333
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes, predicted = logits.shape[1], logits.argmax(dim=1)
    return {
        "accuracy": float((predicted == labels).double().mean()),
        "accuracy_macro": float(class_accuracies(predicted, labels, classes).nanmean()),
        "ece": float(multiclass_calibration_error(logits.softmax(dim=1), labels, classes, n_bins=15)),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def class_accuracies(predicted: Tensor, labels: Tensor, count: int) -> Tensor:
    """Accuracy within every class (its recall) ``[C]``, NaN for a class without images.

    Args:
        predicted: predicted class indices ``[N]``.
        labels: class indices ``[N]``.
        count: number of classes C.
    """
    total = torch.bincount(labels, minlength=count).double()
    right = torch.bincount(labels[predicted == labels], minlength=count)
    return right / total  # 0/0 is NaN


def chance_accuracy(labels: Tensor) -> float:
    """Accuracy of always naming the most frequent class; labels ``[N]``."""
    return float(torch.bincount(labels).max() / len(labels)) if len(labels) else float("nan")


def unequal(labels: Tensor, factor: float = 3.0) -> bool:
    """Whether the classes that have images differ in their number by more than a factor; labels ``[N]``."""
    counts = torch.bincount(labels)
    return bool(counts.max() > factor * counts[counts > 0].min()) if len(labels) else False


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> float:
    """Exact two-sided McNemar test of two classifiers on the same images (McNemar, Psychometrika 1947).

    Args:
        correct_a: whether classifier A is right, ``[N]`` bool.
        correct_b: whether classifier B is right, ``[N]`` bool.

    Returns:
        Probability that the images on which exactly one is right would split so unevenly if both were equally good.
    """
    return mcnemar_p(int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum()))


def mcnemar_p(only_a: int, only_b: int) -> float:
    """The same from the numbers of images on which only A is right, and only B.

    Example:
        >>> mcnemar_p(3, 0)
        0.25
    """
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)
    ]
    return min(1.0, 2 * sum(math.exp(term) for term in log_terms))
