"""Names for the units of a dictionary, and the bank in which they stand."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank, Dropped
from cbm.concepts.units import DEAD
from cbm.data.features import FeatureData, mean_feature, spaced
from cbm.errors import UserError
from cbm.kernels import topk_concepts
from cbm.metrics.reader import centre, centre_directions
from cbm.metrics.unit_names import LEAST, UnitNames, mean_directions, name_units, top_pictures
from cbm.solvers import Codes

ROWS = 50_000
"""Images of a split that units are named by and names are tested on, at most: at even distances."""
KEPT = 20
"""Pictures that are noted of every unit."""


@dataclass
class NamingConfig:
    """When a unit counts as named; the words are those of ``concepts``."""

    fdr: float = 0.05
    """Largest expected share of wrong names among the named"""
    min_auroc: float = 0.7
    """How well a name must tell on which validation images the unit fires"""
    above_random: bool = False
    """Whether a unit must also be nearer to its word than 95 % of random directions are to theirs"""
    unnamed: str = "keep"
    """keep | drop: what becomes of units that no word fits"""
    by: str = "atoms"
    """atoms: the word nearest to the unit's atom | pictures: nearest to the mean of the images where it fires. With a
    teacher (an encoder that reads no text) it is always pictures"""


class Naming:
    """The words that units may be called by, and the pictures that decide whether they fit.

    Args:
        data: encoded splits; with a teacher, whose pictures and texts lie in one space, it reads them.
        vocabulary: the words with their embeddings.
        config: when a unit counts as named.
        centred: whether pictures and words are seen from their means.

    Raises:
        UserError: the vocabulary's vectors are not those of the features.
    """

    def __init__(self, data: FeatureData, vocabulary: ConceptBank, config: NamingConfig, *, centred: bool = True):
        seen = data if data.teacher is None else data.teacher
        words = vocabulary.directions()
        if words.shape[1] != seen.dim:
            raise UserError(
                f"the vocabulary's vectors have {words.shape[1]} dimensions and the features {seen.dim}: units are "
                "named by text of the encoder itself, or of a teacher"
            )
        self.words = centre_directions(words) if centred else normalize(words.float(), dim=1)
        mean = mean_feature(seen.train.x) if centred else torch.zeros(seen.dim)
        self.train, self.val = (centre(spaced(split.x, ROWS).float(), mean) for split in (seen.train, seen.val))
        self.by_pictures = data.teacher is not None or config.by == "pictures"
        self.config, self.seed = config, data.seed

    def name(self, atoms: Tensor, fires: Codes, tried: Codes) -> tuple[UnitNames, dict[str, float]]:
        """The words of units, and what is to be said of all of them.

        Args:
            atoms: atoms ``[K, D]`` of the units, of length 1.
            fires: where they fire among the training images.
            tried: where they fire among the validation images.
        """
        columns, values = spaced(fires.columns, ROWS), spaced(fires.values, ROWS)
        means = mean_directions(columns, values, len(atoms), self.train)
        names = name_units(
            means if self.by_pictures else atoms,
            [(spaced(tried.columns, ROWS), self.val), (columns, self.train)],
            self.words,
            fdr=self.config.fdr,
            min_auroc=self.config.min_auroc,
            seed=self.seed,
        )
        lives = torch.bincount(fires.columns[fires.columns >= 0], minlength=len(atoms)) > 0
        agree = topk_concepts(means, self.words, 1)[1][:, 0] == names.words[:, 0]
        facts = {
            "name_cosine": mean_of(names.cosine[lives, 0]),
            "name_margin": mean_of(names.margin[lives]),
            "name_auroc": float(names.auroc[names.tested].mean()),
            "name_auroc_dealt": names.auroc_dealt,
            "name_named": mean_of(names.named[names.tested]),
            "name_named_dealt": names.dealt,
            "name_too_rare": mean_of(~names.tested[lives]),
            "name_distinct": float(len(names.words[names.named, 0].unique())),
            "name_picture_agreement": mean_of(agree[lives]),
        }
        return names, {key: value for key, value in facts.items() if not math.isnan(value)}  # nothing could be tested


def mean_of(values: Tensor) -> float:
    """Mean of numbers or of truths; 0 of none."""
    return float(values.double().mean()) if len(values) else 0.0


def unit_bank(
    atoms: Tensor,
    keep: Tensor,
    lives: Tensor,
    names: UnitNames | None,
    vocabulary: ConceptBank | None,
    fires: Codes,
    again: Tensor | None,
    data: FeatureData,
    source: str,
    crops: list[tuple[str, list[float]]] | None = None,
) -> ConceptBank:
    """The units that are kept as a bank: their atoms under their names, or as ``unnamed 0137``.

    A unit belongs to the classes that its word was written for. A word that several units have is numbered from the
    second on ("dog (2)"), because the text of a concept is its key.

    The provenance of every concept holds, under ``unit``: its number, word, the nearest words with their cosines, AUROC
    and p of the first, the share of the training images on which it fires, those on which it fires most strongly, and
    the cosine of the unit that it is assigned to in another dictionary.

    Args:
        atoms: atoms ``[K, D]``, of length 1.
        keep: units ``[K]`` that become concepts.
        lives: units ``[K]`` that fire on some training image.
        names: their words, or None.
        vocabulary: the words, or None.
        fires: where units fire among the training images.
        again: cosine ``[K]`` of the unit of another dictionary, or None.
        data: encoded splits.
        source: origin of the units.
        crops: the part of a picture (its name and its box) that each unit is the centre of, if they are parts.
    """
    candidates = () if vocabulary is None else vocabulary.concepts
    found: dict[int, Concept] = {}
    if names is not None:
        found = {k: candidates[int(names.words[k, 0])] for k in names.named.nonzero().flatten().tolist()}
    numbers = keep.nonzero().flatten().tolist()
    strength = torch.zeros(len(atoms)) if names is None else names.cosine[:, 0]
    called = _call(sorted(numbers, key=lambda k: (-float(strength[k]), k)), found, {each.text for each in candidates})
    shown = top_pictures(fires.columns, fires.values, len(atoms), KEPT)
    count = torch.bincount(fires.columns[fires.columns >= 0], minlength=len(atoms))
    concepts = [
        Concept(
            called[k],
            classes=found[k].classes if k in found else (),
            provenance={
                "unit": {
                    "number": k,
                    **_said_of(k, names, [each.text for each in candidates]),
                    "firing": round(int(count[k]) / len(data.train), 6),
                    "pictures": [str(data.train.names[row]) for row in shown[k]],
                    **({} if crops is None else {"crop": {"image": crops[k][0], "box": crops[k][1]}}),
                    **({} if again is None or bool(again[k].isnan()) else {"again": round(float(again[k]), 4)}),
                }
            },
        )
        for k in numbers
    ]
    dead = (~lives).nonzero().flatten().tolist()
    dropped = [Dropped(f"unit {k:04d}", (), DEAD) for k in dead]
    left_out = (lives & ~keep).nonzero().flatten().tolist()
    dropped += [Dropped(f"unit {k:04d}", (), "no word fits it (method.naming.unnamed=drop)") for k in left_out]
    says = said_by = None
    if vocabulary is not None and vocabulary.says is not None and names is not None:
        known = names.named[keep][:, None]
        says = vocabulary.says[names.words[keep, 0]].where(known, 0.0)
        said_by = vocabulary.said_by
    return ConceptBank(
        "discovered", source, tuple(concepts), data.encoder, atoms[keep].clone(), tuple(dropped), says, said_by
    )


def _call(order: list[int], found: dict[int, Concept], words: set[str]) -> dict[int, str]:
    """A text of its own for every unit: its word, its word with a number, or that it has none.

    >>> _call([7, 2, 5], {7: Concept("dog"), 5: Concept("dog")}, {"dog", "dog (2)"})
    {7: 'dog', 2: 'unnamed 0002', 5: 'dog (3)'}
    """
    called: dict[int, str] = {}
    for k in order:
        text = word = found[k].text if k in found else f"unnamed {k:04d}"
        number = 1
        while text in called.values() or (number > 1 and text in words):
            number += 1
            text = f"{word} ({number})"
        called[k] = text
    return called


def _said_of(k: int, names: UnitNames | None, texts: list[str]) -> dict[str, object]:
    """What is known of the words of one unit."""
    if names is None:
        return {"word": None, "why": "there is no vocabulary"}
    words = [
        {"text": texts[v], "cosine": round(c, 4)} for v, c in zip(names.words[k].tolist(), names.cosine[k].tolist())
    ]
    auroc, named = float(names.auroc[k]), bool(names.named[k])
    tested = {} if math.isnan(auroc) else {"auroc": round(auroc, 4), "p": round(float(names.p[k]), 5)}
    if named:
        return {"word": words[0]["text"], "words": words, **tested}
    why = f"'{words[0]['text']}' does not tell where it fires"
    if not tested:
        why = f"it fires on {int(names.firing[k])} of {int(names.pictures[k])} training images; a test needs {LEAST}"
    return {"word": None, "words": words, **tested, "why": why}
