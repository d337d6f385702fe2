"""What is wrong with a bank, and what changed between two: ``python -m cbm concepts lint|diff``."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.formats import BULLET
from cbm.concepts.hygiene import class_name_pattern, clean_class_names, hygiene_reason
from cbm.concepts.legibility import illegible
from cbm.concepts.readers import normalise_text
from cbm.kernels import concept_scores

MARKS = re.compile(rf"{BULLET.pattern}|[{{}}\[\]<>|]")
"""List marks, brackets and code."""


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: kind of the finding: class name | not visual | ... | duplicate | undetected.
        text: text of the concept.
        detail: further words about the finding.
    """

    kind: str
    text: str
    detail: str


def lint_bank(
    bank: ConceptBank, classes: list[str] | None = None, max_words: int = 20, *,
    pieces: Sequence[Sequence[str]] = (), one_language: bool = True,
) -> list[Finding]:  # fmt: skip
    """Find blank and merged phrases, class names, phrases that are not visual or not read, classes with few or none.

    Args:
        bank: the bank as it was read, with duplicates merged.
        classes: class names of a data set; the bank's own by default.
        max_words: number of words above which a phrase is reported.
        pieces: the pieces that an encoder's tokenizer makes of every phrase (``cbm.concepts.legibility``).
        one_language: whether that tokenizer is of one language.
    """
    findings = [Finding(gone.reason, gone.text, f"of {', '.join(gone.classes) or 'no class'}") for gone in bank.dropped]
    names = classes or bank.classes
    said, everything = dict(zip(names, clean_class_names(names))), class_name_pattern(names)
    for concept in bank.concepts:
        owned = ", ".join(concept.classes[:3]) + (", ..." if len(concept.classes) > 3 else "")
        if merged := concept.provenance.get("merged"):
            findings.append(
                Finding("duplicate", concept.text, "also written " + ", ".join(f"'{m}'" for m in merged[:3]))
            )
        if everything and (match := everything.search(concept.text)):
            own = class_name_pattern([said.get(name, name) for name in concept.classes])
            kind = "own class name" if own and own.search(concept.text) else "class name"
            findings.append(
                Finding(kind, concept.text, f"says '{match.group()}'" + (f", owned by {owned}" if owned else ""))
            )
        if reason := hygiene_reason(concept.text, max_words):
            findings.append(Finding(reason, concept.text, f"owned by {owned}" if owned else ""))
        if MARKS.search(concept.text):
            findings.append(Finding("markup", concept.text, "list marks, brackets or code belong to no phrase"))
    if pieces:
        reasons = illegible(bank.texts, pieces, one_language=one_language)
        findings += [Finding("hard to read", bank.texts[row], why) for row, why in reasons.items()]
    bare = [name for name in classes or () if bank.classes and name not in bank.classes]
    findings += [Finding("no phrases", name, "a class of the data set that the bank has none for") for name in bare]
    counts = Counter(name for concept in bank.concepts for name in concept.classes)
    findings += [Finding("few concepts", name, f"{count} phrase(s)") for name, count in counts.items() if count < 5]
    return findings


def undetected(bank: ConceptBank, embeddings: Tensor, x: Tensor, y: Tensor, classes: list[str]) -> list[Finding]:
    """Find concepts that the encoder does not detect: images of their owners do not score higher than others.

    Args:
        bank: bank of K concepts whose owners are names in ``classes``.
        embeddings: unit-norm embeddings ``[K, D]``.
        x: unit-norm features ``[N, D]`` of labelled images.
        y: class indices ``[N]``.
        classes: C class names.
    """
    findings = []
    owners = bank.owners(classes)
    for start in range(0, len(bank), 1024):
        scores = concept_scores(x, embeddings[start : start + 1024])  # [N, k]
        inside = owners[:, start : start + 1024][y]  # [N, k]
        n_in, n_out = inside.sum(0), (~inside).sum(0)
        mean_in = (scores * inside).sum(0) / n_in
        mean_out = (scores * ~inside).sum(0) / n_out
        error = scores.std(dim=0) * (1 / n_in + 1 / n_out).sqrt()
        for k in torch.nonzero((n_in > 0) & (n_out > 0) & (mean_in - mean_out < 2 * error)).flatten().tolist():
            gap = float(mean_in[k] - mean_out[k])
            concept = bank.concepts[start + k]
            detail = f"pictures of {', '.join(concept.classes[:3])} score {gap:+.3f} against the others"
            findings.append(Finding("undetected", concept.text, detail))
    return findings


@dataclass(frozen=True)
class BankDiff:
    """The differences between two banks.

    Attributes:
        added: concepts in the second bank only.
        removed: concepts in the first bank only.
        owners: owners before and after, by concept, if they differ.
    """

    added: list[str]
    removed: list[str]
    owners: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def diff_banks(before: ConceptBank, after: ConceptBank) -> BankDiff:
    """Compare two banks by phrase (case, articles and closing punctuation do not count)."""
    old = {normalise_text(concept.text): concept for concept in before.concepts}
    new = {normalise_text(concept.text): concept for concept in after.concepts}
    return BankDiff(
        added=[new[key].text for key in new if key not in old],
        removed=[old[key].text for key in old if key not in new],
        owners={
            new[key].text: (old[key].classes, new[key].classes)
            for key in new
            if key in old and set(old[key].classes) != set(new[key].classes)
        },
    )


LITTLE_WORDS = frozenset({"a", "an", "the", "is", "are", "that", "has", "have", "with", "of", "its", "it"})
"""Words that do not tell two phrases apart."""


def near_copies(texts: Sequence[str]) -> list[int]:
    """Places of the phrases that another phrase repeats but for word order, little words and plurals.

    >>> near_copies(["a red belly", "belly that is red", "red bellies", "red breast"])
    [0, 1, 2]
    """
    forms = [frozenset(re.sub(r"ie?s$|y$|s$", "", word) for word in normalise_text(text).split()
                       if word not in LITTLE_WORDS) for text in texts]  # fmt: skip
    counts = Counter(forms)
    return [place for place, form in enumerate(forms) if counts[form] > 1]
