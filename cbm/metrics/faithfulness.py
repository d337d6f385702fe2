"""Do the concepts with the longest bars decide? Delete them, or start without any and put them back.

Deletion and insertion curves (Petsiuk et al., "RISE", BMVC 2018) over concepts instead of pixels: a concept is deleted
by holding it at its reference value, as everywhere. The bars of a linear head add up, so such a curve falls by
construction; what it is worth shows beside a random order and the order of another image, and beside random concepts
whose bars add up to as much.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck, Unnamed, predict_logits

STEPS = 20
STRONGEST = 5
MOST_NEEDED = 50
PRODUCTS = 2**28  # of images x concepts x classes, which decide how many images are measured


@dataclass(frozen=True)
class Faithfulness:
    """What deleting and inserting concepts does to N images.

    Attributes:
        shares: shares of the K concepts that are deleted, or inserted, ``[S + 1]``.
        deletion: share of the decisions that stay, ``[S + 1]``, by the name of the order: ``own``, ``random``, or
            ``other`` (the order of another image).
        insertion: share of the decisions that are reached from the reference image, ``[S + 1]``, by the same names.
        flipped: share of the decisions that change without the five concepts of the longest bars.
        flipped_random: the same without as many random others as have bars of the same total length.
        needed: how many concepts, the longest bars first, reach the decision from the reference image, ``[N]``; one
            more than ``MOST_NEEDED`` if so many do not.
    """

    shares: Tensor
    deletion: dict[str, Tensor]
    insertion: dict[str, Tensor]
    flipped: float
    flipped_random: float
    needed: Tensor

    def metrics(self) -> dict[str, float]:
        """Areas under the curves, flips, and the median number of concepts needed, with keys as in ``metrics.json``."""
        values = {}
        for name, curves in (("deletion", self.deletion), ("insertion", self.insertion)):
            for order, curve in curves.items():
                key = f"{name}_area" + ("" if order == "own" else f"_{order}")
                values[key] = float(torch.trapezoid(curve, self.shares))
        values |= {"flipped_without_5": self.flipped, "flipped_without_random": self.flipped_random}
        return values | {"concepts_needed": float(self.needed.double().median())}


def rows_for(model: ConceptBottleneck, most: int = 256) -> int:
    """How many images are enough, and not too many for so many concepts and classes."""
    return min(most, max(16, PRODUCTS // max(model.weights().numel(), 1)))


@torch.no_grad()
def faithfulness(model: ConceptBottleneck, x: Tensor, *, seed: int = 0) -> Faithfulness:
    """Delete and insert concepts in the order of the length of their bars.

    Args:
        model: a bottleneck that names one class, with K concepts. Its residual stays; of concept embeddings, what
            pictures say under a concept's name goes with it.
        x: unit-norm features ``[N, D]`` of images.
        seed: random seed of the random order and of the other images.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = predict_logits(model, x)
    decided = logits.argmax(dim=1)
    bars = _Bars(model, x)
    length = bars.of(decided).abs()  # [N, K]
    count, k = length.shape
    own = length.argsort(dim=1, descending=True, stable=True)
    orders = {
        "own": own,
        "random": torch.rand(count, k, generator=generator).argsort(dim=1),
        "other": own.roll(1 + int(torch.randint(max(count - 1, 1), (1,), generator=generator)), dims=0),
    }
    sizes = torch.linspace(0, k, STEPS + 1).round().long().unique()
    deletion: dict[str, list[float]] = {name: [] for name in orders}
    insertion: dict[str, list[float]] = {name: [] for name in orders}
    for name, order in orders.items():
        rank = order.argsort(dim=1)
        for size in sizes.tolist():
            first = (rank < size).to(length)
            deletion[name].append(_kept(logits - bars.sum(first), decided))
            insertion[name].append(_kept(logits - bars.sum(1 - first), decided))
    strongest = torch.zeros_like(length).scatter(1, own[:, :STRONGEST], 1.0)
    return Faithfulness(
        sizes.double() / k,
        {name: torch.tensor(values, dtype=torch.float64) for name, values in deletion.items()},
        {name: torch.tensor(values, dtype=torch.float64) for name, values in insertion.items()},
        1 - _kept(logits - bars.sum(strongest), decided),
        1 - _kept(logits - bars.sum(_as_long(length, strongest, generator)), decided),
        _needed(logits, bars, own, decided),
    )


class _Bars:
    """What every concept adds to every logit of N images, beyond its reference value."""

    def __init__(self, model: ConceptBottleneck, x: Tensor):
        self.weights = model.weights()
        self.away = model.activations(x) - model.reference
        self.rest = model.residual.by_concept(x) if isinstance(model.residual, Unnamed) else None

    def of(self, classes: Tensor) -> Tensor:
        """Those of one class per image ``[N]``: ``[N, K]``."""
        bars = self.weights[classes] * self.away
        return bars if self.rest is None else bars + self.rest[torch.arange(len(classes)), classes]

    def sum(self, chosen: Tensor) -> Tensor:
        """What the chosen concepts ``[N, K]`` (1 or 0) add, ``[N, C]``."""
        total = (self.away * chosen) @ self.weights.T
        return total if self.rest is None else total + torch.einsum("nck,nk->nc", self.rest, chosen)


def _kept(logits: Tensor, decided: Tensor) -> float:
    return float((logits.argmax(dim=1) == decided).double().mean())


def _as_long(length: Tensor, strongest: Tensor, generator: torch.Generator) -> Tensor:
    """Random other concepts ``[N, K]`` (1 or 0), as many as are needed for bars as long together as the strongest."""
    order = (torch.rand(length.shape, generator=generator) + strongest).argsort(dim=1)  # the strongest come last
    others = length * (1 - strongest)
    before = others.gather(1, order).cumsum(dim=1) - others.gather(1, order)
    goal = (length * strongest).sum(dim=1, keepdim=True)
    return torch.zeros_like(length).scatter(1, order, (before < goal).to(length)) * (1 - strongest)


def _needed(logits: Tensor, bars: _Bars, own: Tensor, decided: Tensor) -> Tensor:
    """How many concepts, the longest bars first, reach the decision from the reference image, ``[N]``."""
    now = logits - bars.sum(torch.ones_like(bars.away))
    needed = torch.full_like(decided, MOST_NEEDED + 1)
    rows = torch.arange(len(own))
    for size in range(min(MOST_NEEDED, own.shape[1]) + 1):
        if size:
            k = own[:, size - 1]
            now = now + bars.weights[:, k].T * bars.away[rows, k][:, None]
            now = now if bars.rest is None else now + bars.rest[rows, :, k]
        reached = now.argmax(dim=1) == decided
        needed = torch.where(reached & (needed > MOST_NEEDED), size, needed)
    return needed
