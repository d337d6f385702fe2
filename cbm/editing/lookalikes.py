"""Concepts that go with others: what a model would read on for a removed concept, and how much it still does.

Two texts can point to the same thing in pictures though their directions are not close ("a ship", "a ship on the
water"). What counts is how they behave: concepts are look-alikes if their scores rise and fall together from picture to
picture *within* a class, so that what makes the class a class does not count. Look-alikes of look-alikes are too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck, Embedded, SparseCode

LEAST = 0.7  # correlation: half of the variance is shared
PICTURES = 20_000  # of which scores are computed where they are no product of features and directions


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
def look_alikes(
    model: ConceptBottleneck, given: Tensor, x: Tensor, y: Tensor, least: float = LEAST
) -> list[LookAlike]:
    """The concepts whose scores go with those of the given ones within classes, the strongest first.

    Args:
        model: any bottleneck.
        given: the given concepts, ``[K]`` bool.
        x: unit-norm features ``[N, D]`` of images, by preference those that the model was trained on.
        y: class indices ``[N]``.
        least: smallest correlation that counts.

    Returns:
        The others with the concept through which each was reached; none of the given ones.
    """
    covariance_with = _covariances(model, x, y)
    variance = torch.cat([covariance_with(part).diagonal(offset=-int(part[0])) for part in _parts(len(given))])
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
        found += [
            LookAlike(k, int(frontier[best.indices[k]]), min(float(best.values[k]), 1.0)) for k in rows.tolist()
        ]
        reached |= new
        frontier = rows
    return sorted(found, key=lambda each: -each.correlation)


def _parts(count: int, size: int = 1024) -> tuple[Tensor, ...]:
    return torch.arange(count).split(size)


def _covariances(model: ConceptBottleneck, x: Tensor, y: Tensor):
    """A function from columns ``[m]`` to covariances ``[K, m]`` of the scores with them, within classes."""
    if not isinstance(model.activation, Embedded | SparseCode):
        centred = within_classes(x.double(), y)
        inner = centred.T @ centred / max(len(x) - 1, 1)
        directions = model.concepts.double()
        return lambda columns: directions @ (inner @ directions[columns].T)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:PICTURES]
    scores = within_classes(model.scores(x[rows]).double(), y[rows])
    return lambda columns: scores.T @ scores[:, columns] / max(len(scores) - 1, 1)


def within_classes(values: Tensor, y: Tensor) -> Tensor:
    """Values ``[N, D]`` minus the mean of their class."""
    count = int(y.max()) + 1
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, y, values)
    return values - (sums / torch.bincount(y, minlength=count).clamp(min=1)[:, None])[y]


@torch.no_grad()
def still_followed(model: ConceptBottleneck, removed: Tensor, x: Tensor, y: Tensor) -> float:
    """How far the decisions of a model go with concepts that it does not read (any more).

    The share of what moves the logits from picture to picture within a class that a linear function of these concepts'
    scores explains (adjusted for their number): 0 if the model says the same whatever they are.

    Args:
        model: the model after the removal.
        removed: the removed concepts, ``[K]`` bool.
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
    """
    columns = removed.nonzero()[:, 0].tolist()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:PICTURES]
    scores = within_classes(model.scores(x[rows], columns).double(), y[rows])
    z = model.logits(x[rows]).double()
    z = within_classes(z - z.mean(dim=1, keepdim=True), y[rows])
    free = len(rows) - len(y.unique())
    if free <= len(columns) or not bool(z.any()):
        return float("nan")
    explained = torch.linalg.lstsq(scores, z, driver="gelsd").solution
    left = float((z - scores @ explained).square().sum() / z.square().sum())
    return max(0.0, 1 - left * free / (free - len(columns)))
