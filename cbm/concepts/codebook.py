"""The concepts nearest to most unlabelled images, class by class: V2C-CBM's codebook (He et al., AAAI 2025)."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.prepare import class_name_bank
from cbm.concepts.tokenizer import (
    Count,
    SharedParts,
    chance_count,
    codebook_bank,
    count_tokens,
    nearest_pictures,
    tokenise,
)
from cbm.concepts.vocabulary import Vocabulary, names_class
from cbm.data import FeatureSplit, ImageDataset, few_shot, unit_norm
from cbm.data.encoded import Encoding, encode_images, encode_splits
from cbm.data.text_store import EncodeText, text_encoder
from cbm.data.vocabulary_store import EmbeddedVocabulary, VocabularyStore
from cbm.data.webdataset import read_pool
from cbm.encoders.base import Encoder
from cbm.errors import UserError

log = logging.getLogger("cbm")


@dataclass(frozen=True)
class CodebookSettings:
    """How a codebook is made.

    Attributes:
        pictures: number of images of the pool per class, those most similar to the class.
        k: number of concepts per image that are counted.
        per_class: number of concepts kept per class, the most frequent ones.
        min_count: smallest number of images that a concept must appear in; None for a number that chance rarely reaches
            (``chance_count``).
        min_cosine: smallest cosine with an image for a concept to be counted.
        centred: whether the mean image and the mean concept are subtracted first (see ``SharedParts``).
    """

    pictures: int = 500
    k: int = 5
    per_class: int = 500
    min_count: int | None = 1
    min_cosine: float = -1.0
    centred: bool = True

    def __post_init__(self) -> None:
        for name in ("pictures", "k", "per_class"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1")


@dataclass(frozen=True)
class Codebook:
    """A bank and the record of how it was made.

    Attributes:
        bank: every class's concepts, by falling count.
        record: settings, sizes, hashes and shortfalls, to be written beside the bank.
    """

    bank: ConceptBank
    record: dict[str, Any]

    def most_counted(self) -> dict[str, list[str]]:
        """Every class's concepts by class name, the most frequent first."""
        counts = {concept.text: concept.provenance["counts"] for concept in self.bank.concepts}
        return {
            name: sorted(
                (concept.text for concept in self.bank.concepts if name in concept.classes),
                key=lambda text: -counts[text][name],
            )
            for name in self.bank.classes
        }


def learn_codebook(
    classes: Sequence[str],
    prototypes: Tensor,
    pool: Tensor,
    vocabulary: EmbeddedVocabulary,
    name: str,
    settings: CodebookSettings,
    synonyms: Sequence[str] = (),
) -> Codebook:
    """Tokenise the images most similar to each class and keep the most frequent concepts.

    An image that belongs to several classes' sets is tokenised once. Phrases that name a class of the data set are left
    out.

    Args:
        classes: C class names.
        prototypes: prototypes ``[C, D]`` of the classes, see ``nearest_pictures``.
        pool: unit-norm features ``[N, D]`` of unlabelled images.
        vocabulary: V phrases, embedded by the same encoder.
        name: name of the bank.
        settings: see ``CodebookSettings``.
        synonyms: other words to leave out.

    Raises:
        UserError: every phrase names a class, or a class is left without concepts.
    """
    masked = torch.tensor(names_class(vocabulary.texts, classes, synonyms))
    free = int((~masked).sum())
    if free == 0:
        raise UserError(f"all {len(masked)} phrases of the vocabulary name a class: nothing is left to say")
    members = nearest_pictures(prototypes, pool, settings.pictures)
    union, place = members.unique(return_inverse=True)
    log.info(
        "codebook: %d pictures of %d are asked for, %d phrases (%d name a class)",
        len(union),
        len(pool),
        free,
        int(masked.sum()),
    )
    shared = SharedParts.of(pool, vocabulary.parts()) if settings.centred else None
    tokens = tokenise(pool[union], vocabulary.parts(), settings.k, ~masked, shared)
    chance = chance_count(members.shape[1] * tokens.ids.shape[1], free)
    least = chance if settings.min_count is None else settings.min_count
    counts: dict[str, list[Count]] = {}
    for class_name, rows in zip(classes, place):
        found = count_tokens(tokens.take(rows), vocabulary.texts, min_count=least, min_cosine=settings.min_cosine)
        counts[class_name] = found[: settings.per_class]
    if silent := [class_name for class_name, found in counts.items() if not found]:
        raise UserError(
            f"no concept was counted at least {least} times for class '{silent[0]}'"
            + (f" (and {len(silent) - 1} more)" if len(silent) > 1 else "")
            + ": ask for less (--min-count, --min-cosine)"
        )
    record = {
        "settings": asdict(settings),
        "pool": len(pool),
        "tokenised": len(union),
        "vocabulary": len(masked),
        "naming_a_class": int(masked.sum()),
        "min_count": least,
        "chance_count": chance,
        "above_chance": {c: sum(entry.count >= chance for entry in found) for c, found in counts.items()},
        "shortfall": {c: settings.per_class - len(f) for c, f in counts.items() if len(f) < settings.per_class},
    }
    return Codebook(codebook_bank(counts, vocabulary.texts, name, f"v2c:{name}"), record)


def make_codebook(
    images: ImageDataset,
    encoder: Encoder,
    encoding: Encoding,
    words: Vocabulary,
    settings: CodebookSettings,
    *,
    template: str,
    templates: Sequence[str] = ("{}",),
    pool: Path | None = None,
    shots: int | str = 0,
    synonyms: Sequence[str] = (),
    seed: int = 0,
) -> Codebook:
    """The whole recipe of a codebook, from images and words to a bank.

    Args:
        images: data set for whose classes the bank is made.
        encoder: the text-image model.
        encoding: how images are encoded.
        words: the vocabulary.
        settings: see ``CodebookSettings``.
        template: prompt for a class name, used with ``shots=0``.
        templates: prompts for the phrases; several are averaged.
        pool: folder of unlabelled images; by default the training images.
        shots: labelled images per class (or ``all``) that show what it looks like; 0 uses its name instead.
        synonyms: further words that name a class, to leave out.
        seed: random seed for drawing the shots.

    Raises:
        UserError: the pool has no images, a class has too few images, or a class is left without concepts.
    """
    embedded = VocabularyStore(encoding.cache).encode(encoder, words.texts, templates)
    train = None
    if pool is None or shots != 0:
        train = encode_splits(images, encoder, encoding, ("train",))[1].train
    features = train.x if pool is None and train is not None else encode_pool(pool or Path(), encoder, encoding)
    if shots == 0 or train is None:
        prototypes = name_prototypes(images.classes, template, text_encoder(encoder, encoding.cache, False))
    else:
        prototypes = picture_prototypes(train, shots, seed, images.classes)
    book = learn_codebook(images.classes, prototypes, features, embedded, images.name, settings, synonyms)
    origin = {
        "encoder": encoder.id,
        "fingerprint": encoder.fingerprint,
        "dataset": images.name,
        "shots": str(shots),
        "pictures": str(pool or "training pictures"),
        "templates": list(templates),
        "words": words.recipe,
    }
    return replace(book, record=origin | book.record)


def encode_pool(folder: Path, encoder: Encoder, encoding: Encoding) -> Tensor:
    """Unit-norm features ``[N, D]`` of all images in a folder, or in its tar files; unreadable ones are left out.

    Args:
        folder: folder of images, or of tar files with images.
        encoder: the frozen encoder.
        encoding: how images are encoded.

    Raises:
        UserError: the folder has no images.
    """
    images = read_pool(folder, encoding.cache)
    if not len(images):
        raise UserError(f"no pictures in '{folder}' for the pool")
    stored = encode_images(images, encoder, encoding, str(folder))
    readable = np.flatnonzero(stored.readable)
    return unit_norm(stored.tensor(readable), [images.names[row] for row in readable])


def name_prototypes(classes: list[str], template: str, encode_text: EncodeText) -> Tensor:
    """Prototypes ``[C, D]`` of the classes from their names.

    Args:
        classes: C class names.
        template: prompt for a class name.
        encode_text: function from phrases to features.
    """
    return class_name_bank(classes, template, encode_text, "").directions()


def picture_prototypes(train: FeatureSplit, shots: int | str, seed: int, classes: list[str]) -> Tensor:
    """Prototypes ``[C, D]`` of the classes from labelled images.

    Args:
        train: the labelled images.
        shots: number of images per class, or ``all``.
        seed: random seed for drawing the shots.
        classes: C class names, for the error message.

    Raises:
        UserError: a class has too few images.
    """
    rows = few_shot(train.y.numpy(), shots, seed, classes, "--shots")
    return train.take(rows).class_means(len(classes))
