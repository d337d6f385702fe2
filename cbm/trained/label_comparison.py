"""Compare what is said about labelled images before and after edits, where an image has any number of labels."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from cbm.editing.comparison import Comparison
from cbm.layers import is_many, thresholds_of
from cbm.metrics.multilabel import LabelTest, auroc, auroc_macro_difference, label_tests, scored


@dataclass(frozen=True)
class LabelComparison:
    """What is said about N images before and after edits.

    Attributes:
        before: logits ``[N, L]`` before the edits.
        after: logits ``[N, L]`` after the edits.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        classes: L names.
        thresholds: logits ``[L]`` above which a label is said to be there.
    """

    before: Tensor
    after: Tensor
    y: Tensor
    classes: list[str]
    thresholds: Tensor

    def _right(self, logits: Tensor) -> Tensor:
        """Whether every entry is known and said rightly, ``[N, L]``."""
        return ((logits > self.thresholds) == (self.y == 1)) & ~self.y.isnan()

    @property
    def gained(self) -> Tensor:
        """Entries ``[M, 2]`` (image, label) that were said wrongly before and rightly after."""
        return (~self._right(self.before) & self._right(self.after)).nonzero()

    @property
    def lost(self) -> Tensor:
        """Entries ``[M, 2]`` that were said rightly before and wrongly after."""
        return (self._right(self.before) & ~self._right(self.after) & ~self.y.isnan()).nonzero()

    @property
    def flipped(self) -> Tensor:
        """Entries ``[M, 2]`` of which something else is said, known or not."""
        return ((self.before > self.thresholds) != (self.after > self.thresholds)).nonzero()

    @cached_property
    def tests(self) -> list[LabelTest]:
        """For every label the exact McNemar test of its decisions, corrected for their number (Holm)."""
        before, after = (logits > self.thresholds for logits in (self.before, self.after))
        return label_tests(after, before, self.y)

    def recall(self) -> list[tuple[str, int, float, float]]:
        """(label, known images, balanced accuracy before, after) for every label that has both kinds of images."""
        rows = []
        for label in scored(self.y).nonzero().flatten().tolist():
            shares = []
            for logits in (self.before, self.after):
                right, y = self._right(logits)[:, label].double(), self.y[:, label]
                shares.append(float(right[y == 1].mean() + right[y == 0].mean()) / 2)
            rows.append((self.classes[label], int((~self.y[:, label].isnan()).sum()), *shares))
        return rows

    def accept(self, max_class_loss: float = 1.0) -> bool:
        """Whether to keep the edits: more entries are gained than lost, and no label loses too much.

        Args:
            max_class_loss: largest fall of a label's balanced accuracy that is accepted.
        """
        worst = max((before - after for _, _, before, after in self.recall()), default=0.0)
        return len(self.gained) > len(self.lost) and worst <= max_class_loss

    def metrics(self) -> dict[str, float]:
        """Metrics with keys ``edits/...``: mean AUROC with the interval of its change, and flips."""
        before, after = (float(auroc(logits, self.y).nanmean()) for logits in (self.before, self.after))
        values = {"edits/auroc_macro_before": before, "edits/auroc_macro_after": after}
        if (lead := auroc_macro_difference(self.after, self.before, self.y)) is not None:
            values |= {"edits/auroc_macro_lead_low": lead.low, "edits/auroc_macro_lead_high": lead.high}
        recall = self.recall()
        return values | {
            "edits/flipped": float(len(self.flipped)),
            "edits/gained": float(len(self.gained)),
            "edits/lost": float(len(self.lost)),
            "edits/labels_changed": float(sum(test.p_holm < 0.05 for test in self.tests)),
            "edits/largest_class_loss": max((before - after for _, _, before, after in recall), default=0.0),
        }

    def __str__(self) -> str:
        values = self.metrics()
        return (
            f"mean AUROC {values['edits/auroc_macro_before']:.4f} -> {values['edits/auroc_macro_after']:.4f}: "
            f"{len(self.gained)} labels of images gained, {len(self.lost)} lost; "
            f"{values['edits/labels_changed']:.0f} of {len(self.classes)} labels changed (exact McNemar, Holm)"
        )


def compared(
    model: nn.Module, before: Tensor, after: Tensor, y: Tensor, classes: list[str]
) -> Comparison | LabelComparison:
    """Decisions before and after edits, of one class or of any number of labels.

    Args:
        model: the classifier.
        before: logits ``[N, C]`` before the edits.
        after: logits ``[N, C]`` after them.
        y: classes ``[N]``, or labels ``[N, L]``.
        classes: names.
    """
    if not is_many(model):
        return Comparison(before, after, y, classes)
    return LabelComparison(before, after, y, classes, thresholds_of(model, len(classes)).to(torch.float32))
