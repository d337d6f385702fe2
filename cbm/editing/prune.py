"""Pruning concepts from classes: the model editing of post-hoc bottlenecks (Yuksekgonul et al., ICLR 2023)."""

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck

ALIKE = 0.9


@torch.no_grad()
def alike(model: ConceptBottleneck, columns: Tensor, cosine: float = ALIKE) -> Tensor:
    """Which concepts ``[K]`` (bool) the encoder cannot tell from the given ones.

    If only the given ones are edited, these others still show the same thing, and little changes.

    Args:
        model: any bottleneck.
        columns: the given concepts, ``[K]`` bool.
        cosine: smallest cosine of two directions that counts as alike.
    """
    directions = torch.nn.functional.normalize(model.concepts, dim=1)
    near = directions @ directions[columns].T >= cosine
    return near.any(dim=1) | columns


@torch.no_grad()
def prune(model: ConceptBottleneck, removed: Tensor, *, normalise: bool = False) -> ConceptBottleneck:
    """A copy of the model in which some classes no longer use some concepts.

    A removed concept is held at its reference value (its mean over the training images). Classes from which nothing is
    removed keep exactly the same weights and bias. A residual is not changed, so it weakens the edit.

    Args:
        model: any bottleneck; the copy has a ``LinearHead``.
        removed: which weights ``[C, K]`` (bool) are removed.
        normalise: whether the remaining weights of a class are scaled to the former sum of its absolute weights per
            standard deviation ("prune + normalise"); a class without remaining weights stays empty.
    """
    weights, spread = model.weights(), model.spread
    kept = torch.where(removed, 0.0, weights)
    if normalise:
        before, after = (weights * spread).abs().sum(dim=1), (kept * spread).abs().sum(dim=1)
        factor = torch.where((after > 0) & removed.any(dim=1), before / after.clamp(min=1e-30), 1.0)
        kept = kept * factor[:, None]
    return model.with_weights(kept, model.biases() + (weights - kept) @ model.reference)
