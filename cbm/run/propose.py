"""``python -m cbm propose RUN``: what training added to each class, in words, for a person to say what may decide.

``python -m cbm spurious`` and ``rebalance`` need to be told which concepts do not belong to a class. Here the model is
asked: phrases that its class vectors say and the texts of its classes do not (``cbm.metrics.added``), with the training
pictures of the class that are nearest to each. Whether such a phrase belongs to the class only a person knows, so what
is written is a list for ``python -m cbm audit`` in which every phrase is ``neutral``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from cbm.concepts import ConceptBank, phrase_bank, read_bank
from cbm.concepts.candidates import class_bank
from cbm.concepts.hygiene import class_name_pattern
from cbm.concepts.readers import normalise_text
from cbm.concepts.wordnet import WordNet
from cbm.config import bank_files
from cbm.data.text_store import text_encoder
from cbm.errors import UserError
from cbm.files import resolve_path, write_atomically
from cbm.layers import one_class, require_linear
from cbm.metrics.added import added_by_training, first_added
from cbm.trained import load

EXAMPLES = 3
"""Pictures beside a phrase."""


@dataclass(frozen=True)
class Proposed:
    """A phrase that training added.

    Attributes:
        phrase: in words.
        classes: classes to which it was added, with how much (standard deviations over the vocabulary), most first.
        alike: other phrases that were added and mean nearly the same to the encoder.
        in_bank: whether it, or one of these, is a concept of the run.
        pictures: training pictures of the first class that are nearest to it, as the data set names them.
    """

    phrase: str
    classes: dict[str, float]
    alike: tuple[str, ...]
    in_bank: bool
    pictures: tuple[str, ...]


@torch.no_grad()
def propose(
    path: Path, cache: Path, *, vocabulary: Path | None = None, wordnet: Path | None = None, count: int = 20
) -> list[Proposed]:
    """What training added to the classes of a finished run, most first.

    Args:
        path: the run directory.
        cache: folder of the feature store.
        vocabulary: a bank, or one phrase a line; by default the run's concepts and the general phrases that are
            shipped.
        wordnet: folder of a WordNet distribution, by which words for what a class is, or for kinds of it, are left out
            too; by default only phrases that say a class name are.
        count: number of phrases.

    Raises:
        UserError: the run does not exist, its model has no linear concepts or no class vectors, nothing reads text, or
            fewer than two phrases are left.
    """
    if count < 1:
        raise UserError(f"--count={count}: expected 1 or more")
    trained = load(path)
    model = require_linear(trained.model, trained.bank)
    one_class(model, "propose")
    assert trained.bank is not None
    if model.activation is not None:
        raise UserError(f"run '{path}': its concepts have an activation, so that no class is one direction: propose "
                        "reads bottlenecks without one, such as method=posthoc")  # fmt: skip
    if not trained.has_text:
        raise UserError(f"run '{path}': its encoder reads no text, so no phrase can be compared with its classes")
    encode = text_encoder(trained.encoder, cache, False)
    own = trained.bank.phrases
    words = [*own, *read_bank(bank_files()["general"]).texts] if vocabulary is None else read_bank(vocabulary).texts
    bank = _without_classes(phrase_bank(words), trained.classes, wordnet)
    if len(bank) < 2:
        raise UserError(f"{len(bank)} of {len(words)} phrases name no class: expected two or more in --vocabulary")
    texts = encode(bank.texts)
    known = class_bank(trained.config, trained.classes, trained.encoder, encode).directions()
    added = added_by_training(model.weights() @ model.concepts, known, texts)
    _, data = trained.read(("train",), cache=cache, as_trained=True)
    ours = {normalise_text(text) for text in own}
    found = []
    for each in first_added(added, texts, count):
        rows = (data.train.y == next(iter(each.classes))).nonzero().flatten()
        scores = data.train.x[rows].float() @ texts[each.phrase]
        nearest = rows[scores.topk(min(EXAMPLES, len(rows))).indices].tolist()
        said = [bank.texts[k] for k in (each.phrase, *each.alike)]
        found.append(
            Proposed(
                said[0],
                {trained.classes[c]: amount for c, amount in each.classes.items()},
                tuple(said[1:]),
                any(normalise_text(text) in ours for text in said),
                tuple(data.train.names[row] for row in nearest),
            )
        )
    return found


def _without_classes(bank: ConceptBank, classes: list[str], wordnet: Path | None) -> ConceptBank:
    """The phrases that say no class, and by WordNet nothing that a class is or that is a kind of it."""
    pattern = class_name_pattern(classes)
    said = [pattern is not None and pattern.search(text) is not None for text in bank.texts]
    if wordnet is not None:
        nouns = WordNet(resolve_path(wordnet))
        senses = [sense for name in classes if (sense := nouns.find(name)) is not None]
        said = [names or any(nouns.are_kin(text, sense) for sense in senses) for names, text in zip(said, bank.texts)]
    return bank.keep(["says a class" if names else None for names in said], "class names")


def write_proposals(file: Path, proposals: Sequence[Proposed]) -> None:
    """Write a list for ``python -m cbm audit`` in which every phrase is neutral, with its classes.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    entries = [{"concept": each.phrase, "expect": "neutral", "classes": list(each.classes)} for each in proposals]
    head = "# What training added to each class. Say wanted or unwanted where you know; neutral never fails.\n"
    write_atomically(file, (head + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)).encode())
