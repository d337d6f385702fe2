"""The first sentence about a run: the strongest true thing about its concepts, or why nobody can tell."""

from dataclasses import dataclass

from cbm.report.result import RunResult


@dataclass(frozen=True)
class Verdict:
    """What is said first.

    Attributes:
        sentence: the verdict, without a full stop and without a capital letter.
        meaning: explanation of the verdict; may be empty.
        good: whether it speaks for the concepts; None if nothing was tested.
    """

    sentence: str
    meaning: str = ""
    good: bool | None = None

    @property
    def capitalised(self) -> str:
        """The sentence as it stands alone."""
        return f"{self.sentence[:1].upper()}{self.sentence[1:]}."


def verdict(result: RunResult) -> Verdict:
    """The verdict on a run."""
    if result.integrity is not None:
        return Verdict(
            result.integrity.verdict,
            f"{'AUROC' if result.integrity.many else 'Accuracy'} alone cannot tell: a linear model on many random "
            f"directions {'ranks' if result.integrity.many else 'classifies'} well too. Every test is in the table of "
            "evidence below.",
            result.integrity.good,
        )
    if control := result.cfg.concepts.control:
        return Verdict(f"this run is a control: its concepts are {control}, and their names mean nothing", "", False)
    if result.energies is not None:
        return Verdict(
            "the concepts of this model were learned from labels",
            "What each of them is worth is measured against those labels, and by what telling them changes: see below.",
        )
    if result.bottleneck is not None and result.data.many and "controls/random" in result.metrics:
        return _against_random(result.metrics)
    if result.bottleneck is not None:
        if result.tested_before:
            return Verdict(
                "the concepts were tested by an earlier version, whose verdict said more than it had tested",
                "Train again to know what the names say, whether it is true, and what random directions do.",
            )
        return Verdict(
            "the concepts were not tested",
            "The tests ask what the names say, whether it is true, and what the same method does on meaningless "
            "concepts; they are on by default (controls=true) for methods that speak through a concept bank.",
        )
    return Verdict(
        "this model has no concepts",
        "It classifies the features directly, so nothing here can be explained by concepts. It is the black box that a "
        "bottleneck is measured against.",
    )


def _against_random(metrics: dict[str, float]) -> Verdict:
    """The verdict on a model of labels, of which one thing is tested: whether its concepts beat meaningless ones."""
    ours, random = metrics["test/auroc_macro"], metrics["controls/random"]
    low, high = metrics.get("controls/random_lead_low", 0.0), metrics.get("controls/random_lead_high", 0.0)
    numbers = f"AUROC {ours:.3f} against {random:.3f}; lead {low:+.3f} to {high:+.3f}"
    meaning = (
        "The same method was fitted on random directions under the same names. What the names say, and whether it is "
        "true, is not tested for several labels: concept AUROC says it where concepts have labels."
    )
    if low > 0:
        return Verdict(f"the concepts rank better than meaningless ones do ({numbers})", meaning, None)
    if high < 0:
        return Verdict(f"meaningless concepts rank better than these ({numbers})", meaning, False)
    return Verdict(f"meaningless concepts rank as well as these ({numbers})", meaning, False)
