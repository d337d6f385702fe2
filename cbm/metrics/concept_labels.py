"""Are the concepts right? Concept scores compared with the concept labels of a data set, if it has any."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def concept_label_metrics(
    scores: Tensor, truth: Tensor, val_scores: Tensor, val_truth: Tensor
) -> tuple[dict[str, float], list[float]]:
    """Accuracy and AUROC of concept scores.

    A cosine has no natural threshold, so each concept gets the one that is best on the validation split.

    Args:
        scores: scores ``[N, M]`` of M concepts with labels, on the evaluated split.
        truth: concept labels ``[N, M]``: 1, 0, or NaN if unknown.
        val_scores: scores ``[V, M]`` on the validation split.
        val_truth: concept labels ``[V, M]`` on the validation split.

    Returns:
        As ``cut_metrics``.
    """
    return cut_metrics(scores, truth, [best_threshold(*column) for column in zip(val_scores.T, val_truth.T)])


def cut_metrics(scores: Tensor, truth: Tensor, cuts: Sequence[float]) -> tuple[dict[str, float], list[float]]:
    """Accuracy at given cut points, and AUROC, of concept scores.

    Args:
        scores: scores ``[N, M]`` of M concepts with labels.
        truth: concept labels ``[N, M]``: 1, 0, or NaN if unknown.
        cuts: M scores above which a concept counts as shown; NaN where there is none.

    Returns:
        ``concept_accuracy`` and ``concept_auroc`` (means over concepts present in some images and absent in others;
        the accuracy over those with a cut point, and left out without any), ``concepts_matched``; and the M AUROCs
        (NaN where undefined).
    """
    from torchmetrics.functional.classification import binary_auroc

    accuracies, aurocs = [], []
    for k in range(scores.shape[1]):
        known = ~truth[:, k].isnan()
        target = truth[known, k].long()
        if not len(target) or target.min() == target.max():
            aurocs.append(float("nan"))
            continue
        aurocs.append(float(binary_auroc(scores[known, k], target, thresholds=None)))
        if not math.isnan(cuts[k]):
            accuracies.append(float(((scores[known, k] > cuts[k]) == target.bool()).float().mean()))
    defined = [value for value in aurocs if value == value]
    if not defined:
        return {"concepts_matched": 0.0}, aurocs
    means = {"concept_accuracy": sum(accuracies) / len(accuracies)} if accuracies else {}
    means |= {"concept_auroc": sum(defined) / len(defined), "concepts_matched": float(len(defined))}
    return means, aurocs


def concept_probability_metrics(probability: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy (at one half), AUROC and calibration of concept probabilities.

    Args:
        probability: probabilities ``[N, M]`` of M concepts with labels.
        truth: concept labels ``[N, M]``: 1, 0, or NaN if unknown.

    Returns:
        ``concept_accuracy``; ``all_concepts_accuracy``, the share of images for which every known concept is right;
        ``concept_auroc``, the mean over concepts that are present in some images and absent in others;
        ``concept_ece``, the expected calibration error of all answers together (15 bins); ``concepts_matched``.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    known, probability = ~truth.isnan(), probability.clamp(0, 1)  # torchmetrics takes anything beyond for logits
    right = (probability > 0.5) == (truth == 1)
    aurocs = []
    for k in range(truth.shape[1]):
        target = truth[known[:, k], k].long()
        if len(target) and target.min() != target.max():
            aurocs.append(float(binary_auroc(probability[known[:, k], k], target, thresholds=None)))
    return {
        "concept_accuracy": float(right[known].double().mean()),
        "all_concepts_accuracy": float((right | ~known).all(dim=1).double().mean()),
        "concept_auroc": sum(aurocs) / len(aurocs) if aurocs else float("nan"),
        "concept_ece": float(binary_calibration_error(probability[known], truth[known].long(), n_bins=15)),
        "concepts_matched": float(known.any(dim=0).sum()),
    }


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """The threshold with the highest accuracy of ``score > threshold``, midway between two scores.

    Args:
        scores: scores ``[N]`` of one concept.
        truth: concept labels ``[N]``: 1, 0, or NaN if unknown.

    Returns:
        The threshold; NaN if no label is known.
    """
    known = ~truth.isnan()
    order = scores[known].argsort()
    values, labels = scores[known][order].double(), truth[known][order].double()
    if not len(values):
        return math.nan
    # a cut after i sorted scores: right are the i lowest that are absent and the rest that are present
    zero = torch.zeros(1, dtype=torch.float64)
    right = torch.cat([zero, (1 - labels).cumsum(0)]) + (labels.sum() - torch.cat([zero, labels.cumsum(0)]))
    best = int(right.argmax())
    padded = torch.cat([values[:1] - 1, values, values[-1:] + 1])
    return float((padded[best] + padded[best + 1]) / 2)
