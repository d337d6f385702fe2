"""The concepts themselves: how well they are grounded where the truth is known, and what was left out."""

import re
from dataclasses import dataclass

from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.report.wording import clip


@dataclass(frozen=True)
class GroundedConcept:
    """A concept whose truth is known.

    Attributes:
        text: the concept.
        auroc: AUROC of its score on the test images.
        prevalence: share of the test pictures that show it.
    """

    text: str
    auroc: float
    prevalence: float


@dataclass(frozen=True)
class DroppedGroup:
    """Phrases left out for the same reason.

    Attributes:
        reason: why.
        count: how many.
        examples: a few of them.
    """

    reason: str
    count: int
    examples: list[str]


def grounded_concepts(
    bank: ConceptBank, aurocs: dict[int, float], truth: Tensor, concept_names: list[str]
) -> list[GroundedConcept]:
    """Concepts with known truth, best first.

    Args:
        bank: the concepts.
        aurocs: column to AUROC.
        truth: ``[N, A]`` ground truth of the test pictures (1, 0, NaN unknown).
        concept_names: its A columns.
    """
    column = dict(match_concepts(bank.phrases, concept_names))
    shown = truth.nanmean(dim=0)
    texts = [clip(text) for text in bank.texts]
    found = [GroundedConcept(texts[k], auroc, float(shown[column[k]])) for k, auroc in aurocs.items()]
    return sorted(found, key=lambda concept: -concept.auroc)


def both_ends(concepts: list[GroundedConcept], limit: int = 15) -> tuple[list[GroundedConcept], list[GroundedConcept]]:
    """The best and the worst ``limit`` of a sorted list; a list of up to twice that many is not cut."""
    if len(concepts) <= 2 * limit:
        return concepts, []
    return concepts[:limit], concepts[-limit:]


def dropped_groups(bank: ConceptBank, examples: int = 4) -> list[DroppedGroup]:
    """What did not become a concept, by reason, most frequent first; reasons that differ in a quoted word are one."""
    groups: dict[str, list[str]] = {}
    for dropped in bank.dropped:
        reason = re.sub(r"'[^']*'", "…", dropped.reason)
        groups.setdefault(reason, []).append(dropped.text)
    sized = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        DroppedGroup(reason, len(texts), [clip(text) for text in dict.fromkeys(texts) if text.strip()][:examples])
        for reason, texts in sized
    ]
