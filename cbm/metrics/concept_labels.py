"""Are the concepts right? Where a data set says which concepts an image shows, scores are compared with that."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error


def concept_label_metrics(
    scores: Tensor, truth: Tensor, val_scores: Tensor, val_truth: Tensor
) -> tuple[dict[str, float], list[float]]:
    """Accuracy and AUROC of concept scores.

    A cosine has no natural threshold: each concept's is the one that is best on the validation split.

    Args:
        scores: ``[N, M]`` scores of M matched concepts on the evaluated split.
        truth: ``[N, M]`` 1, 0 or NaN (unknown).
        val_scores: ``[V, M]`` on the validation split.
        val_truth: ``[V, M]``.

    Returns:
        ``concept_accuracy`` and ``concept_auroc`` (means over concepts present in some images and absent in
        others), ``concepts_matched``; and the M AUROCs (NaN where undefined).
    """
    accuracies, aurocs = [], []
    for k in range(scores.shape[1]):
        known = ~truth[:, k].isnan()
        target = truth[known, k].long()
        if not len(target) or target.min() == target.max():
            aurocs.append(float("nan"))
            continue
        aurocs.append(float(binary_auroc(scores[known, k], target, thresholds=None)))
        threshold = best_threshold(val_scores[:, k], val_truth[:, k])
        accuracies.append(float(((scores[known, k] > threshold) == target.bool()).float().mean()))
    defined = [value for value in aurocs if value == value]
    if not defined:
        return {"concepts_matched": 0.0}, aurocs
    means = {
        "concept_accuracy": sum(accuracies) / len(accuracies),
        "concept_auroc": sum(defined) / len(defined),
        "concepts_matched": float(len(defined)),
    }
    return means, aurocs


def concept_probability_metrics(probability: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy (at one half), AUROC and calibration of concept probabilities.

    Args:
        probability: ``[N, M]``.
        truth: ``[N, M]`` 1, 0 or NaN (unknown).

    Returns:
        ``concept_accuracy``; ``all_concepts_accuracy``, the share of images of which every known concept is right;
        ``concept_auroc``, mean over concepts of which both kinds are known; ``concept_ece``, expected calibration error
        of all answers together (15 bins); ``concepts_matched``.
    """
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
    """The cut with the highest accuracy of ``score > cut``, midway between two scores; scores and truth ``[N]``."""
    known = ~truth.isnan()
    order = scores[known].argsort()
    values, labels = scores[known][order].double(), truth[known][order].double()
    if not len(values):
        return 0.0
    # a cut after i sorted scores: right are the i lowest that are absent and the rest that are present
    zero = torch.zeros(1, dtype=torch.float64)
    right = torch.cat([zero, (1 - labels).cumsum(0)]) + (labels.sum() - torch.cat([zero, labels.cumsum(0)]))
    best = int(right.argmax())
    padded = torch.cat([values[:1] - 1, values, values[-1:] + 1])
    return float((padded[best] + padded[best + 1]) / 2)
