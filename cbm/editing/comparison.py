"""Compare the decisions about a set of images before and after edits."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """Decisions about N images before and after edits.

    Attributes:
        before: logits ``[N, C]`` before the edits.
        after: logits ``[N, C]`` after the edits.
        y: true class indices ``[N]``.
        classes: C class names.
    """

    before: Tensor
    after: Tensor
    y: Tensor
    classes: list[str]

    @cached_property
    def called(self) -> tuple[Tensor, Tensor]:
        """Predicted classes ``[N]`` before and after."""
        return self.before.argmax(1), self.after.argmax(1)

    @property
    def gained(self) -> Tensor:
        """Rows of the images that were classified wrongly before and correctly after."""
        return ((self.called[0] != self.y) & (self.called[1] == self.y)).nonzero()[:, 0]

    @property
    def lost(self) -> Tensor:
        """Rows of the images that were classified correctly before and wrongly after."""
        return ((self.called[0] == self.y) & (self.called[1] != self.y)).nonzero()[:, 0]

    @property
    def flipped(self) -> Tensor:
        """Rows of the images whose predicted class changed."""
        return (self.called[0] != self.called[1]).nonzero()[:, 0]

    @property
    def p_value(self) -> float:
        """p of the exact McNemar test: how often chance would split gained and lost decisions so unevenly."""
        from scipy.stats import binomtest

        changed = len(self.gained) + len(self.lost)
        return float(binomtest(len(self.gained), changed).pvalue) if changed else 1.0

    def __str__(self) -> str:
        values = self.metrics()
        return (
            f"accuracy {values['edits/accuracy_before']:.4f} -> {values['edits/accuracy_after']:.4f}: "
            f"{len(self.gained)} decisions gained, {len(self.lost)} lost (exact McNemar p = {self.p_value:.2g})"
        )

    def recall(self) -> list[tuple[str, int, float, float]]:
        """(class, number of images, recall before, recall after) for every class with images."""
        counts = torch.bincount(self.y, minlength=len(self.classes))
        right = [
            torch.bincount(self.y[called == self.y], minlength=len(self.classes)) / counts for called in self.called
        ]
        rows = zip(self.classes, counts.tolist(), *(share.tolist() for share in right))
        return [row for row in rows if row[1]]

    def accept(self, max_class_loss: float = 1.0) -> bool:
        """Whether to keep the edits: more decisions are gained than lost, and no class loses too many.

        Args:
            max_class_loss: largest fall of a class's recall that is accepted.
        """
        worst = max((before - after for _, _, before, after in self.recall()), default=0.0)
        return len(self.gained) > len(self.lost) and worst <= max_class_loss

    def metrics(self) -> dict[str, float]:
        """Metrics with keys ``edits/...``: accuracies (also balanced), flips, and the test."""
        recall = self.recall()
        count = max(len(self.y), 1)
        right = [float((called == self.y).float().sum()) / count for called in self.called]
        balanced = [sum(column) / max(len(recall), 1) for column in ([r[2] for r in recall], [r[3] for r in recall])]
        return {
            "edits/accuracy_before": right[0],
            "edits/accuracy_after": right[1],
            "edits/accuracy_macro_before": balanced[0],
            "edits/accuracy_macro_after": balanced[1],
            "edits/flipped": float(len(self.flipped)),
            "edits/gained": float(len(self.gained)),
            "edits/lost": float(len(self.lost)),
            "edits/p_value": self.p_value,
            "edits/largest_class_loss": max((before - after for _, _, before, after in recall), default=0.0),
        }


class Recalled(Protocol):
    """What has a share that is right for every class, before and after."""

    def recall(self) -> list[tuple[str, int, float, float]]:
        """(class, number of images, share before, share after)."""
        ...


def changed_most(comparison: Recalled, count: int = 5) -> list[tuple[str, int, float, float]]:
    """The ``count`` classes whose recall changed most, as in ``Comparison.recall``."""
    moved = [row for row in comparison.recall() if row[2] != row[3]]
    return sorted(moved, key=lambda row: (-abs(row[3] - row[2]), row[0]))[:count]
