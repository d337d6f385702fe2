"""Edits: the changes that a person makes to a model's concepts, kept as ``edits.yaml``.

An edit names a concept and says how it changes: for which classes, for which images, in which domain (images of one
data set, hospital or camera). Edits act in their order.

    set       the activation becomes ``value``: a number, "present" or "absent" (95 % and 5 % points of the training
              images)
    mask      the activation becomes its average over the training images, so that the concept says nothing
    scale     the activation is multiplied by ``value``
    shift     ``value`` is added to the activation
    remove    the weights become 0, so that no class uses the concept; the average image keeps its logits (with
              ``resolve`` a model of sparse codes writes images anew without the word)
    reweight  one standard deviation of the concept adds ``value`` to a logit; the average image keeps its logits
"""

import datetime
import getpass
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from cbm.editing.record import Record
from cbm.errors import UserError, did_you_mean
from cbm.files import write_atomically
from cbm.files.names import one_form
from cbm.files.parsing import read_yaml

OPS = {"set": True, "mask": False, "scale": True, "shift": True, "remove": False, "reweight": True}
"""The operations, and whether they take a value."""
LARGEST = 1e15  # number in a record
LEVELS = {"absent": -1.645, "present": 1.645}
"""Named values of ``set``, in standard deviations from the reference."""


@dataclass(frozen=True)
class Edit:
    """One change of a concept.

    Attributes:
        op: name of the operation, one of ``OPS``.
        concept: text of the concept in the bank.
        value: value of the operation, if it takes one.
        classes: names of the classes whose logits change; None for all.
        samples: names of the images that change; None for all.
        why: reason for the edit.
        who: author of the edit.
        when: date and time, ISO 8601.
        domain: name of the domain (a data set or a site) whose images change; None for all.
        resolve: of ``remove`` in a model of sparse codes: whether pictures are written anew without the word, so that
            other words may say what it said. By default the word's weight is set to zero and the others stay.

    Raises:
        UserError: an unknown operation, or a value that is missing, not a number, or not wanted.
    """

    op: str
    concept: str
    value: float | str | None = None
    classes: tuple[str, ...] | None = None
    samples: tuple[str, ...] | None = None
    why: str | None = None
    who: str | None = None
    when: str | None = None
    domain: str | None = None
    resolve: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "concept", one_form(self.concept))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(one_form, self.classes)))
        if self.op not in OPS:
            raise UserError(f"unknown edit '{self.op}' of '{self.concept}': {did_you_mean(str(self.op), OPS)}")
        named = f"edit '{self.op}' of '{self.concept}'"
        if not OPS[self.op]:
            if self.value is not None:
                raise UserError(f"{named} takes no value; got {self.value!r}")
        elif isinstance(self.value, str):
            if self.op != "set" or self.value not in LEVELS:
                expected = "a number, 'present' or 'absent'" if self.op == "set" else "a number"
                raise UserError(f"{named}: value is {self.value!r}; expected {expected}")
        elif isinstance(self.value, bool) or not isinstance(self.value, int | float) or not abs(self.value) < math.inf:
            raise UserError(f"{named}: value is {self.value!r}; expected a finite number")
        if self.resolve is not None and not isinstance(self.resolve, bool):
            raise UserError(f"{named}: resolve is {self.resolve!r}; expected true or false")
        if self.resolve and (self.op != "remove" or self.classes is not None):
            raise UserError(f"{named}: resolve writes pictures anew without a word, for all classes: only 'remove' can")
        for name in ("classes", "samples"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise UserError(f"{named}: the list '{name}' is empty; leave it out to mean all")

    @property
    def number(self) -> float:
        """The value of ``scale``, ``shift``, ``reweight``, or of ``set`` with a number.

        Raises:
            UserError: the edit has no number.
        """
        if not isinstance(self.value, int | float):
            raise UserError(f"{self.op} '{self.concept}': the value is {self.value!r}; expected a number")
        return float(self.value)

    def __str__(self) -> str:
        text = f"{self.op} '{self.concept}'"
        if self.value is not None:
            text += f" to {self.value if isinstance(self.value, str) else format(self.value, 'g')}"
        text += " and write pictures without it" if self.resolve else ""
        text += "" if self.classes is None else f" for {', '.join(self.classes)}"
        if self.samples is not None:
            text += f" on {self.samples[0] if len(self.samples) == 1 else f'{len(self.samples)} pictures'}"
        return text + ("" if self.domain is None else f" in {self.domain}")


@dataclass(frozen=True)
class EditSet:
    """Edits in their order. Immutable: every method returns another set.

    Attributes:
        edits: the edits.
        record: where they come from, if that is known; a set that is put together from others has none.
    """

    edits: tuple[Edit, ...] = ()
    record: Record | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.edits)

    def __add__(self, other: "EditSet | Edit") -> "EditSet":
        """These edits, then those of ``other``."""
        return EditSet((*self.edits, *((other,) if isinstance(other, Edit) else other.edits)))

    def diff(self, other: "EditSet") -> tuple[list[Edit], list[Edit]]:
        """Edits that ``other`` adds, and edits that it lacks; author and time are not compared."""

        def what(edit: Edit) -> Edit:
            return replace(edit, who=None, when=None, why=None)

        mine, theirs = [what(edit) for edit in self.edits], [what(edit) for edit in other.edits]
        added = [edit for edit, key in zip(other.edits, theirs) if theirs.count(key) > mine.count(key)]
        return added, [edit for edit, key in zip(self.edits, mine) if mine.count(key) > theirs.count(key)]

    @property
    def samples(self) -> set[str]:
        """Names of all images that some edit is limited to."""
        return {name for edit in self.edits for name in edit.samples or ()}

    @property
    def domains(self) -> set[str]:
        """Names of all domains that some edit is limited to."""
        return {edit.domain for edit in self.edits if edit.domain is not None}

    def for_picture(self, name: str | None, domain: str | None = None) -> "EditSet":
        """The edits that act on an image.

        Args:
            name: name of the image; None for the edits that act on all images.
            domain: name of the domain that the image comes from.
        """
        return EditSet(
            tuple(
                edit
                for edit in self.edits
                if (edit.samples is None or name in edit.samples) and edit.domain in (None, domain)
            )
        )

    def renamed(self, names: Mapping[str, str]) -> "EditSet":
        """The edits of concepts that have other names now, with those.

        Args:
            names: former names with present ones (``cbm.concepts.units.former_names``).
        """
        if not names or not any(edit.concept in names for edit in self.edits):
            return self
        edits = tuple(replace(edit, concept=names.get(edit.concept, edit.concept)) for edit in self.edits)
        return EditSet(edits, self.record)

    def check(self, concepts: Sequence[str], classes: Sequence[str]) -> None:
        """Check that all concepts and classes exist.

        Raises:
            UserError: a concept or class is unknown; the message names the nearest.
        """
        for number, edit in enumerate(self.edits, start=1):
            if edit.concept not in concepts:
                nearest = did_you_mean(edit.concept, concepts)
                raise UserError(f"edit {number}: no concept '{edit.concept}' in this model: {nearest}")
            for name in edit.classes or ():
                if name not in classes:
                    raise UserError(f"edit {number}: no class '{name}' in this model: {did_you_mean(name, classes)}")

    def check_pictures(self, names: Sequence[str]) -> None:
        """Check that all images exist.

        Raises:
            UserError: an image is not among ``names``; the message names the nearest.
        """
        for name in sorted(self.samples - set(names))[:1]:
            raise UserError(f"no picture '{name}' in this split: {did_you_mean(name, names)}")

    def to_yaml(self) -> bytes:
        """What ``edits.yaml`` says: a list of edits, or ``record`` and ``edits``; fields that are None are left out."""
        content: Any = [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(edit).items()
                if value is not None
            }
            for edit in self.edits
        ]
        if self.record is not None:
            known = {key: value for key, value in asdict(self.record).items() if value is not None}
            content = {"record": known, "edits": content}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()

    def save(self, path: str | Path) -> None:
        """Write ``edits.yaml``."""
        write_atomically(Path(path), self.to_yaml())


def load_edits(path: str | Path) -> EditSet:
    """Read ``edits.yaml``. Nothing in it is executed.

    Raises:
        UserError: the file cannot be read, or an entry is not an edit; the message says which.
    """
    path = Path(path)
    content = read_yaml(path)
    if content is None:
        return EditSet()
    record = None
    if isinstance(content, dict) and content.keys() == {"record", "edits"}:
        record, content = _read_record(path, content["record"]), content["edits"]
    if not isinstance(content, list):
        raise UserError(f"'{path}' is no list of edits: expected entries like '- {{op: remove, concept: ...}}'")
    return EditSet(tuple(_read(path, number, entry) for number, entry in enumerate(content, start=1)), record)


def _read_record(path: Path, entry: Any) -> Record:
    known = {each.name: each for each in fields(Record)}
    if not isinstance(entry, dict):
        raise UserError(f"'{path}' record: expected a mapping, got {str(entry)[:60]!r}")
    for key, value in entry.items():
        if key not in known:
            raise UserError(f"'{path}' record: unknown key '{key}': {did_you_mean(str(key), known)}")
        text = key in ("run", "model", "split")
        good = isinstance(value, str) if text else isinstance(value, int | float) and not isinstance(value, bool)
        if not good or (not text and not abs(value) < LARGEST):
            wanted = "text" if text else "a finite number"
            raise UserError(f"'{path}' record: '{key}' is {str(value)[:60]!r}; expected {wanted}")
    return Record(**entry)


def _read(path: Path, number: int, entry: Any) -> Edit:
    where = f"'{path}' edit {number}"
    known = [field.name for field in fields(Edit)]
    if not isinstance(entry, dict) or not {"op", "concept"} <= entry.keys():
        raise UserError(f"{where}: expected a mapping with 'op' and 'concept', got {str(entry)[:60]!r}")
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': {did_you_mean(str(key), known)}")
    values: dict[str, Any] = {
        key: value.isoformat() if isinstance(value, datetime.date) else value for key, value in entry.items()
    }
    for key in ("classes", "samples"):
        if isinstance(listed := values.get(key), str):
            values[key] = (listed,)
        elif isinstance(listed, list):
            values[key] = tuple(map(str, listed))
        elif listed is not None:
            raise UserError(f"{where}: '{key}' is {listed!r}; expected a list of names")
    values["concept"] = str(values["concept"])
    for key in ("op", "why", "who", "when", "domain"):
        if not isinstance(values.get(key), str | None):
            raise UserError(f"{where}: '{key}' is {str(values[key])[:60]}; expected text")
    try:
        return Edit(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def signed(edit: Edit, who: str | None = None) -> Edit:
    """A copy of the edit with its author (by default the user of this computer) and the time."""
    if who is None:
        try:
            who = getpass.getuser()
        except (OSError, KeyError):  # no name for this user
            who = "unknown"
    return replace(edit, who=who, when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
