"""What a knowledge base says about classes: phrases with their owners, made into a bank.

Shared by the importers of ConceptNet and WordNet. Phrases that name a class or are too long are left out; a plural is
merged into its singular if that was found too.
"""

import logging
import re
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cbm.concepts.bank import Concept, ConceptBank, Dropped
from cbm.concepts.hygiene import clean_class_name, clean_class_names
from cbm.errors import UserError

log = logging.getLogger(__name__)

IRREGULAR = {"feet": "foot", "teeth": "tooth", "geese": "goose", "mice": "mouse", "children": "child"}

ENDINGS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("es", ""), ("s", ""))


@dataclass
class Finding:
    """A phrase: the classes it was found for, its best source, merged plurals, and the reason if it is left out."""

    classes: set[str] = field(default_factory=set)
    rank: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)
    reason: str | None = None

    def add(self, classes: list[str], rank: tuple[float, ...], provenance: dict[str, Any]) -> None:
        """Found once more; of all sources the one of the highest rank is remembered."""
        self.classes.update(classes)
        if rank > self.rank:
            self.rank, self.provenance = rank, provenance


def classes_by_key(classes: list[str]) -> dict[str, list[str]]:
    """How a class is looked up to the names that data sets write it by (``polar_bear``, ``001.Polar_bear``)."""
    named: dict[str, list[str]] = {}
    for name, said in zip(classes, clean_class_names(classes)):
        named.setdefault(phrase_key(clean_class_name(said)), []).append(name)
    return named


def phrase_key(name: str) -> str:
    """How names are compared: without case, underscores and hyphens."""
    return " ".join(re.sub(r"[_-]", " ", name).split()).casefold()


def findings_bank(
    name: str, path: Path, found: dict[str, Finding], classes: list[str], *, max_words: int, relations: tuple[str, ...]
) -> ConceptBank:
    """The findings that are concepts, by class and text; the others are in ``dropped``.

    Args:
        name: name of the knowledge base, as people write it.
        path: where it was read; in the provenance of every concept.
        found: phrase to finding. Plurals leave it.
        classes: as the data set writes them. Those without concepts are named in a warning.
        max_words: longer phrases are left out.
        relations: what was looked for, for the message.

    Raises:
        UserError: nothing about any class.
    """
    _judge(found, classes_by_key(classes), max_words)
    row: dict[str, int] = {}
    for class_name in classes:
        row.setdefault(class_name, len(row))
    concepts, dropped = [], []
    for phrase, entry in sorted(found.items(), key=lambda item: (min(row[name] for name in item[1].classes), item[0])):
        owners = tuple(sorted(entry.classes, key=row.__getitem__))
        if entry.reason is not None:
            dropped.append(Dropped(phrase, owners, entry.reason))
            continue
        provenance = {"source": str(path), **entry.provenance}
        if entry.merged:
            provenance["merged"] = sorted(entry.merged)
        concepts.append(Concept(phrase, owners, provenance=provenance))
    owning = {class_name for concept in concepts for class_name in concept.classes}
    bare = [f"'{class_name}'" for class_name in row if class_name not in owning]
    shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
    if not concepts:
        why = f"; left out {len(dropped)}, first: '{dropped[0].text}' ({dropped[0].reason})" if dropped else ""
        raise UserError(f"'{path}' has no concept for any class: looked for {', '.join(relations)} of {shown}{why}")
    if bare:
        log.warning("concepts: %s has none for %d of %d classes: %s", name, len(bare), len(row), shown)
    return ConceptBank(name.lower(), str(path), tuple(concepts), dropped=tuple(dropped))


def phrases_by_class(bank: ConceptBank, classes: list[str]) -> dict[str, list[str]]:
    """Class to phrases, as ``read_bank`` reads it; a class without phrases has an empty list."""
    return {name: [concept.text for concept in bank.concepts if name in concept.classes] for name in classes}


def _judge(found: dict[str, Finding], named: dict[str, list[str]], max_words: int) -> None:
    """Note which phrases are left out, and merge plurals into their singulars, which removes them from ``found``."""
    for phrase, entry in found.items():
        if entry.reason is None and len(phrase.split()) > max_words:
            entry.reason = f"longer than {max_words} words"
    known = {phrase for phrase, entry in found.items() if entry.reason is None}
    for phrase in sorted(known):
        base = phrase
        while phrase_key(base) not in named and (singular := _singular(base, known, named)):
            base = singular
        if names := named.get(phrase_key(base)):
            found[phrase].reason = f"names the class '{names[0]}'"
        elif base != phrase:
            found[base].classes |= found[phrase].classes
            found[base].merged.append(phrase)
            del found[phrase]


def _singular(phrase: str, known: Container[str], named: Container[str]) -> str | None:
    """The phrase with some of its words in singular, if that is a class or was found too."""
    forms = product(*([word, *_singular_words(word)] for word in phrase.split()))
    joined = (" ".join(words) for words in forms)
    return next((text for text in joined if text != phrase and (text in known or phrase_key(text) in named)), None)


def _singular_words(word: str) -> list[str]:
    """Possible singulars of ``word``; many of these do not exist."""
    if word in IRREGULAR:
        return [IRREGULAR[word]]
    if word.endswith("ss") or len(word) < 4:
        return []
    return [word.removesuffix(ending) + new for ending, new in ENDINGS if word.endswith(ending)]
