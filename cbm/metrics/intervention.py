"""What correcting concepts is worth: accuracy when more and more of an image's true concepts are told to the model.

Koh et al., "Concept Bottleneck Models", ICML 2020; the ratios are those of Xu et al., ICLR 2024. Told are whole groups,
in a random order of each image's own, and whoever is told more is told the same and some more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = tuple(step / 10 for step in range(11))
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InterventionCurve:
    """Accuracies at every ratio of concepts told.

    Attributes:
        ratios: of groups told.
        class_accuracy: share of images classified correctly.
        others_accuracy: share of correct answers about known concepts that were not told; NaN where all were.
    """

    ratios: list[float]
    class_accuracy: list[float]
    others_accuracy: list[float]

    @property
    def area(self) -> float:
        """Mean class accuracy over the ratios (trapezoid rule)."""
        y = torch.tensor(self.class_accuracy, dtype=torch.float64)
        x = torch.tensor(self.ratios, dtype=torch.float64)
        return float(torch.trapezoid(y, x) / (x[-1] - x[0]))

    def metrics(self) -> dict[str, float]:
        """``intervention_area``, and ``intervention_accuracy_30``, ``intervention_others_30`` at 30 per cent told."""
        values = {"intervention_area": self.area}
        for ratio, right, others in zip(self.ratios, self.class_accuracy, self.others_accuracy):
            values[f"intervention_accuracy_{round(100 * ratio)}"] = right
            values[f"intervention_others_{round(100 * ratio)}"] = others
        return values


def intervention_curve(
    answer: Answer, concepts: Tensor, y: Tensor, groups: Sequence[Sequence[int]], *,
    ratios: Sequence[float] = RATIOS, seed: int = 0,
) -> InterventionCurve:  # fmt: skip
    """Tell a model more and more of what is true of an image.

    Args:
        answer: what is told ``[N, K]`` (1, 0, NaN not told) to class scores ``[N, C]`` and concept probabilities
            ``[N, K]``.
        concepts: ``[N, K]`` 1, 0, NaN unknown; what is unknown is neither told nor asked.
        y: ``[N]``.
        groups: columns told together; a column of no group is told by itself.
        ratios: shares of the groups that are told.
        seed: of the order.
    """
    units = told_together(concepts, groups)
    unit_of = torch.zeros(concepts.shape[1], dtype=torch.long)  # what is never known is never told
    for number, unit in enumerate(units):
        unit_of[unit] = number
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(len(concepts), len(units), generator=generator).argsort(dim=1).argsort(dim=1)[:, unit_of]
    right, others = [], []
    for ratio in ratios:
        told = rank < round(ratio * len(units))
        scores, probability = answer(concepts.where(told, torch.nan))
        asked = ~told & ~concepts.isnan()
        right.append(float((scores.argmax(dim=1) == y).double().mean()))
        others.append(float(((probability > 0.5) == (concepts == 1))[asked].double().mean()))  # NaN if nothing is asked
    return InterventionCurve(list(ratios), right, others)


def told_together(concepts: Tensor, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Columns that are told at once: the groups, then every column of no group by itself.

    Args:
        concepts: ``[N, K]`` 1, 0, NaN unknown. A column of no group that is unknown of every image is left out.
        groups: columns each.
    """
    grouped = {k for group in groups for k in group}
    known = (~concepts.isnan()).any(dim=0)
    alone = [[k] for k in range(concepts.shape[1]) if k not in grouped and bool(known[k])]
    return [list(group) for group in groups if group] + alone
