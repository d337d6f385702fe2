"""How often what a model used is true, from answers about one phrase per image."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cbm.data.concept_answers import ConceptAnswer
from cbm.metrics.intervals import wilson_interval

ENOUGH = 30
"""Answers below which a share is shown but tests nothing."""


@dataclass(frozen=True)
class Precision:
    """Share of used concepts that images show.

    Attributes:
        value: the share; NaN without answers.
        low: lower end of its 95 % interval.
        high: upper end.
        count: answers (yes or no).
        yes: of them, yes.
        classes: classes with an answer.
        skipped: questions without an answer, which count nowhere.
    """

    value: float
    low: float
    high: float
    count: int
    yes: int
    classes: int
    skipped: int

    @property
    def passed(self) -> bool:
        """Whether most of what was used is true, with enough answers to say so."""
        return self.count >= ENOUGH and self.low > 0.5

    @property
    def spoken(self) -> str:
        """The share with its interval, in words; for no answers, that."""
        if not self.count:
            return "no answers yet"
        return f"{self.value:.1%} ({100 * self.low:.1f} to {self.high:.1%})"


def precision_of(answers: Iterable[ConceptAnswer]) -> Precision:
    """The mean over classes of the share of yes: every class counts the same, as questions are drawn.

    The queue asks about the class with the fewest answers next, so classes have equal numbers of answers (up to one),
    and the mean over classes is the mean over answers but for that one. The mean over classes is what is reported,
    because it estimates the same when some classes run out of images, or answers about them were skipped. Each image is
    asked about once, so answers are independent, and the Wilson interval holds with the effective number of answers

        n = C^2 / sum_c (1 / n_c)

    (Kish; n itself where all n_c are equal). It is a little too wide where classes differ, because the variance within
    classes is smaller than that over all: it errs on the safe side.

    Args:
        answers: about images of one split, one per image.

    Example:
        >>> said = [("cat", True), ("cat", True), ("dog", True), ("dog", False)]
        >>> found = precision_of(ConceptAnswer(f"{n}", c, "val", "tail", yes) for n, (c, yes) in enumerate(said))
        >>> found.value, found.count, found.spoken
        (0.75, 4, '75.0% (30.1 to 95.4%)')
    """
    by_class: dict[str, list[bool]] = defaultdict(list)
    skipped = 0
    for answer in answers:
        if answer.shown is None:
            skipped += 1
        else:
            by_class[answer.label].append(answer.shown)
    if not by_class:
        return Precision(math.nan, 0.0, 1.0, 0, 0, 0, skipped)
    value = sum(sum(each) / len(each) for each in by_class.values()) / len(by_class)
    effective = len(by_class) ** 2 / sum(1 / len(each) for each in by_class.values())
    low, high = wilson_interval(value, int(effective + 1e-9))
    count, yes = (sum(measure(each) for each in by_class.values()) for measure in (len, sum))
    return Precision(value, low, high, count, yes, len(by_class), skipped)
