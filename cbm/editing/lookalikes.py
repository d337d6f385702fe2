"""Concepts that go with others: what a model would read on for a removed concept, and how much of it is still said.

Two texts can point to the same thing in pictures though their directions are not close ("a ship", "a ship on the
water"). What counts is how they behave: concepts are look-alikes if their scores rise and fall together from picture to
picture *within* a class, so that what makes the class a class does not count. Look-alikes of look-alikes are too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck, Embedded, SparseCode

LEAST = 0.7  # correlation: half of the variance is shared
PICTURES = 20_000  # drawn where there are more: a correlation of .7 is then known to .004


@dataclass(frozen=True)
class LookAlike:
    """A concept that goes with given ones.

    Attributes:
        concept: its column.
        via: column of the concept that it goes with.
        correlation: correlation of the two within classes.
    """

    concept: int
    via: int
    correlation: float


@torch.no_grad()
def look_alikes(model: ConceptBottleneck, given: Tensor, x: Tensor, y: Tensor, least: float = LEAST) -> list[LookAlike]:
    """The concepts whose scores go with those of the given ones within classes, the strongest first.

    Args:
        model: any bottleneck.
        given: the given concepts, ``[K]`` bool.
        x: unit-norm features ``[N, D]`` of images, by preference those that the model was trained on.
        y: class indices ``[N]``; of pictures with any number of labels ``[N, L]``, all count as one class.
        least: smallest correlation that counts.

    Returns:
        The others with the concept through which each was reached; none of the given ones.
    """
    if not bool(given.any()):
        return []
    variance, covariance_with = _covariances(model, x, one_class_each(y))
    spread = variance.clamp(min=0).sqrt()
    alive = spread > 1e-9 * float(spread.max())
    reached = given & alive
    found: list[LookAlike] = []
    frontier = reached.nonzero()[:, 0]
    while len(frontier):
        correlation = covariance_with(frontier) / (spread[:, None] * spread[frontier]).clamp(min=1e-300)
        best = correlation.max(dim=1)
        new = (best.values >= least) & alive & ~reached
        rows = new.nonzero()[:, 0]
        found += [LookAlike(k, int(frontier[best.indices[k]]), min(float(best.values[k]), 1.0)) for k in rows.tolist()]
        reached |= new
        frontier = rows
    return sorted(found, key=lambda each: -each.correlation)


def one_class_each(y: Tensor) -> Tensor:
    """Class indices ``[N]``; zeros for labels ``[N, L]``."""
    return y if y.dim() == 1 else torch.zeros(len(y), dtype=torch.long)


def _covariances(model: ConceptBottleneck, x: Tensor, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Variances ``[K]`` of the scores within classes, and a function from columns ``[m]`` to covariances ``[K, m]``."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:PICTURES]
    x, y, free = x[rows].float(), y[rows], max(min(len(x), PICTURES) - 1, 1)
    if not isinstance(model.activation, Embedded | SparseCode):
        centred, directions = within_classes(x.double(), y), model.concepts.double()
        inner = centred.T @ centred / free
        variance = ((directions @ inner) * directions).sum(dim=1)
        return variance, lambda columns: directions @ (inner @ directions[columns].T)
    scores = within_classes(model.scores(x).double(), y)
    return scores.square().sum(dim=0) / free, lambda columns: scores.T @ scores[:, columns] / free


def within_classes(values: Tensor, y: Tensor) -> Tensor:
    """Values ``[N, D]`` minus the mean of their class."""
    count = int(y.max()) + 1
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, y, values)
    return values - (sums / torch.bincount(y, minlength=count).clamp(min=1)[:, None])[y]


def still_said(before: Tensor, after: Tensor, y: Tensor) -> float:
    """How much of what removed concepts said the others still say.

    What was said is the difference of the logits, from picture to picture within a class. If the remaining logits rise
    and fall with it, other concepts carry the same information: the value is the slope of the one on the other. 0:
    nothing of it is left; 1: the others say it as loudly as the removed ones did; below 0: they said the contrary.

    Args:
        before: logits ``[N, C]`` with the concepts.
        after: logits ``[N, C]`` without them.
        y: class indices ``[N]``, or labels ``[N, C]``.

    Returns:
        The slope; NaN if nothing was said.

    Example:
        >>> import torch
        >>> said, other = torch.randn(2, 400, 5, generator=torch.Generator().manual_seed(0))
        >>> y = torch.zeros(400, dtype=torch.long)
        >>> [round(still_said(said + rest, rest, y), 1) for rest in (other, said + other)]
        [0.0, 1.0]
    """
    if y.dim() == 1:  # softmax: only differences count
        before, after = (z - z.mean(dim=1, keepdim=True) for z in (before, after))
    groups = one_class_each(y)
    said, left = (within_classes(z.double(), groups) for z in (before - after, after))
    power = float(said.square().sum())
    return float((said * left).sum()) / power if power > 0 else float("nan")
