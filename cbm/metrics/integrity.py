"""Do the concepts carry the decision? Accuracy cannot tell: a bottleneck of random directions classifies well too."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck
from cbm.metrics.classification import mcnemar


@dataclass(frozen=True)
class Evidence:
    """One test of the concepts.

    Attributes:
        question: question that the test answers.
        finding: result of the test with its numbers.
        meaning: reason for the test, in one sentence.
        passed: whether the result supports the concepts.
        decisive: whether the verdict needs this test to pass.
    """

    question: str
    finding: str
    meaning: str
    passed: bool
    decisive: bool = True


@dataclass(frozen=True)
class Integrity:
    """The evidence for and against the concepts of a model.

    Attributes:
        accuracy: accuracy of the model (``real``) and of the same method on ``random`` and on ``shuffled`` concepts.
        nec5: accuracy of the same three if every class uses only its five most important concepts.
        gap: mean grounding gap of the same three, in standard deviations.
        deleted: accuracy with every concept held at its reference value.
        renamed: accuracy if the names are shuffled after training and every concept is scored by its new name.
        chance: share of the largest class.
        outside: share of the decision that bypasses the concepts (0 without a residual).
        evidence: the tests and their results.
    """

    accuracy: dict[str, float]
    nec5: dict[str, float]
    gap: dict[str, float]
    deleted: float
    renamed: float
    chance: float
    outside: float
    evidence: tuple[Evidence, ...]

    @property
    def carries(self) -> bool:
        """Whether the concepts carry the decision: every decisive test is passed."""
        return all(test.passed for test in self.evidence if test.decisive)

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        failed = [test for test in self.evidence if test.decisive and not test.passed]
        if failed:
            return "the concepts do not carry the decision: " + "; ".join(test.finding for test in failed)
        caveats = [test.finding for test in self.evidence if not test.passed]
        return "; ".join(["the concepts carry the decision", *(f"but {finding}" for finding in caveats)])


def integrity_from_json(content: dict[str, Any]) -> Integrity:
    """The inverse of ``dataclasses.asdict``."""
    return Integrity(**{**content, "evidence": tuple(Evidence(**test) for test in content["evidence"])})


def weigh_integrity(
    correct: dict[str, Tensor],
    correct_nec5: dict[str, Tensor],
    gaps: dict[str, Tensor],
    *,
    deleted: float,
    renamed: float,
    chance: float,
    outside: float,
) -> Integrity:
    """Test the concepts of a model.

    The concepts carry the decision if their names fit (a concept scores at least 0.2 standard deviations, Cohen's
    "small" effect, and significantly more on the images of its owners than it would under a shuffled name), if names
    shuffled after training lose half of the accuracy above chance, if five concepts per class keep half of it, if
    deleting all concepts leaves chance, and if less than a tenth of the decision bypasses them. If random concepts do
    as well with five per class, this does not refute the concepts, only accuracy as evidence for them; it is reported
    beside the verdict.

    Args:
        correct: which test images ``[N]`` are classified correctly, by ``real``, ``random`` and ``shuffled``.
        correct_nec5: which test images ``[N]`` are classified correctly with five concepts per class, likewise.
        gaps: grounding gaps ``[K]`` in standard deviations, likewise; NaN if undefined.
        deleted: accuracy with every concept held at its reference value.
        renamed: accuracy with shuffled names.
        chance: share of the largest class in the split.
        outside: share of the decision that bypasses the concepts.
    """
    accuracy, nec5 = (
        {name: float(right.float().mean()) for name, right in group.items()} for group in (correct, correct_nec5)
    )
    gap = {name: float(values.nanmean()) for name, values in gaps.items()}
    above = accuracy["real"] - chance
    p_names = welch(gaps["real"], gaps["shuffled"])
    p_random = mcnemar(correct_nec5["real"], correct_nec5["random"])
    names = Evidence(
        "Do the names fit?",
        "no concept says which classes it belongs to: whether the names fit is not tested",
        "A concept should score higher on pictures of the classes it was written for than under another's name.",
        False,
        decisive=False,
    )
    if not math.isnan(gap["real"]):
        names = replace(
            names,
            finding=f"concepts score {gap['real']:+.2f} sd on pictures of their owners, {gap['shuffled']:+.2f} sd "
            f"under shuffled names ({p_value(p_names)})",
            passed=gap["real"] - gap["shuffled"] >= 0.2 and p_names < 0.05,
            decisive=True,
        )
    evidence = (
        names,
        Evidence(
            "Does it matter which concept is which?",
            f"with the names dealt out anew after training {renamed:.1%} of {accuracy['real']:.1%} accuracy is left",
            "If the decision rests on what the concepts say, swapping what they mean must destroy it.",
            above > 0 and renamed - chance <= above / 2,
        ),
        Evidence(
            "Can it be read?",
            f"five concepts per class keep {nec5['real']:.1%} of {accuracy['real']:.1%} accuracy",
            "A decision spread over hundreds of small weights is not explained by naming the largest.",
            above > 0 and nec5["real"] - chance >= above / 2,
        ),
        Evidence(
            "Lost without its concepts?",
            f"{deleted:.1%} accuracy is left with every concept deleted; chance is {chance:.1%}",
            "With every concept held at one value the model should know no more than the most frequent class.",
            deleted <= chance + 0.05,
        ),
        Evidence(
            "Nothing passes by the concepts?",
            f"{outside:.0%} of the decision does not pass through the concepts",
            "A residual that bypasses the bottleneck can decide whatever the concepts say.",
            outside <= 0.1,
        ),
        Evidence(
            "Better than random concepts?",
            f"with five concepts per class {compare(nec5['real'], nec5['random'], p_random)}",
            "Where random directions classify as well, accuracy is no evidence that the concepts mean something.",
            nec5["real"] > nec5["random"] and p_random < 0.05,
            decisive=False,
        ),
    )
    return Integrity(accuracy, nec5, gap, deleted, renamed, chance, outside, evidence)


@torch.no_grad()
def renamed_accuracy(model: ConceptBottleneck, x: Tensor, y: Tensor, draws: int = 5) -> float:
    """Accuracy if every concept keeps its weights but gets the score of another concept, mean over seeded draws.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        draws: number of permutations of the concepts (no concept keeps its meaning).
    """
    right, weights = 0.0, model.weights()
    for seed in range(draws):
        order = torch.randperm(len(model.concepts), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        dealt = torch.empty_like(weights)
        dealt[:, other] = weights
        right += float((model.logits(x, dealt).argmax(1) == y).float().mean())
    return right / draws


def welch(a: Tensor, b: Tensor) -> float:
    """Two-sided p of Welch's test that two samples (NaN left out) have the same mean; normal approximation.

    Args:
        a: first sample ``[n]``.
        b: second sample ``[m]``.
    """
    a, b = a[~a.isnan()].double(), b[~b.isnan()].double()
    if len(a) < 2 or len(b) < 2:
        return 1.0
    error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
    return math.erfc(abs(float(a.mean() - b.mean())) / max(error, 1e-300) / math.sqrt(2))


def compare(mine: float, other: float, p: float) -> str:
    """Words for a comparison: ``random concepts do better (84% against 70%, p < 0.001)``.

    Args:
        mine: accuracy of the model.
        other: accuracy of the other model.
        p: p-value of the difference.
    """
    how = "cannot be told apart" if p >= 0.05 else ("do worse" if mine > other else "do better")
    return f"random concepts {how} ({other:.1%} against {mine:.1%}, {p_value(p)})"


def p_value(p: float) -> str:
    """Words for a p-value: ``p = 0.03``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
