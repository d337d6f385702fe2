"""Heads: from concept scores to class logits."""

import torch
from torch import Tensor, nn

from cbm.kernels import association_vectors


class Head(nn.Module):
    """The base class of heads.

    Attributes:
        bias: biases ``[C]``, or None.
    """

    bias: Tensor | None

    def weight(self) -> Tensor:
        """Weights ``[C, K]``."""
        raise NotImplementedError


class AssociationHead(Head):
    """A row-stochastic class-concept association, ``softmax_k(W)`` (LaBo: Yang et al., CVPR 2023, section 3.3).

    Every class distributes a mass of one over the K concepts: no negative evidence, and no bias where classes compete.

    Args:
        logits: initial W ``[C, K]`` (see ``owner_prior``).
        bias: initial biases ``[L]`` of labels, which compete with nothing; None for classes.

    Attributes:
        pending: class vectors that wait for their gradient while ``cbm.solvers.AssociationAdam`` trains the head.
    """

    def __init__(self, logits: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.pending: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def vectors(self, concepts: Tensor) -> Tensor:
        """Class vectors ``softmax_k(W) T`` ``[C, D]`` of concepts ``[K, D]``, without the association."""
        if self.pending is None or not torch.is_grad_enabled() or not self.logits.requires_grad:
            return association_vectors(self.logits, concepts)[0]
        vectors, lse = association_vectors(self.logits.detach(), concepts)
        self.pending.append((vectors.requires_grad_(), lse, concepts))
        return vectors

    def weight(self) -> Tensor:
        """Weights ``[C, K]``, whose rows sum to one."""
        return self.logits.softmax(dim=1)


class LinearHead(Head):
    """A free linear head.

    Args:
        weight: initial weights ``[C, K]``.
        bias: initial biases ``[C]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.matrix = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def weight(self) -> Tensor:
        """Weights ``[C, K]``."""
        return self.matrix


def owner_prior(owners: Tensor, own_mass: float | None) -> Tensor:
    """Association logits under which a class spends ``own_mass`` of its mass on the concepts it owns.

    With k of K concepts owned at value v and the rest at 0, the owned mass is ``k e^v / (k e^v + K - k)``; this solves
    for v, class by class, so the prior means the same for 7 classes and for 1,000.

    Args:
        owners: which class owns which concept, ``[C, K]`` bool (several classes may own one concept).
        own_mass: mass between 0 and 1. None sets v = 1 for every class, as the published code does: the owned mass is
            then 31 % for 7 classes, 2.7 % for 100, 0.27 % for 1,000.

    Returns:
        Initial logits ``[C, K]``; a class that owns nothing (or everything) starts uniform.
    """
    owned = owners.sum(dim=1, keepdim=True).double()
    total = owners.shape[1]
    if own_mass is None:
        value = torch.ones_like(owned)
    else:
        value = (own_mass * (total - owned) / ((1 - own_mass) * owned)).log()
    return torch.where((owned > 0) & (owned < total), value, 0.0).float() * owners
