"""How many concepts a class needs: number of effective concepts (NEC, Srivastava et al., VLG-CBM, NeurIPS 2024)."""

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck


def top_concepts(model: ConceptBottleneck, count: int) -> Tensor:
    """``[C, min(count, K)]`` concepts that matter most to every class: largest weight times spread, in that order."""
    importance = model.importance().abs()
    return importance.topk(min(count, importance.shape[1]), dim=1).indices


def truncated_weights(model: ConceptBottleneck, count: int) -> Tensor:
    """The weights ``[C, K]`` left when every class may use its ``count`` most important concepts only.

    A concept that is cut is held at its mean over the training images, not at zero: cosines share a large offset, and
    setting it to zero would shift the classes against each other for no reason that concerns the concept. The weights
    that stay are scaled to the class's former sum of importances (the "prune and normalise" of post-hoc bottlenecks,
    Yuksekgonul et al., ICLR 2023), so that a class that spread its weight over 50 concepts is not simply outvoted.
    For ``ConceptBottleneck.logits``, which counts concepts from their reference value.
    """
    importance = model.importance().abs()
    keep = torch.zeros_like(importance).scatter(1, top_concepts(model, count), 1.0)
    rest = (importance * keep).sum(dim=1, keepdim=True)
    return model.weights() * keep * importance.sum(dim=1, keepdim=True) / rest.clamp(min=1e-30)


def nonzero_concepts(weights: Tensor) -> float:
    """NEC: non-zero weights ``[C, K]`` per class, on average."""
    return float((weights != 0).sum(dim=1).double().mean())


def effective_concepts(importance: Tensor) -> float:
    """How many equally strong concepts would spread a class's weight as ``[C, K]`` does, on average.

    The participation ratio ``(sum |w|)^2 / sum w^2`` per class: K for equal weights, 1 for a single one.
    """
    w = importance.abs().double()
    return float((w.sum(dim=1).square() / w.square().sum(dim=1).clamp(min=1e-300)).mean())
