"""Concepts that are units of a dictionary: what a bank knows of them, and how they get other names.

A unit is found in the features and named afterwards, so its text is not what it is: a person or a model may give it
another one. The old text is kept and goes on meaning the unit, so that edits which name it keep working.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cbm.concepts.bank import EMBEDDED_AS, Concept, ConceptBank
from cbm.errors import UserError, did_you_mean
from cbm.files.names import JOINERS, one_form

PERSON, MODEL = "person", "model"
"""Who may have named a unit, beside the test of its nearest word."""
SAID = ("word", "named_by", "proposed")
"""What the provenance says of a unit's name."""
DEAD = "fires on no training image"
"""Reason for which a unit of a dictionary is no concept."""
LONGEST = 80
"""Characters of a name, at most."""


@dataclass(frozen=True)
class Crop:
    """A part of a picture.

    Attributes:
        image: name of the picture.
        box: left, top, right and bottom end, as fractions of the picture's width and height.
    """

    image: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Unit:
    """What a bank says of one unit.

    Attributes:
        number: its number in the dictionary.
        word: what its name says: the word that passed the test, or the name that it was given; None without a name.
        words: the nearest words with their cosines, the nearest first.
        auroc: how well the nearest word tells on which validation pictures it fires (training pictures, where it fires
            on too few of them); None where it was not tested.
        p: share of random words that tell it as well; None where it was not tested.
        why: reason why it has no name; empty if it has one.
        firing: share of the training pictures on which it fires, or None.
        pictures: names of the training pictures on which it fires most strongly.
        again: cosine of the unit of another dictionary that is nearest to it; None without another.
        crop: the part of a training picture that is most like it, or None.
        named_by: ``person`` or ``model`` if one of them has named it, else None.
        proposed: name of the model that proposed its name, the name's AUROC and p; empty without.
        former: names that it had before, the first one first.
        taken_back: names that it was given and that were taken back.
    """

    number: int
    word: str | None = None
    words: tuple[tuple[str, float], ...] = ()
    auroc: float | None = None
    p: float | None = None
    why: str = ""
    firing: float | None = None
    pictures: tuple[str, ...] = ()
    again: float | None = None
    crop: Crop | None = None
    named_by: str | None = None
    proposed: Mapping[str, Any] | None = None
    former: tuple[str, ...] = ()
    taken_back: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Whether it has a name, by whomever."""
        return self.word is not None or self.named_by is not None

    @property
    def cosine(self) -> float | None:
        """Cosine of the nearest word."""
        return self.words[0][1] if self.words else None

    @property
    def name_auroc(self) -> float | None:
        """How well its name, or its nearest word if it has none, tells where it fires; None if that was not tested."""
        if self.named_by is None:
            return self.auroc
        return None if self.proposed is None or self.named_by == PERSON else self.proposed.get("auroc")

    @property
    def state(self) -> str:
        """How it came to its name, in words."""
        if self.named_by is not None:
            return f"named by a {self.named_by}"
        return "unnamed" if self.word is None else "named by its word"


def unit_of(concept: Concept) -> Unit | None:
    """The unit that a concept is; None if it is none. What a damaged file says in another form is left out.

    >>> said = {"number": 3, "words": [{"text": "red", "cosine": 0.2}]}
    >>> unit_of(Concept("unnamed 0003", provenance={"unit": said})).words
    (('red', 0.2),)
    """
    said = concept.provenance.get("unit")
    if not isinstance(said, dict) or _number(said.get("number")) is None:
        return None
    words = [
        (word["text"], float(word["cosine"]))
        for word in _list(said.get("words"))
        if isinstance(word, dict) and isinstance(word.get("text"), str) and _number(word.get("cosine")) is not None
    ]
    return Unit(
        number=int(said["number"]),
        word=_text(said.get("word")),
        words=tuple(words),
        auroc=_number(said.get("auroc")),
        p=_number(said.get("p")),
        why=_text(said.get("why")) or "",
        firing=_number(said.get("firing")),
        pictures=tuple(name for name in _list(said.get("pictures")) if isinstance(name, str)),
        again=_number(said.get("again")),
        crop=_crop(said.get("crop")),
        named_by=said["named_by"] if said.get("named_by") in (PERSON, MODEL) else None,
        proposed=_proposed(said.get("proposed")),
        former=tuple(entry["text"] for entry in _former(said)),
        taken_back=tuple(filter(_text, _list(said.get("taken_back")))),
    )


def units_of(bank: ConceptBank | None) -> list[Unit] | None:
    """The units that the concepts of a bank are; None if they are written down."""
    found = [] if bank is None else [unit_of(concept) for concept in bank.concepts]
    units = [unit for unit in found if unit is not None]
    return units if units and len(units) == len(found) else None


def former_names(bank: ConceptBank) -> dict[str, str]:
    """Names that units had before, and some that were taken back, with those that they have now. A name that some unit
    has now is that unit's."""
    found: dict[str, str] = {}
    units = [(concept.text, unit) for concept in bank.concepts if (unit := unit_of(concept)) is not None]
    for text, unit in units:
        found |= dict.fromkeys(unit.taken_back, text)
    for text, unit in units:
        found |= dict.fromkeys(unit.former, text)
    return {old: text for old, text in found.items() if old not in set(bank.texts)} if found else {}


def find_unit(bank: ConceptBank, text: str) -> int:
    """Column of a unit by the name that it has or had.

    Raises:
        UserError: the bank has no units, or none of this name (with the nearest names).
    """
    if units_of(bank) is None:
        raise UserError("the concepts of this run were written down, so that their names are what they are: only units "
                        "that were found (method=discovered) can be named")  # fmt: skip
    wanted, former = one_form(text), former_names(bank)
    wanted = former.get(wanted, wanted)
    if wanted not in bank.texts:
        known = [*bank.texts, *former]
        raise UserError(f"no unit '{text}': {did_you_mean(text, known)}")
    return bank.texts.index(wanted)


def rename_unit(
    bank: ConceptBank, text: str, new: str, by: str = PERSON, proposed: Mapping[str, Any] | None = None
) -> ConceptBank:
    """The bank with another name for one unit; the old one is kept.

    Args:
        bank: a bank of units.
        text: name of the unit, as it is or was.
        new: the new name.
        by: who names it: ``person`` or ``model``.
        proposed: what is known of a model's proposal.

    Raises:
        UserError: an unknown unit, an empty or very long name, or one that another unit has or had.
    """
    column = find_unit(bank, text)
    concept, name = bank.concepts[column], one_form(new)
    if not name or len(name) > LONGEST or not all(each.isprintable() or each in JOINERS for each in name):
        raise UserError(f"--as '{new[:LONGEST]}': expected a name of 1 to {LONGEST} letters on one line")
    if name == concept.text:
        raise UserError(f"unit '{name}' is called so already")
    if name in bank.texts:
        raise UserError(f"'{name}' is another unit's name: say what tells the two apart, or '{name} (2)'")
    for other in bank.concepts:
        unit = unit_of(other)
        if unit is not None and other is not concept and name in unit.former:
            raise UserError(f"'{name}' was the name of the unit '{other.text}', and edits that say so mean that one: "
                            "choose another")  # fmt: skip
    said = concept.provenance["unit"]
    before = {"text": concept.text, "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")}
    before |= {key: said[key] for key in SAID if key in said}
    changed = {**{key: value for key, value in said.items() if key != "proposed"}, "named_by": by}
    changed["word"] = (proposed or {}).get("text") or re.sub(r" \(\d+\)$", "", name)
    changed["former"] = [*_former(said), before]
    if proposed is not None:
        changed["proposed"] = dict(proposed)
    return _with(bank, column, name, changed)


def name_back(bank: ConceptBank, text: str | None = None) -> tuple[ConceptBank, str, str]:
    """The bank with the last new name of a unit taken back, the name that was taken back, and the one it has again.

    Edits that say the name which was taken back mean the unit, until another one is called so.

    Args:
        bank: a bank of units.
        text: name of the unit; by default the one that was named last.

    Raises:
        UserError: an unknown unit, or no name to take back.
    """
    if text is None:
        find_unit(bank, bank.texts[0])  # says so if there are none
        latest = [(_former(c.provenance["unit"])[-1].get("when", ""), k) for k, c in enumerate(bank.concepts)
                  if _former(c.provenance["unit"])]  # fmt: skip
        if not latest:
            raise UserError("no unit of this run was given another name: there is nothing to undo")
        column = max(latest)[1]
    else:
        column = find_unit(bank, text)
    concept = bank.concepts[column]
    said = concept.provenance["unit"]
    if not (former := _former(said)):
        raise UserError(f"unit '{concept.text}' was not given another name: there is nothing to undo")
    *rest, last = former
    if last["text"] in bank.texts:  # somebody changed the file
        raise UserError(f"'{last['text']}' is another unit's name by now: name that one first")
    unit = {key: value for key, value in said.items() if key not in (*SAID, "former")}
    unit |= {"word": None} | {key: last[key] for key in SAID if key in last} | ({"former": rest} if rest else {})
    unit["taken_back"] = list(dict.fromkeys([*_list(said.get("taken_back")), concept.text]))
    return _with(bank, column, last["text"], unit), concept.text, last["text"]


def _with(bank: ConceptBank, column: int, text: str, unit: dict[str, Any]) -> ConceptBank:
    """The bank with one unit changed; its embedding stays the one that was written under the first name."""
    concept = bank.concepts[column]
    first = concept.provenance.get(EMBEDDED_AS, concept.text)
    provenance = {**concept.provenance, "unit": unit, EMBEDDED_AS: first}
    if first == text:
        del provenance[EMBEDDED_AS]
    changed = list(bank.concepts)
    changed[column] = replace(concept, text=text, provenance=provenance)
    return replace(bank, concepts=tuple(changed))


def _former(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of former names that can be read."""
    return [entry for entry in _list(said.get("former")) if isinstance(entry, dict) and _text(entry.get("text"))]


def _crop(said: Any) -> Crop | None:
    if not isinstance(said, dict) or _text(said.get("image")) is None:
        return None
    ends = [_number(end) for end in _list(said.get("box"))]
    if len(ends) != 4 or any(end is None or not 0 <= end <= 1 for end in ends):
        return None
    left, top, right, bottom = (float(end) for end in ends if end is not None)
    return Crop(said["image"], (left, top, right, bottom)) if left < right and top < bottom else None


def _proposed(said: Any) -> dict[str, Any] | None:
    if not isinstance(said, dict):
        return None
    return {key: _number(value) if key in ("auroc", "p") else value for key, value in said.items()}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if good else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
