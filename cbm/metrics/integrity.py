"""Do the concepts carry the decision? Accuracy cannot tell: a bottleneck of random directions classifies well too."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.metrics.classification import mcnemar


@dataclass
class Integrity:
    """The evidence for and against the concepts of a run.

    Attributes:
        accuracy: of the model, and of the same method on random and on shuffled concepts.
        nec5: the same when every class may use its five most important concepts only.
        deleted: accuracy with every concept held at its mean.
        chance: share of the largest class.
        outside: share of the decision that does not pass through the concepts (0 without a residual).
        p_values: paired test of the model at five concepts against each control, adjusted for there being two.
        carries: the verdict.
        reasons: what speaks against the concepts; empty if they carry the decision.
    """

    accuracy: dict[str, float]
    nec5: dict[str, float]
    deleted: float
    chance: float
    outside: float
    p_values: dict[str, float]
    carries: bool
    reasons: list[str]

    @property
    def verdict(self) -> str:
        """One line."""
        if self.carries:
            return "the concepts carry the decision"
        return "the concepts do not carry the decision: " + "; ".join(self.reasons)


def integrity_verdict(
    correct: dict[str, Tensor], correct_nec5: dict[str, Tensor], deleted: float, chance: float, outside: float
) -> Integrity:
    """Weigh the evidence.

    The concepts carry the decision if at five concepts per class the model is significantly better (p < 0.05, paired)
    than the same method on random and on shuffled concepts, deleting all concepts leaves no more than chance, and
    less than a tenth of the decision passes by the concepts.

    Args:
        correct: which test pictures ``[N]`` are classified correctly, by ``real``, ``random``, ``shuffled``.
        correct_nec5: the same at five concepts per class.
        deleted: accuracy with every concept held at its mean.
        chance: share of the largest class in the split.
        outside: share of the decision outside the bottleneck.
    """
    reasons, p_values = [], {}
    real = correct_nec5["real"]
    for control in ("random", "shuffled"):
        p_values[control] = min(1.0, 2 * mcnemar(real, correct_nec5[control]))
        mine, other = float(real.float().mean()), float(correct_nec5[control].float().mean())
        if p_values[control] >= 0.05 or mine <= other:
            how = "cannot be told from them" if p_values[control] >= 0.05 else "do better"
            reasons.append(
                f"at 5 concepts per class {control} concepts {how} ({other:.1%} against {mine:.1%}, "
                f"p = {p_values[control]:.2g})"
            )
    if deleted > chance + 0.05:
        reasons.append(f"with every concept deleted the accuracy is still {deleted:.1%} (chance {chance:.1%})")
    if outside > 0.1:
        reasons.append(f"{outside:.0%} of the decision does not pass through the concepts")
    means = [{name: float(c.float().mean()) for name, c in group.items()} for group in (correct, correct_nec5)]
    return Integrity(means[0], means[1], deleted, chance, outside, p_values, not reasons, reasons)


def chance_accuracy(labels: Tensor) -> float:
    """Accuracy of always naming the most frequent class; labels ``[N]``."""
    return float(torch.bincount(labels).max() / len(labels))
