"""How many concepts a class needs: number of effective concepts (NEC, Srivastava et al., VLG-CBM, NeurIPS 2024)."""

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck


def top_concepts(model: ConceptBottleneck, count: int) -> Tensor:
    """Columns ``[C, min(count, K)]`` of the most important concepts of every class, by weight times spread."""
    importance = model.importance().abs()
    return importance.topk(min(count, importance.shape[1]), dim=1).indices


def truncated_weights(model: ConceptBottleneck, count: int) -> Tensor:
    """The weights ``[C, K]`` if every class uses only its ``count`` most important concepts.

    A removed concept is held at its mean over the training images, not at zero: cosines share a large offset, and
    setting them to zero would shift the classes against each other. The remaining weights are scaled to the class's
    former sum of importances (the "prune and normalise" of post-hoc bottlenecks, Yuksekgonul et al., ICLR 2023), so
    that a class that spread its weight over 50 concepts is not outvoted. The weights are meant for
    ``ConceptBottleneck.logits``, which counts concepts from their reference value.
    """
    importance = model.importance().abs()
    keep = torch.zeros_like(importance).scatter(1, top_concepts(model, count), 1.0)
    rest = (importance * keep).sum(dim=1, keepdim=True)
    return model.weights() * keep * importance.sum(dim=1, keepdim=True) / rest.clamp(min=1e-30)


def nonzero_concepts(weights: Tensor) -> float:
    """NEC: the mean number of non-zero weights per class, from weights ``[C, K]``."""
    return float((weights != 0).sum(dim=1).double().mean())


def effective_concepts(importance: Tensor) -> float:
    """Mean effective number of concepts per class, from importances ``[C, K]``.

    The participation ratio ``(sum |w|)^2 / sum w^2`` per class: K for equal weights, 1 for a single one.
    """
    w = importance.abs().double()
    return float((w.sum(dim=1).square() / w.square().sum(dim=1).clamp(min=1e-300)).mean())
