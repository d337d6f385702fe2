"""Interventions: accuracy as more and more of an image's concepts are set to the truth.

Koh et al., "Concept Bottleneck Models", ICML 2020; the ratios are those of Xu et al., ICLR 2024. Whole groups are set,
in a random order for each image; a larger share includes the groups of a smaller one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = tuple(step / 10 for step in range(11))
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InterventionCurve:
    """Accuracies for every share of concepts that are set.

    Attributes:
        ratios: shares of the groups that are set.
        class_accuracy: share of images classified correctly.
        others_accuracy: accuracy of labelled concepts that were not set; NaN if all were.
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
        """``intervention_area``, ``intervention_accuracy_30`` and ``intervention_others_30`` (30 % are set), ..."""
        values = {"intervention_area": self.area}
        for ratio, right, others in zip(self.ratios, self.class_accuracy, self.others_accuracy):
            values[f"intervention_accuracy_{round(100 * ratio)}"] = right
            values[f"intervention_others_{round(100 * ratio)}"] = others
        return values


def intervention_curve(
    answer: Answer,
    concepts: Tensor,
    y: Tensor,
    groups: Sequence[Sequence[int]],
    *,
    numbers: Sequence[int] = (),
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> InterventionCurve:
    """Accuracy as more and more concepts of an image are set to the truth.

    Args:
        answer: function from known concepts ``[N, K]`` (1, 0, NaN if unknown) to class scores ``[N, C]`` and concept
            probabilities ``[N, K]``.
        concepts: concept labels ``[N, K]``: 1, 0, or NaN if unknown; unknown ones are neither set nor scored.
        y: class indices ``[N]``.
        groups: lists of columns that are set together; a column in no group is set alone.
        numbers: columns that hold numbers in the unit that the answer function reads: they are set, but not scored as
            right or wrong.
        ratios: shares of the groups to set.
        seed: random seed for the order of the groups.
    """
    units = told_together(concepts, groups)
    unit_of = torch.zeros(concepts.shape[1], dtype=torch.long)  # what is never known is never told
    for number, unit in enumerate(units):
        unit_of[unit] = number
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(len(concepts), len(units), generator=generator).argsort(dim=1).argsort(dim=1)[:, unit_of]
    right, others = [], []
    yes_or_no = ~concepts.isnan()
    yes_or_no[:, list(numbers)] = False
    for ratio in ratios:
        told = rank < round(ratio * len(units))
        scores, probability = answer(concepts.where(told, torch.nan))
        asked = ~told & yes_or_no
        right.append(float((scores.argmax(dim=1) == y).double().mean()))
        others.append(float(((probability > 0.5) == (concepts == 1))[asked].double().mean()))  # NaN if nothing is asked
    return InterventionCurve(list(ratios), right, others)


def told_together(concepts: Tensor, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Lists of columns that are set together: the groups, then every column in no group alone.

    Args:
        concepts: concept labels ``[N, K]``: 1, 0, or NaN if unknown. A column in no group without any label is left
            out.
        groups: lists of columns.
    """
    grouped = {k for group in groups for k in group}
    known = (~concepts.isnan()).any(dim=0)
    alone = [[k] for k in range(concepts.shape[1]) if k not in grouped and bool(known[k])]
    return [list(group) for group in groups if group] + alone
