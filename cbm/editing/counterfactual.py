"""The smallest change of concepts that flips a decision; and why one class and not another. Exact: heads are linear."""

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
        columns: the concepts, the most effective first.
        values: what their activations become.
        before: the class that was decided.
        after: the class that is.
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
    """The fewest concepts that flip the decision about one image, moved within what training images show.

    Each concept may go to its 5 % or 95 % point. What concepts add to the difference of two logits does not depend on
    each other, so the fewest are those that add most; the last is moved only as far as it must. Of several targets the
    one that takes fewest concepts, then the smallest sum of moves in standard deviations.

    Args:
        model: the bottleneck.
        x: ``[D]`` unit-norm features.
        target: the class it should become; by default any other.
        budget: most concepts that may move.
        frozen: concepts that may not.
        margin: by which the new class's logit is ahead.

    Returns:
        The change; None if the budget does not suffice, or (of a given target) if a third class comes first on the way.
    """
    logits = model(x[None])[0]
    now = int(logits.argmax())
    activation = model.activations(x[None])[0]
    ends = levels(model)
    low, high = torch.minimum(ends[0], activation), torch.maximum(ends[1], activation)
    weights = model.weights()
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
def contrast(model: ConceptBottleneck, x: Tensor, this: int, that: int) -> Tensor:
    """What every concept adds to the logit of one class more than to that of another, ``[N, K]``.

    Args:
        model: the bottleneck.
        x: ``[N, D]`` unit-norm features.
        this: why this class,
        that: and not that one?
    """
    weights = model.weights()
    return (weights[this] - weights[that]) * (model.activations(x) - model.reference)
