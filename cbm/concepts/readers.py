"""Read concept sets in common formats: class -> phrases JSON, lists, one phrase per line, and our own banks."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbm.concepts.bank import Concept, ConceptBank, Dropped, load_bank
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form
from cbm.files.parsing import read_json, read_text


def read_bank(path: Path) -> ConceptBank:
    """Read a concept set and merge its duplicates; every owner of a shared phrase is kept.

    The formats are ``bank.json`` (ours), ``{class: [phrases]}`` and ``{class: [[phrase, score], ...]}`` (LaBo, V2C-CBM,
    CLIP descriptions), ``[phrases]``, and text with one phrase per line (``#`` begins a comment).

    Raises:
        UserError: the file does not exist (the message names the nearest), or has none of these formats.
    """
    path = Path(path)
    if path.is_dir() and (path / "bank.json").is_file():
        return load_bank(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no concept bank '{path}' {did_you_mean(path.name, siblings)}".rstrip())
    if path.suffix != ".json":
        lines = [line.strip() for line in read_text(path).splitlines()]
        return merge_duplicates(path.stem, str(path), ((line, (), None) for line in lines if not line.startswith("#")))
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("concepts"), list):
        return load_bank(path)
    return merge_duplicates(path.stem, str(path), _phrases(path, content))


def phrase_bank(phrases: Sequence[str] | Mapping[str, Sequence[str]], name: str = "phrases") -> ConceptBank:
    """Make a bank from a list of phrases, or from class -> phrases; duplicates are merged.

    Raises:
        UserError: there are no phrases.
    """
    by_class = phrases.items() if isinstance(phrases, Mapping) else [(None, phrases)]
    owned = ((text, () if owner is None else (owner,), None) for owner, texts in by_class for text in texts)
    return merge_duplicates(name, name, owned)


def _phrases(path: Path, content: Any) -> Iterable[tuple[str, tuple[str, ...], float | None]]:
    """(phrase, owners, score) of a class -> phrases dictionary or a list."""
    by_class = content if isinstance(content, dict) else {None: content}
    for name, phrases in by_class.items():
        if not isinstance(phrases, list):
            raise UserError(
                f"'{path}': expected {{class: [phrases]}} or [phrases], but '{name}' holds a {type(phrases).__name__}"
            )
        owners = () if name is None else (str(name),)
        for phrase in phrases:
            if isinstance(phrase, str):
                yield phrase, owners, None
            elif isinstance(phrase, list) and len(phrase) == 2 and isinstance(phrase[0], str):
                if not isinstance(phrase[1], int | float) or not abs(phrase[1]) < math.inf:
                    raise UserError(f"'{path}': the score of '{phrase[0]}' is {json.dumps(phrase[1])[:60]}, no number")
                yield phrase[0], owners, float(phrase[1])
            else:
                raise UserError(f"'{path}': a phrase of '{name}' is {json.dumps(phrase)[:60]}, expected a string")


def normalise_text(text: str) -> str:
    """The form in which phrases are compared: case, spaces, a leading article and closing punctuation do not count."""
    text = one_form(one_form(text).strip(" .,;:!\"'").casefold())
    return re.sub(r"^(a|an|the) ", "", text)


def match_concepts(texts: list[str], concept_names: list[str]) -> list[tuple[int, int]]:
    """Pairs (concept, column of the labels) of the concepts that the data set labels under the same name."""
    column = {normalise_text(name): i for i, name in enumerate(concept_names)}
    return [(k, column[key]) for k, text in enumerate(texts) if (key := normalise_text(text)) in column]


def merge_duplicates(
    name: str, source: str, phrases: Iterable[tuple[str, tuple[str, ...], float | None]]
) -> ConceptBank:
    """Make a bank from phrases; duplicates are merged under the first spelling, with all their owners.

    Args:
        name: name of the bank.
        source: origin of the phrases.
        phrases: triples of a phrase, its owners and its score (or None).

    Raises:
        UserError: no phrase is left.
    """
    merged: dict[str, dict[str, Any]] = {}
    dropped = []
    for text, owners, score in phrases:
        clean, owners = one_form(text), tuple(map(one_form, owners))
        key = normalise_text(clean)
        if not key:
            dropped.append(Dropped(text, owners, "blank"))
            continue
        entry = merged.setdefault(key, {"text": clean, "classes": {}, "score": score, "merged": {}})
        entry["classes"].update(dict.fromkeys(owners))
        if clean != entry["text"]:
            entry["merged"][clean] = None
    concepts = tuple(
        Concept(
            entry["text"],
            tuple(entry["classes"]),
            score=entry["score"],
            provenance={"source": source, **({"merged": list(entry["merged"])} if entry["merged"] else {})},
        )
        for entry in merged.values()
    )
    if not concepts:
        raise UserError(f"concept bank '{source}' has no concepts")
    return ConceptBank(name, source, concepts, dropped=tuple(dropped))
