"""Phrases whose embeddings somebody else made: names with vectors, or vectors in the order of a list of phrases."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.formats import read_phrases
from cbm.concepts.hygiene import spoken_name
from cbm.concepts.prepare import match_classes
from cbm.concepts.readers import normalise_text
from cbm.data.features import unit_norm
from cbm.errors import UserError, did_you_mean
from cbm.files.names import quoted
from cbm.files.vectors import read_vectors


def embedded_by(bank: ConceptBank, file: Path, key: str | None = None) -> ConceptBank:
    """A bank with the embeddings of a file.

    Args:
        bank: the bank as it was read.
        file: vectors with names, which are matched with the phrases, or without: then a row for every phrase of the
            bank's own file, in its order.
        key: name of the vectors in the file, if it holds several.

    Raises:
        UserError: the file has no vectors, none for a phrase, or not as many as there are phrases.
    """
    names, vectors = read_vectors(file, key)
    if names is None:
        names = bank.texts if len(vectors) == len(bank) else _phrases_of(bank)
        if len(names) != len(vectors):
            raise UserError(
                f"'{file}' has {len(vectors):,} vectors without names, '{bank.source}' has {len(names):,} phrases "
                f"({len(bank):,} different ones): expected a row for each, in their order"
            )
    row = {normalise_text(spoken_name(name)): i for i, name in reversed(list(enumerate(names)))}
    row |= {normalise_text(name): i for i, name in reversed(list(enumerate(names)))}
    if absent := [text for text in bank.texts if normalise_text(text) not in row]:
        raise UserError(
            f"'{file}' has no vector for {len(absent):,} of {len(bank):,} phrases of '{bank.source}', first "
            f"'{absent[0]}': {did_you_mean(absent[0], names[:20_000])}".rstrip(" :")
        )
    found = vectors[torch.tensor([row[normalise_text(text)] for text in bank.texts], dtype=torch.long)]
    return replace(bank, embeddings=unit_norm(found, bank.texts), encoder=None)


def _phrases_of(bank: ConceptBank) -> list[str]:
    """The phrases as they stand in the bank's file, with those that stand twice."""
    try:
        return [text for text, _, _ in read_phrases(Path(bank.source))]
    except UserError:
        return bank.texts


def class_vectors_bank(classes: list[str], file: Path) -> ConceptBank:
    """A bank with one concept per class, from the embeddings of the class names in a file.

    Args:
        classes: C class names.
        file: vectors with the names of classes (others may be among them), or C vectors in the order of the classes.

    Raises:
        UserError: the file has no vectors, or none for a class.
    """
    names, vectors = read_vectors(file)
    if names is None:
        if len(vectors) != len(classes):
            raise UserError(f"'{file}' has {len(vectors):,} vectors without names: expected one per class, "
                            f"{len(classes):,}")  # fmt: skip
        rows = list(range(len(classes)))
    else:
        known = {found: name for name, found in match_classes(names, classes).items()}
        if absent := [name for name in classes if name not in known]:
            raise UserError(
                f"'{file}' has no vector for class {quoted(absent)}: {did_you_mean(absent[0], names[:20_000])}".rstrip(
                    " :"
                )
            )
        rows = [names.index(known[name]) for name in classes]
    concepts = tuple(Concept(name, (name,), provenance={"source": str(file)}) for name in classes)
    return ConceptBank("class names", str(file), concepts, embeddings=unit_norm(vectors[rows], classes))


def width_fits(bank: ConceptBank, dim: int | None) -> ConceptBank:
    """The bank, if its embeddings are as wide as the features (where their width is known).

    Raises:
        UserError: they are not.
    """
    given: Tensor | None = bank.embeddings
    if given is not None and dim is not None and given.shape[1] != dim:
        raise UserError(
            f"concept bank '{bank.source}' has embeddings of {given.shape[1]} dimensions, the features have {dim}: "
            "expected vectors of the same text-image model"
        )
    return bank
