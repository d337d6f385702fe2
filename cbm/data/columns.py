"""``columns.yaml`` beside a table: which columns are labels, and what their cells and those of concepts mean."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cbm.data.dataset import ConceptSpec, Kind
from cbm.data.labels import BLANK, MOST_LABELS, NO, UNKNOWN, UNSURE, YES, as_number, listed, parts_of
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form
from cbm.files.parsing import read_yaml

FILE = "columns.yaml"
KEYS = (
    "labels", "cells", "concepts", "groups", "subject", "template", "negative_template", "allow_overlap",
)  # fmt: skip
LIST_KEYS = ("column", "separator", "none")
CONCEPT_KEYS = ("values", "ordered", "unit", "range", "column")
MEANINGS = {"unknown": UNSURE, "absent": 0.0, "present": 1.0}
MOST_LEVELS = 20

Cells = Sequence[dict[str, str]]
"""Cells of every row of a table, by column."""


@dataclass(frozen=True)
class Attribute:
    """A concept as a column says it.

    Attributes:
        name: its name.
        column: where it stands.
        kind: ``binary``, ``categorical``, ``ordinal`` or ``continuous``.
        values: words of its values, or of its levels from the lowest on.
        unit: of a number.
        low: smallest number that can be.
        high: largest number that can be.
    """

    name: str
    column: str
    kind: Literal["binary"] | Kind = "binary"
    values: list[str] = field(default_factory=list)
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the concepts that it becomes."""
        return [f"{self.name}: {value}" for value in self.values] if self.kind == "categorical" else [self.name]


@dataclass(frozen=True)
class Columns:
    """What ``columns.yaml`` says.

    Attributes:
        file: the file.
        labels: columns of the labels, one each; empty if one column lists them, or the images have classes.
        listed: the one column that lists labels; empty if there is none.
        separator: what stands between two of them.
        none: what that column says of an image without labels; empty if nothing does.
        cells: what a cell means: 1, 0 or ``cbm.data.labels.UNSURE``.
        attributes: the concepts.
        groups: columns of groups.
        subject: column of the subjects, or None.
        template: sentence that says an image shows a label, with ``{}``; empty if none is given.
        negative_template: sentence that says it does not.
    """

    file: Path
    labels: list[str]
    listed: str
    separator: str
    none: str
    cells: dict[str, float]
    attributes: list[Attribute]
    groups: list[str]
    subject: str | None
    template: str
    negative_template: str

    @property
    def many(self) -> bool:
        """Whether an image has any number of labels."""
        return bool(self.labels or self.listed)

    @property
    def blank(self) -> str:
        """What an empty cell of a label is taken for, one of ``cbm.data.labels.POLICIES``."""
        return {1.0: "present", 0.0: "absent"}.get(self.cells.get("", UNSURE), "ignore")

    @property
    def used(self) -> list[str]:
        """Columns of labels and concepts, each once."""
        return list(dict.fromkeys([*self.labels, *filter(None, [self.listed]), *(a.column for a in self.attributes)]))

    def label_values(self, table: Path, cells: Cells) -> tuple[list[str], np.ndarray]:
        """Names of the labels, and whether every image has them: ``[N, L]`` of 1, 0, ``UNSURE``, ``BLANK``.

        Args:
            table: the table, for messages.
            cells: cells of N images.

        Raises:
            UserError: a cell means nothing that is known, or there are no labels or too many.
        """
        names, values = self._of_list(table, cells) if self.listed else (self.labels, self._of_columns(table, cells))
        if not 0 < len(names) <= MOST_LABELS:
            raise UserError(f"'{table.name}' has {len(names):,} labels: expected 1 to {MOST_LABELS}")
        return names, values

    def _of_columns(self, table: Path, cells: Cells) -> np.ndarray:
        values = np.empty((len(cells), len(self.labels)))
        for column, label in enumerate(self.labels):
            for row, record in enumerate(cells):
                cell = one_form(record[label])
                if (value := self._meaning(cell)) is None:
                    raise UserError(self._undeclared(table, label, cell))
                values[row, column] = value
        return values

    def _of_list(self, table: Path, cells: Cells) -> tuple[list[str], np.ndarray]:
        said = [one_form(record[self.listed]) for record in cells]
        whole = {cell: self._declared(cell) for cell in set(said)}
        if wrong := [cell for cell, value in whole.items() if value == 1]:
            raise UserError(f"'{self.file}': cells: '{wrong[0]}' is present: column '{self.listed}' names labels")
        plain = [cell if whole[cell] is None else "" for cell in said]
        found = {cell: parts_of(cell, self.separator) for cell in set(plain) - {self.none}}
        for cell, names in found.items():
            if self.none and self.none in names:
                raise UserError(
                    f"'{table.name}' holds '{cell}' in column '{self.listed}': '{self.none}' and a label exclude each "
                    "other"
                )
        labels = sorted({name for names in found.values() for name in names})
        if self.none and self.none not in plain and self.none.casefold() in {name.casefold() for name in labels}:
            raise UserError(
                f"'{self.file}': none is '{self.none}', which no cell of column '{self.listed}' says; "
                f"{did_you_mean(self.none, labels)}"
            )
        values = listed(plain, self.separator, self.none or None, labels)
        for row, cell in enumerate(said):
            if (value := whole[cell]) is not None:
                values[row] = value if cell else BLANK
        return labels, values

    def _meaning(self, cell: str) -> float | None:
        """What a label's cell means; None if nobody knows."""
        value = self._declared(cell)
        if value is None:
            low = cell.casefold()
            value = 1.0 if low in YES else 0.0 if low in NO else UNSURE if low in UNKNOWN else None
        return value if cell else BLANK

    def _declared(self, cell: str) -> float | None:
        """What ``cells`` says of a cell, in whatever spelling of a number; None if nothing."""
        if cell in self.cells or not self.cells:
            return self.cells.get(cell)
        if (number := as_number(cell)) is None:
            return None
        return next((value for known, value in self.cells.items() if as_number(known) == number), None)

    def _undeclared(self, table: Path, label: str, cell: str) -> str:
        shown = "-1" if as_number(cell) == -1 else cell
        meanings = "unknown | absent" if shown == "-1" else "unknown | absent | present"
        return (
            f"'{table.name}' holds {shown if as_number(cell) is not None else repr(shown)} in column '{label}': say in "
            f"{self.file.name} what it means (cells: {{{json.dumps(shown, ensure_ascii=False)}: {meanings}}})"
        )

    def concept_values(self, table: Path, cells: Cells) -> np.ndarray:
        """Values ``[N, A]`` float32 of the concepts: 1, 0, a level or a number; NaN if unknown.

        Args:
            table: the table, for messages.
            cells: cells of N images.

        Raises:
            UserError: a cell is no value of its concept.
        """
        parts = [np.empty((len(cells), 0), dtype=np.float32)]
        for attribute in self.attributes:
            said = [one_form(record[attribute.column]) for record in cells]
            known = {cell: self._value(table, attribute, cell) for cell in set(said)}
            column = np.array([known[cell] for cell in said], dtype=np.float32)
            if attribute.kind == "categorical":
                shown = (column[:, None] == np.arange(len(attribute.values))).astype(np.float32)
                parts.append(np.where(np.isnan(column)[:, None], np.float32(np.nan), shown))
            else:
                parts.append(column[:, None])
        return np.concatenate(parts, axis=1)

    def _value(self, table: Path, attribute: Attribute, cell: str) -> float:
        """What a concept's cell means: 1 or 0, the number of a value or level, a number."""
        low = cell.casefold()
        if attribute.kind in ("categorical", "ordinal"):
            if (index := _index(attribute.values, cell)) is not None:
                return float(index)
            if self._declared(cell) == UNSURE or low in UNKNOWN:
                return np.nan
            raise UserError(
                f"'{table.name}': column '{attribute.column}' holds '{cell}', which is not among the "
                f"{'levels' if attribute.kind == 'ordinal' else 'values'} in {self.file.name}; "
                f"{did_you_mean(cell, attribute.values)}"
            )
        value = self._declared(cell)
        if value == UNSURE or (value is None and low in UNKNOWN):
            return np.nan
        if attribute.kind == "binary":
            found = value if value is not None else 1.0 if low in YES else 0.0 if low in NO else None
            if found is None:
                raise UserError(
                    f"'{table.name}': column '{attribute.column}' holds '{cell}': a binary concept is 1, 0 or empty "
                    f"(or yes, no); {self.file.name} can say {{values: [...]}}, {{ordered: [...]}} or {{unit: ...}}"
                )
            return found
        if (number := as_number(cell)) is None:
            raise UserError(f"'{table.name}': column '{attribute.column}' holds '{cell}', expected a number")
        if not (attribute.low is None or number >= attribute.low) or not (
            attribute.high is None or number <= attribute.high
        ):
            low_, high = (("any" if end is None else f"{end:g}") for end in (attribute.low, attribute.high))
            raise UserError(
                f"'{table.name}': column '{attribute.column}' holds {cell}, outside its range in {self.file.name} "
                f"({low_} to {high} {attribute.unit}".rstrip()
                + ")"
            )
        return number

    def concept_names(self) -> list[str]:
        """Names of the A concepts."""
        return [name for attribute in self.attributes for name in attribute.columns]

    def concept_groups(self) -> dict[str, list[str]]:
        """Concepts that exclude each other: the values of one column."""
        return {each.name: each.columns for each in self.attributes if each.kind == "categorical"}

    def specs(self) -> list[ConceptSpec]:
        """What is no yes or no."""
        return [
            ConceptSpec(each.name, each.kind, each.columns, each.values, each.unit, each.low, each.high)
            for each in self.attributes
            if each.kind != "binary"
        ]


def _index(values: Sequence[str], cell: str) -> int | None:
    """Which of the values a cell is: as it is written, then in any case, then as a number."""
    if cell in values:
        return values.index(cell)
    folded = [value.casefold() for value in values]
    if folded.count(cell.casefold()) == 1:
        return folded.index(cell.casefold())
    number = as_number(cell)
    return None if number is None else next((i for i, v in enumerate(values) if as_number(v) == number), None)


def read_columns(file: Path, header: Sequence[str], table: Path) -> Columns:
    """Read ``columns.yaml``.

    Args:
        file: the file.
        header: columns of the table beside it.
        table: the table, for messages.

    Raises:
        UserError: the file says something else than it can, or names a column that is not there.
    """
    said = _mapping(file, "", read_yaml(file), KEYS)
    if "labels" in said and not said["labels"]:
        raise UserError(f"'{file}': labels is empty: name columns, or leave the key out where an image has one class")
    labels, column, separator, none = _labels(file, said.get("labels"))
    concepts = said.get("concepts") or {}
    if isinstance(concepts, list):
        concepts = dict.fromkeys(map(_word(file, "concepts"), concepts), "binary")
    if not isinstance(concepts, dict):
        raise _wrong(file, "concepts", concepts, "{NAME: binary}")
    attributes = [_attribute(file, _word(file, "concepts")(name), how) for name, how in concepts.items()]
    for setting in ("template", "negative_template"):
        if (sentence := said.get(setting)) is not None and not (isinstance(sentence, str) and "{}" in sentence):
            raise _wrong(file, setting, sentence, 'a sentence with {} for the label ("no {}.")')
    if not isinstance(overlap := said.get("allow_overlap", False), bool):
        raise _wrong(file, "allow_overlap", overlap, "true or false")
    subject = said.get("subject")
    columns = Columns(
        file,
        labels,
        column,
        separator,
        none,
        _cells(file, said.get("cells")),
        attributes,
        _words(file, "groups", said.get("groups")),
        None if subject is None else _word(file, "subject")(subject),
        said.get("template") or "",
        said.get("negative_template") or "",
    )
    _check(columns, header, table, overlap)
    return columns


def _check(columns: Columns, header: Sequence[str], table: Path, overlap: bool) -> None:
    """Whether all columns are there, and none is two things."""
    roles = [
        ("labels", columns.labels or list(filter(None, [columns.listed]))),
        ("concepts", [attribute.column for attribute in columns.attributes]),
        ("groups", columns.groups),
        ("subject", list(filter(None, [columns.subject]))),
    ]
    for role, names in roles:
        for name in names:
            if name not in header:
                raise UserError(
                    f"'{columns.file}': {role} names a column '{name}' that '{table.name}' lacks; "
                    f"{did_you_mean(name, header)}"
                )
    if len(set(columns.labels)) < len(columns.labels):
        twice = next(name for name in columns.labels if columns.labels.count(name) > 1)
        raise UserError(f"'{columns.file}': labels names '{twice}' twice")
    if (both := sorted(set(columns.labels) & set(roles[1][1]))) and not overlap:
        raise UserError(
            f"'{columns.file}': column '{both[0]}' is a label and a concept: keep one (allow_overlap: true allows "
            "both; the head of that label then does not read the concept)"
        )
    for attribute in columns.attributes:
        folded = [value.casefold() for value in attribute.values]
        if again := [value for n, value in enumerate(attribute.values) if value.casefold() in folded[:n]]:
            raise UserError(
                f"'{columns.file}': concept '{attribute.name}' has '{again[0]}' twice (capitals do not count)"
            )
    names = columns.concept_names()
    if twice_ := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"'{columns.file}': two concepts are called '{twice_[0]}'")


def _wrong(file: Path, where: str, found: Any, expected: str) -> UserError:
    shown = str(found) if len(str(found)) < 80 else f"{str(found)[:80]}..."
    return UserError(f"'{file}': {where} is {shown}, expected {expected}")


def _mapping(file: Path, where: str, found: Any, known: Sequence[str]) -> dict[str, Any]:
    """A mapping without unknown keys."""
    if not isinstance(found, dict):
        raise _wrong(file, where or "the content", found, f"a mapping ({', '.join(known)})")
    for key in found:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise UserError(f"'{file}': unknown key '{f'{where}: ' * bool(where)}{key}', {near}")
    return found


def _word(file: Path, where: str) -> Any:
    """A function that takes what should be a name; YAML reads ``no`` as false."""

    def word(found: Any) -> str:
        if isinstance(found, bool) or not isinstance(found, str | int | float) or not (name := one_form(str(found))):
            raise _wrong(file, where, found, 'a name (in quotes if YAML takes it for something else: "yes")')
        return name

    return word


def _words(file: Path, where: str, found: Any) -> list[str]:
    """Names, or one name."""
    if found is None:
        return []
    if not isinstance(found, list | str | int | float):
        raise _wrong(file, where, found, "a list of names")
    return list(map(_word(file, where), found if isinstance(found, list) else [found]))


def _labels(file: Path, found: Any) -> tuple[list[str], str, str, str]:
    """Columns of labels; or the column that lists them, what separates them, and what stands for none."""
    if not isinstance(found, dict):
        return _words(file, "labels", found), "", "", ""
    said = _mapping(file, "labels", found, LIST_KEYS)
    if "column" not in said:
        raise _wrong(file, "labels", found, "a list of columns, or {column: findings, separator: '|'}")
    separator = said.get("separator", "|")
    if not isinstance(separator, str) or not separator:
        raise _wrong(file, "labels: separator", separator, 'a sign, such as "|"')
    none = said.get("none")
    return [], _word(file, "labels")(said["column"]), separator, "" if none is None else _word(file, "labels")(none)


def _cells(file: Path, found: Any) -> dict[str, float]:
    """What cells mean."""
    meanings = {}
    if not isinstance(found, dict | None):
        raise _wrong(file, "cells", found, '{"-1": unknown}')
    for cell, meaning in (found or {}).items():
        if isinstance(cell, bool):
            raise _wrong(file, "cells", cell, 'a cell in quotes ("yes")')
        if meaning not in MEANINGS:
            near = did_you_mean(str(meaning), MEANINGS)
            raise UserError(f"'{file}': cells: '{cell}' is '{meaning}': {near}")
        meanings["" if cell is None else one_form(str(cell))] = MEANINGS[meaning]
    return meanings


def _attribute(file: Path, name: str, how: Any) -> Attribute:
    """A concept from what is said about it."""
    where = f"concepts: {name}"
    if how is None or how == "binary":
        return Attribute(name, name)
    if not isinstance(how, dict):
        expected = "binary, {values: [...]}, {ordered: [...]} or {unit: ..., range: [...]}"
        raise _wrong(file, where, how, expected)
    said = _mapping(file, where, how, CONCEPT_KEYS)
    column = _word(file, where)(said.get("column", name))
    kinds = [key for key in ("values", "ordered", "unit") if key in said or (key == "unit" and "range" in said)]
    if len(kinds) > 1:
        raise UserError(f"'{file}': {where} has {' and '.join(kinds)}: keep one")
    if not kinds:
        return Attribute(name, column)
    if kinds == ["unit"]:
        low, high = _range(file, where, said.get("range"))
        unit = said.get("unit")
        return Attribute(name, column, "continuous", [], "" if unit is None else _word(file, where)(unit), low, high)
    values = _words(file, f"{where}: {kinds[0]}", said[kinds[0]])
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise UserError(f"'{file}': {where} has '{twice[0]}' twice")
    least = 3 if kinds == ["ordered"] else 2
    if not least <= len(values) <= MOST_LEVELS:
        use = " (use binary)" if len(values) < least else ""
        kind = "levels" if least == 3 else "values"
        raise UserError(f"'{file}': {where} has {len(values)} {kind}, expected {least} to {MOST_LEVELS}{use}")
    return Attribute(name, column, "ordinal" if least == 3 else "categorical", values)


def _range(file: Path, where: str, found: Any) -> tuple[float | None, float | None]:
    """The ends of ``range``, which may be open (``[0, null]``)."""
    if found is None:
        return None, None
    good = isinstance(found, list) and len(found) == 2
    good = good and all(
        end is None or (isinstance(end, int | float) and not isinstance(end, bool) and abs(end) < 1e30) for end in found
    )
    if not good or (None not in found and found[0] >= found[1]):
        raise _wrong(file, f"{where}: range", found, "the smallest and the largest number, such as [0, 200]")
    low, high = (None if end is None else float(end) for end in found)
    return low, high
