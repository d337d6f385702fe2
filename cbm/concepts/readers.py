"""Read concept sets in common formats: class -> phrases JSON, lists, one phrase per line, and our own banks."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cbm.concepts.bank import Concept, ConceptBank, Dropped, load_bank
from cbm.concepts.formats import CONTRAST, json_phrases, read_phrases
from cbm.data.features import unit_norm
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form
from cbm.files.parsing import read_json
from cbm.files.vectors import read_vectors

log = logging.getLogger(__name__)

VECTORS = (".npz", ".safetensors", ".pt", ".pth", ".parquet")
"""Files of names with vectors."""


def read_bank(path: Path, key: str | None = None) -> ConceptBank:
    """Read a concept set and merge its duplicates; every owner of a shared phrase is kept.

    The formats are ``bank.json`` (ours), ``{class: [phrases]}`` and ``{class: [[phrase, score], ...]}`` (LaBo, V2C-CBM,
    CLIP descriptions), ``[phrases]``, ``[{"text": ..., "classes": [...], "contrast": ...}]``, text with one phrase per
    line (list marks and quotes are taken off, ``#`` begins a comment, ``ulcer | skin`` is an ulcer as against skin),
    and tables whose header names a column of phrases and perhaps one of classes (``cbm.concepts.formats``). Files of
    names with vectors (``cbm.files.vectors``) give an embedded bank.

    Args:
        path: the file, or the folder of a ``bank.json``.
        key: name of the vectors in a file that holds several.

    Raises:
        UserError: the file does not exist (the message names the nearest), or has none of these formats.
    """
    path = Path(path)
    if path.is_dir() and (path / "bank.json").is_file():
        return load_bank(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no concept bank '{path}': {did_you_mean(path.name, siblings)}")
    if path.suffix.lower() in VECTORS:
        return _with_vectors(path, key)
    if key is not None:
        raise UserError(f"concepts.key={key}: '{path}' holds phrases, and no vectors to choose from")
    content = read_json(path) if path.suffix.lower() == ".json" else None
    ours = content.get("concepts") if isinstance(content, dict) else None
    if isinstance(ours, list) and (not ours or not all(isinstance(entry, str) for entry in ours)):
        return load_bank(path)
    phrases = read_phrases(path) if content is None else json_phrases(path, content)
    bank = merge_duplicates(path.stem, str(path), phrases)
    if not isinstance(content, dict):
        return bank
    bare = [Dropped("", (name,), "class without phrases") for name, phrases in content.items() if phrases == []]
    return replace(bank, dropped=bank.dropped + tuple(bare))


def _with_vectors(path: Path, key: str | None) -> ConceptBank:
    """Names with vectors; of names that are the same in one form the first is taken, underscores are spaces."""
    names, vectors = read_vectors(path, key)
    if names is None:
        raise UserError(
            f"'{path}' has vectors [{', '.join(map(str, vectors.shape))}] but no names: add an array 'names', or say "
            "concepts=PHRASES concepts.embeddings=FILE"
        )
    spoken = [" ".join(name.replace("_", " ").split()) for name in names]
    bank = merge_duplicates(path.stem if key is None else key, str(path), ((name, (), None) for name in spoken))
    first = {normalise_text(name): row for row, name in reversed(list(enumerate(spoken)))}
    rows = [first[normalise_text(text)] for text in bank.texts]
    return replace(bank, embeddings=unit_norm(vectors[rows], bank.texts))


def phrase_bank(phrases: Sequence[str] | Mapping[str, Sequence[str]], name: str = "phrases") -> ConceptBank:
    """Make a bank from a list of phrases, or from class -> phrases; duplicates are merged.

    Raises:
        UserError: there are no phrases.
    """
    by_class = phrases.items() if isinstance(phrases, Mapping) else [(None, phrases)]
    owned = ((text, () if owner is None else (owner,), None) for owner, texts in by_class for text in texts)
    return merge_duplicates(name, name, owned)


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
        said = [part.strip() for part in f" {clean} ".split(CONTRAST)]
        if len(said) > 2 or (len(said) == 2 and not all(said)):
            dropped.append(Dropped(text, owners, "not PHRASE | REFERENCE"))
            log.warning("concept bank '%s': '%s' is left out: expected PHRASE | REFERENCE", source, clean)
            continue
        clean, reference = said[0], said[1] if len(said) == 2 else ""
        key = normalise_text(clean)
        if not key:
            dropped.append(Dropped(text, owners, "blank"))
            continue
        entry = merged.setdefault(key, {"text": clean, "classes": {}, "score": score, "merged": {}, "against": ""})
        entry["against"] = entry["against"] or reference
        entry["classes"].update(dict.fromkeys(owners))
        if clean != entry["text"]:
            entry["merged"][clean] = None
    concepts = tuple(
        Concept(
            entry["text"],
            tuple(entry["classes"]),
            score=entry["score"],
            provenance={
                "source": source,
                **({"merged": list(entry["merged"])} if entry["merged"] else {}),
                **({"contrast": {"reference": entry["against"]}} if entry["against"] else {}),
            },
        )
        for entry in merged.values()
    )
    if not concepts:
        raise UserError(f"concept bank '{source}' has no concepts")
    return ConceptBank(name, source, concepts, dropped=tuple(dropped))
