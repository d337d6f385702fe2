"""Before and after: what edits did to the decisions about a set of images."""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """Decisions about N images before and after.

    Attributes:
        before: ``[N, C]`` logits.
        after: ``[N, C]`` logits.
        y: ``[N]`` truth.
        classes: C names.
    """

    before: Tensor
    after: Tensor
    y: Tensor
    classes: list[str]

    @property
    def gained(self) -> Tensor:
        """Rows that were wrong and are right."""
        return ((self.before.argmax(1) != self.y) & (self.after.argmax(1) == self.y)).nonzero()[:, 0]

    @property
    def lost(self) -> Tensor:
        """Rows that were right and are wrong."""
        return ((self.before.argmax(1) == self.y) & (self.after.argmax(1) != self.y)).nonzero()[:, 0]

    @property
    def flipped(self) -> Tensor:
        """Rows of another decision, right or wrong."""
        return (self.before.argmax(1) != self.after.argmax(1)).nonzero()[:, 0]

    @property
    def p_value(self) -> float:
        """Exact McNemar test: how often chance would split gained and lost decisions so unevenly."""
        changed = len(self.gained) + len(self.lost)
        return float(binomtest(len(self.gained), changed).pvalue) if changed else 1.0

    def __str__(self) -> str:
        values = self.metrics()
        return (
            f"accuracy {values['edits/accuracy_before']:.4f} -> {values['edits/accuracy_after']:.4f}: "
            f"{len(self.gained)} decisions gained, {len(self.lost)} lost (exact McNemar p = {self.p_value:.2g})"
        )

    def recall(self) -> list[tuple[str, int, float, float]]:
        """(class, images, share that is right before, after) of every class with images."""
        counts = torch.bincount(self.y, minlength=len(self.classes))
        right = [
            torch.bincount(self.y[logits.argmax(1) == self.y], minlength=len(self.classes)) / counts
            for logits in (self.before, self.after)
        ]
        rows = zip(self.classes, counts.tolist(), *(share.tolist() for share in right))
        return [row for row in rows if row[1]]

    def accept(self, max_class_loss: float = 1.0) -> bool:
        """Whether to keep the edits: more decisions gained than lost, and no class loses more than this share."""
        worst = max((before - after for _, _, before, after in self.recall()), default=0.0)
        return len(self.gained) > len(self.lost) and worst <= max_class_loss

    def metrics(self) -> dict[str, float]:
        """``edits/...``: accuracies, balanced ones too, flips, and the test."""
        recall = self.recall()
        count = max(len(self.y), 1)
        right = [float((logits.argmax(1) == self.y).float().sum()) / count for logits in (self.before, self.after)]
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


def changed_most(comparison: Comparison, count: int = 5) -> list[tuple[str, int, float, float]]:
    """The classes whose recall changed most, as ``Comparison.recall`` has them."""
    moved = [row for row in comparison.recall() if row[2] != row[3]]
    return sorted(moved, key=lambda row: (-abs(row[3] - row[2]), row[0]))[:count]
