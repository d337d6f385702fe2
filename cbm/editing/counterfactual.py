"""The smallest change of concepts that flips a decision, and a comparison of two classes. Exact for linear heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.editing.apply import levels
from cbm.layers import ConceptBottleneck


@dataclass(frozen=True)
class Counterfactual:
    """A change that flips a decision.

    Attributes:
        columns: columns of the concepts, the most effective first.
        values: new activations of these concepts.
        before: predicted class before the change.
        after: predicted class after the change.
    """

    columns: list[int]
    values: list[float]
    before: int
    after: int


@torch.no_grad()
def counterfactual(
    model: ConceptBottleneck,
    x: Tensor,
    *,
    target: int | None = None,
    budget: int = 5,
    frozen: Sequence[int] = (),
    margin: float = 1e-3,
) -> Counterfactual | None:
    """The fewest concepts that flip the decision about one image, changed within the range of the training images.

    Each concept may move to its 5 % or 95 % point. Contributions of concepts to the difference of two logits do not
    depend on each other, so the smallest set consists of those that contribute most; the last one moves only as far as
    needed. Among several targets the one with the fewest concepts is taken, then the one with the smallest sum of moves
    in standard deviations.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[D]``.
        target: class that the image should have; by default any other class.
        budget: largest number of concepts that may change.
        frozen: columns of concepts that must stay as they are.
        margin: distance by which the new class's logit leads.

    Returns:
        The change; None if the budget does not suffice, or if a third class wins before the given target does.
    """
    logits = model(x[None])[0]
    now = int(logits.argmax())
    activation = model.activations(x[None])[0]
    ends = levels(model)
    low, high = torch.minimum(ends[0], activation), torch.maximum(ends[1], activation)
    weights = model.votes(x[None])[0].T.contiguous()
    found = []
    for other in [target] if target is not None else [c for c in range(len(logits)) if c != now]:
        if other == now:
            continue
        rates = weights[other] - weights[now]
        room = torch.where(rates > 0, high - activation, low - activation)
        gain = rates * room
        gain[list(frozen)] = 0.0
        need = float(logits[now] - logits[other]) + margin
        best = gain.argsort(descending=True, stable=True)[:budget]
        enough = (gain[best].cumsum(0) >= need).nonzero()
        if target is not None and not len(enough):
            return None
        if not len(enough):
            continue
        chosen = best[: int(enough[0]) + 1]
        moves = room[chosen].clone()
        rest = need - float(gain[chosen[:-1]].sum())
        moves[-1] = rest / rates[chosen[-1]]
        size = float((moves.abs() / model.spread[chosen].clamp(min=1e-12)).sum())
        values = (activation[chosen] + moves).tolist()
        after = int((logits + weights[:, chosen] @ moves).argmax())
        if target is not None and after != target:  # a third class came first
            continue
        found.append((len(chosen), after != other, size, Counterfactual(chosen.tolist(), values, now, after)))
    return min(found, key=lambda entry: entry[:3])[3] if found else None


@torch.no_grad()
def label_counterfactual(
    model: ConceptBottleneck,
    x: Tensor,
    label: int,
    *,
    budget: int = 5,
    frozen: Sequence[int] = (),
    margin: float = 1e-3,
) -> Counterfactual | None:
    """The fewest concepts that change whether one image is said to have a label.

    One logit against its threshold: contributions add up and no third class can come first, so the greedy choice is the
    best there is. Concepts move as in ``counterfactual``.

    Args:
        model: a bottleneck of labels.
        x: unit-norm features ``[D]``.
        label: index of the label.
        budget: largest number of concepts that may change.
        frozen: columns of concepts that must stay as they are.
        margin: distance from the threshold.

    Returns:
        The change, whose ``before`` and ``after`` are 1 for there and 0 for not there; None if the budget does not
        suffice.
    """
    logits = model(x[None])[0]
    lead = float(logits[label]) - model.cut(label)
    activation = model.activations(x[None])[0]
    ends = levels(model)
    low, high = torch.minimum(ends[0], activation), torch.maximum(ends[1], activation)
    rates = model.votes(x[None])[0, :, label] * (-1.0 if lead > 0 else 1.0)
    room = torch.where(rates > 0, high - activation, low - activation)
    gain = rates * room
    gain[list(frozen)] = 0.0
    need = abs(lead) + margin
    best = gain.argsort(descending=True, stable=True)[:budget]
    enough = (gain[best].cumsum(0) >= need).nonzero()
    if not len(enough):
        return None
    chosen = best[: int(enough[0]) + 1]
    moves = room[chosen].clone()
    moves[-1] = (need - float(gain[chosen[:-1]].sum())) / rates[chosen[-1]]
    before = int(lead > 0)
    return Counterfactual(chosen.tolist(), (activation[chosen] + moves).tolist(), before, 1 - before)


@torch.no_grad()
def contrast(model: ConceptBottleneck, x: Tensor, this: int, that: int) -> Tensor:
    """Why one class and not another: what every concept adds to the difference of their logits, ``[N, K]``.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        this: index of the class to explain.
        that: index of the class that it is compared with.
    """
    weights = model.weights()
    return (weights[this] - weights[that]) * (model.activations(x) - model.reference)
