"""What a run can say about its concepts: a table of named tests, and the strongest true sentence about them.

Accuracy says nothing about names, because a linear head on many random directions classifies well too; nor does a score
that goes with a class, because false statements can. So every test is named for what it tests (specifics in the modules
that compute it), has a null hypothesis where there can be one, and may be untestable: then it says why, and decides
nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck
from cbm.metrics.exchange import LEVEL
from cbm.metrics.grounding import Association
from cbm.metrics.leakage import Leakage
from cbm.metrics.reader import Reading
from cbm.metrics.truth import Truth

Status = Literal["passed", "failed", "untested", "fact"]
LABELLED = 0.1
"""Share of the concepts that must have labels, or nothing is said about the truth of all of them."""


@dataclass(frozen=True)
class Evidence:
    """One test of the concepts.

    Attributes:
        key: short name: names, association, truth, contradiction, leak (class names, copies), outside, or that of a
            fact.
        question: question that the test answers.
        finding: result of the test with its numbers, as a clause.
        meaning: reason for the test, in one sentence.
        status: ``passed``, ``failed``, ``untested``, or ``fact`` for a number that decides nothing.
        value: the number; None without one.
        null: the same number if the names meant nothing; None without one.
        interval: ends of the 95 % interval of ``value``, or None.
        p: p-value of ``value`` against ``null``, or None.
        detail: what belongs in the table and not in a sentence; may be empty.
    """

    key: str
    question: str
    finding: str
    meaning: str
    status: Status
    value: float | None = None
    null: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the test was passed."""
        return self.status == "passed"


@dataclass(frozen=True)
class Integrity:
    """The evidence for and against the concepts of a model.

    Attributes:
        evidence: the tests and their results.
        accuracy: accuracy of the model (``real``), and of the same method on ``random`` and on ``shuffled`` concepts as
            far as these were fitted.
        nec5: accuracy of the same if every class keeps the five most important concepts of its own head.
        random_resolved: accuracies of certified heads with five concepts per class on as many random directions as
            there are concepts, one of every draw.
        deleted: accuracy with every concept held at its reference value.
        renamed: accuracy if the scores are dealt out anew after training.
        chance: share of the largest class.
        outside: share of the decision that bypasses the concepts (0 without a residual).
        many: whether images have any number of labels: then every accuracy is a mean AUROC.
    """

    evidence: tuple[Evidence, ...]
    accuracy: dict[str, float] = field(default_factory=dict)
    nec5: dict[str, float] = field(default_factory=dict)
    random_resolved: tuple[float, ...] = ()
    deleted: float = math.nan
    renamed: float = math.nan
    chance: float = math.nan
    outside: float = 0.0
    many: bool = False

    def test(self, key: str) -> Evidence | None:
        """The test of this name, or None."""
        return next((each for each in self.evidence if each.key == key), None)

    def status(self, key: str) -> str:
        """Result of a test; ``untested`` if there is none."""
        found = self.test(key)
        return "untested" if found is None else found.status

    @property
    def carries(self) -> bool:
        """Whether the concepts carry the decision: their names say the class, they are true of the images, no class
        name is among them, nothing bypasses them, and the decision is better than it is without them."""
        shown = all(self.status(key) == "passed" for key in ("names", "truth", "outside", "leak"))
        return shown and "failed" not in (self.status("deleted"), self.status("random"))

    @property
    def good(self) -> bool | None:
        """True if the concepts carry the decision, False if a test was failed, None if not all could be tested."""
        if self.carries:
            return True
        tests = ("names", "association", "truth", "leak", "outside", "deleted", "random")
        return False if any(self.status(key) == "failed" for key in tests) else None

    @property
    def verdict(self) -> str:
        """The strongest true sentence about the concepts, without a capital letter and without a full stop."""
        return "; ".join([self._strongest(), *self._reservations()])

    def _strongest(self) -> str:
        names, association, truth = (self.test(key) for key in ("names", "association", "truth"))
        whom = "labels" if self.many else "classes"
        if self.carries and names and truth:
            return f"the concepts carry the decision: {names.finding}, and {truth.finding}"
        if names and names.status == "passed":
            return f"{'label' if self.many else 'class'}-associated: {names.finding}"
        if truth and truth.status == "passed":
            return f"the concepts are what they say: {truth.finding}"
        if names and names.status == "failed" and _may_say_much(names):
            return f"it is not shown that the names say anything about the {whom}: {names.finding}"
        if names and names.status == "failed":
            return f"the names say nothing about the {whom}: {names.finding}"
        if association and association.status == "passed":
            return f"class-associated: {association.finding}"
        return "nothing is shown about the names of the concepts"

    def _reservations(self) -> list[str]:
        """What is not shown, or speaks against the concepts, if the first clause has not said it."""
        said = []
        for key, what in WHAT_IS_SHOWN.items():
            found = self.test(key)
            if found is None or found.status in ("passed", "fact") or found.finding in self._strongest():
                continue
            if found.status == "failed":
                said.append(f"but {found.finding}")
            elif what:
                what = what.replace("the class", "the labels") if self.many else what
                said.append(f"not shown: {what} ({found.finding})")
        return said


def _may_say_much(names: Evidence) -> bool:
    """Whether a reader who was not significantly better than under exchanged names may be better by 10 points."""
    if names.value is None or names.null is None or names.interval is None:
        return False
    return names.value > names.null + 1e-6 and names.interval[1] > names.null + 0.1


WHAT_IS_SHOWN = {
    "names": "that the names say the class",
    "truth": "that the phrases are true of the images",
    "association": "",
    "leak": "",
    "outside": "",
    "deleted": "",
    "random": "",
}
"""What each test shows, in the order of the verdict; empty if the verdict need not say that it was not tested."""


def integrity_from_json(content: dict[str, Any]) -> Integrity | None:
    """The inverse of ``dataclasses.asdict``; None for evidence of another form (runs of versions before 0.2)."""
    try:
        tests = tuple(
            Evidence(**{**test, "interval": test["interval"] and tuple(test["interval"])})
            for test in content["evidence"]
        )
        draws = tuple(content["random_resolved"])
        return Integrity(**{**content, "evidence": tests, "random_resolved": draws})
    except (TypeError, KeyError):
        return None


def judged(finding: str, found: Reading | Association) -> tuple[str, Status]:
    """The finding of a permutation test with its status, and why if even perfect concepts could not pass it."""
    if found.untestable:
        return f"cannot be tested: {found.untestable}; {finding}", "untested"
    return finding, "passed" if found.passed else "failed"


def names_test(readings: list[Reading], why_not: str) -> Evidence:
    """Do the names say the class?

    Args:
        readings: by the owners of the phrases, by another text encoder, or both; the last one decides.
        why_not: why nobody can read, if nobody can.
    """
    question = "Do the names say the class?"
    meaning = (
        "A reader who sees only the five words an image gets, and knows what words mean from text alone, should name "
        "the class more often than with the words exchanged. Nothing is trained, so no direction can be re-labelled."
    )
    if not readings:
        return Evidence("names", question, f"cannot be tested: {why_not}", meaning, "untested")
    best = readings[-1]
    by = "" if best.by == "owners" else " by another text encoder"
    finding = (
        f"a reader of five words{by} gets {best.accuracy:.1%} ({100 * best.low:.1f} to {best.high:.1%}; names "
        f"exchanged: {100 * best.null:.0f} ± {best.null_sd:.1%}, {p_value(best.p)})"
    )
    finding, status = judged(finding, best)
    return Evidence(
        "names", question, finding, meaning, status, best.accuracy, best.null, (best.low, best.high), best.p
    )


def association_test(found: Association | None, why_not: str) -> Evidence:
    """Do concepts score higher on images of the classes they were written for?"""
    question = "Do concepts go with their classes?"
    meaning = (
        "A phrase should score higher on images of the classes it was written for than the phrases of other classes "
        "do. False statements about a class can go with it too, so this is association, not truth."
    )
    if found is None:
        return Evidence("association", question, f"cannot be tested: {why_not}", meaning, "untested")
    finding = (
        f"concepts score {found.gap:+.2f} sd on images of their owners ({found.low:+.2f} to {found.high:+.2f}; owners "
        f"exchanged: {found.null:+.2f} ± {found.null_sd:.2f}, {p_value(found.p)})"
    )
    finding, status = judged(finding, found)
    return Evidence(
        "association", question, finding, meaning, status, found.gap, found.null, (found.low, found.high), found.p
    )


def truth_test(overall: Truth | None, within: Truth | None, count: int | None = None, many: bool = False) -> Evidence:
    """Are concepts what they say, where the data set labels some?

    Args:
        overall: scores against labels over all images.
        within: the same within every class, or among images with the same labels; None if no concept varies there.
        count: number of concepts of the model; None for as many as have labels.
        many: whether images have any number of labels.
    """
    whose, alike = ("labels", "among images with the same labels") if many else ("class", "within a class")
    question = "Are they true of the images?"
    meaning = (
        "Where the data set says which images show a concept, its score must find them (AUROC 0.5 is guessing), also "
        f"{'among images with the same labels' if many else 'among images of one class'}, where the {whose} "
        f"{'are' if many else 'is'} no help."
    )
    if overall is None:
        return Evidence(
            "truth", question, "cannot be tested: the data set labels none of the concepts", meaning, "untested"
        )
    labelled = int((~overall.auroc.isnan()).sum())
    of = "" if count is None or count == labelled else f" of {count}"
    numbers = (
        f"(AUROC {overall.mean:.3f} over {labelled}{of} concepts with labels; names exchanged: {overall.null:.2f} ± "
        f"{overall.null_sd:.2f}"
    )
    testable = within is not None and not within.untestable
    if within is None:
        numbers += f"; no label varies {alike})"
    else:
        numbers += f"; {alike} {within.mean:.3f}{'' if testable else ', of too few images to tell'})"
    passed = overall.passed and (within is None or not testable or within.passed)
    finding = f"they find the images that show them {numbers}"
    why_not = overall.untestable
    if not why_not and passed and count is not None and labelled < LABELLED * count:
        why_not = "too few concepts have labels"
    if why_not:
        finding = f"cannot be tested: {why_not} {numbers}"
    elif not passed and overall.p < LEVEL and overall.above < 0.5:
        finding = f"only {overall.above:.0%} of them find the images that show them significantly {numbers}"
    elif not passed:
        finding = f"they do not find the images that show them {numbers}"
        if overall.passed and within is not None and within.p < LEVEL:
            finding = f"{alike}, only {within.above:.0%} of them find the images that show them {numbers}"
        elif overall.passed:
            finding += f": they follow the {whose}, not what they say"
    error = float(overall.auroc[~overall.auroc.isnan()].std() / labelled**0.5) if labelled > 1 else math.nan
    low, high = max(0.0, overall.mean - 1.96 * error), min(1.0, overall.mean + 1.96 * error)
    interval = None if math.isnan(error) else (low, high)
    status: Status = "untested" if why_not else "passed" if passed else "failed"
    return Evidence("truth", question, finding, meaning, status, overall.mean, overall.null, interval, overall.p)


def contradiction_test(told: dict[str, float], share: float, why_not: str = "") -> Evidence:
    """Does the encoder tell a phrase from its negation?

    Args:
        told: AUROC of the difference between a phrase's score and its negation's for images of its owners, by phrase.
        share: share of these phrases whose AUROC is significantly above 0.5.
        why_not: why it cannot be tested.
    """
    question = "Told from their negations?"
    meaning = (
        "A phrase should beat “no …” by more on images of its classes than on others. Where it does not, the encoder "
        "hears the words and not the sentence, and a bank of denials would score as well."
    )
    if not told:
        return Evidence("contradiction", question, f"cannot be tested: {why_not}", meaning, "untested")
    finding = f"the encoder tells {share:.0%} of {len(told)} phrases from their negations"
    worst = ", ".join(f"“{text}” ({told[text]:.2f})" for text in sorted(told, key=told.__getitem__)[:5])
    status: Status = "passed" if share >= 0.5 else "failed"
    detail = f"the worst, with their AUROC: {worst}"
    return Evidence("contradiction", question, finding, meaning, status, share, 0.05, detail=detail)


def leak_test(naming: list[str], copies: int, count: int, kind: str = "class") -> Evidence:
    """Are there class names or near-copies among the concepts?

    Args:
        naming: phrases that contain a class name.
        copies: phrases that have a near-copy in the bank.
        count: number of concepts.
        kind: what the names are of.
    """
    meaning = (
        f"A phrase that contains a {kind} name explains nothing, and near-copies of one phrase make a few concepts "
        "look like many."
    )
    parts = []
    if naming:
        parts.append(f"{len(naming)} of {count} phrases name a {kind} (“{naming[0]}”)")
    if copies:
        parts.append(f"{copies} of {count} have a near-copy in the bank")
    finding = " and ".join(parts) or f"no phrase names a {kind}, and none has a near-copy"
    failed = len(naming) > 0.1 * count or copies > 0.5 * count
    status: Status = "failed" if failed else "passed"
    return Evidence("leak", f"No {kind} names, no copies?", finding, meaning, status, len(naming) / max(count, 1))


def outside_test(share: float) -> Evidence:
    """Does less than a tenth of the decision bypass the concepts?"""
    return Evidence(
        "outside",
        "Nothing passes by the concepts?",
        f"{share:.0%} of the decision does not pass through the concepts",
        "A residual that bypasses the bottleneck can decide whatever the concepts say.",
        "passed" if share <= 0.1 else "failed",
        share,
    )


def beyond_fact(found: Leakage | None) -> list[Evidence]:
    """What the scores say of the class beyond the true concepts: no fault by itself, since concepts that do not
    determine the class need it. Nothing where the data set labels none of the concepts."""
    if found is None:
        return []
    share = max(0.0, found.joint) if found.joint == found.joint else None
    return [
        Evidence(
            "beyond",
            "Do the scores say only what their names say?",
            found.sentence,
            "A score can carry more than the yes or no that it is named after, and a head can decide by that.",
            "fact",
            share,
            0.0 if share is not None else None,
            p=found.joint_p if share is not None else None,
        )
    ]


def sparsity_fact(resolved: float | None, random: tuple[float, ...]) -> Evidence:
    """Accuracy with five concepts per class beside random directions.

    Args:
        resolved: accuracy of a certified head with five concepts per class.
        random: the same on random directions, one of every draw.
    """
    meaning = (
        "With many directions to choose from, meaningless ones classify well too. This is shown, not tested: it is no "
        "evidence for names."
    )
    finding = "not measured"
    if resolved is not None:
        finding = f"a new head with 5 concepts per class gets {resolved:.1%}"
    mean = None
    if random:
        draws = torch.tensor(random)
        mean = float(draws.mean())
        spread = f" ± {float(draws.std()):.1%}" if len(draws) > 1 else ""
        finding += (
            f"; on random directions {mean:.1%}{spread} ({float(draws.min()):.1%} to {float(draws.max()):.1%} in "
            f"{len(draws)} draws)"
        )
    return Evidence("sparsity", "Better than random directions?", finding, meaning, "fact", resolved, mean)


def other_facts(accuracy: float, deleted: float, renamed: float, chance: float, better: bool = True) -> list[Evidence]:
    """What every working head passes, and therefore decides nothing; a head that does not work carries nothing.

    Args:
        accuracy: accuracy of the model.
        deleted: accuracy with every concept held at its reference value.
        renamed: accuracy if scores are dealt out anew after training.
        chance: share of the largest class.
        better: whether the model is significantly better than with every concept deleted.
    """
    left = f"{deleted:.1%} accuracy is left with every concept deleted; chance is {chance:.1%}"
    return [
        Evidence(
            "deleted",
            "Lost without its concepts?",
            left if better else f"the concepts decide nothing: of {accuracy:.1%} accuracy {left}",
            "True of every head without a residual that works: what is left is the largest class.",
            "fact" if better else "failed",
            deleted,
            chance,
        ),
        Evidence(
            "renamed",
            "Does it matter which score is which?",
            f"with the scores dealt out anew after training {renamed:.1%} of {accuracy:.1%} accuracy is left",
            "True of every head that listens to its scores, whatever they are called.",
            "fact",
            renamed,
            accuracy,
        ),
    ]


@torch.no_grad()
def renamed_accuracy(model: ConceptBottleneck, x: Tensor, y: Tensor, draws: int = 5) -> float:
    """Accuracy if every concept keeps its weights but gets the score of another concept, mean over seeded draws.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        draws: number of permutations of the concepts (no concept keeps its meaning).
    """
    found = renamed_logits(model, x, draws)
    return sum(float((logits.argmax(1) == y).float().mean()) for logits in found) / draws


def renamed_logits(model: ConceptBottleneck, x: Tensor, draws: int) -> Iterator[Tensor]:
    """Logits ``[N, C]`` of every draw in which each concept keeps its weights but gets the score of another one.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        draws: number of permutations of the concepts.
    """
    weights = model.weights()
    for seed in range(draws):
        order = torch.randperm(len(model.concepts), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        dealt = torch.empty_like(weights)
        dealt[:, other] = weights
        yield model.logits(x, dealt)


def p_value(p: float) -> str:
    """Words for a p-value: ``p = 0.03``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
