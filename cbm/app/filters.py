"""Which pictures of the split are looked at: filters that can be combined, and sent to somebody as an address.

of=Aldermoor&said=Kellowyn          pictures of a class that are taken for another
group=site: A&kind=mistakes         mistakes in a group
high=water in background            the quarter of the pictures on which a concept's score is highest
words=a red bird -water             in the order in which they look like words, and not like others
like=12                             in the order in which they look like picture 12
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.inputs import LONGEST, is_number, parts_of_address
from cbm.app.search import by_likeness, by_words
from cbm.concepts.readers import match_concepts
from cbm.errors import UserError, did_you_mean
from cbm.metrics.slices import QUARTER
from cbm.trained.heat_map import concept_score

EVERY, MISTAKES = "all pictures", "mistakes"
HAVE, SAID, MISSED, INVENTED = "have it", "are said to have it", "are missed", "are wrongly said to have it"
"""Kinds of pictures: of one class the first two; of a label, or of any label, all but the second."""
LITERALS = {"high": "high", "low": "low", "shows": "present", "lacks": "absent"}
"""What a filter can say of a concept, in the words of error slices (``cbm.metrics.slices``)."""
MOST = 8
"""Concepts of each of these, at most."""
PICKED = 5000
"""Pictures that can be picked by hand, at most."""


@dataclass(frozen=True)
class Filter:
    """Some pictures of the split, in an order. What is said is said without edits.

    Attributes:
        of: only of this class; of a model of labels, the label that ``kind`` is about (any label by default).
        said: only those that are decided to be of this class.
        kind: one of ``kinds``.
        group: only of this one of ``groups``.
        high: only where the scores of these concepts are in their top quarter (on the validation pictures, if there are
            any; else here).
        low: only where they are in their bottom quarter.
        shows: only where the data set says that these concepts are present.
        lacks: only where it says that they are absent.
        picked: only these rows; all if there are none.
        words: in the order in which pictures look like words ("a red bird -water").
        like: in the order in which they look like the picture in this row.
    """

    of: str | None = None
    said: str | None = None
    kind: str = EVERY
    group: str | None = None
    high: tuple[str, ...] = ()
    low: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    picked: tuple[int, ...] = ()
    words: str = ""
    like: int | None = None

    @property
    def address(self) -> str:
        """The filter as a part of an address; empty if it is none.

        >>> Filter(of="wren", high=("red & blue",)).address
        'of=wren&high=red%20%26%20blue'
        """
        parts: list[tuple[str, str]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "picked":
                parts += [("picked", spans(value))] if value else []
            elif isinstance(value, tuple):
                parts += [(field.name, each) for each in value]
            elif value != field.default:
                parts.append((field.name, str(value)))
        return urlencode(parts, quote_via=quote)

    @property
    def said_of_concepts(self) -> list[tuple[str, str]]:
        """What is said of concepts, as pairs of ``LITERALS`` and a text."""
        return [(how, text) for how in LITERALS for text in getattr(self, how)]

    def about(self, how: str, texts: tuple[str, ...]) -> "Filter":
        """The filter that says this of concepts, ``how`` being one of ``LITERALS``."""
        said: dict[str, Any] = {how: texts}
        return replace(self, **said)

    @property
    def beyond_controls(self) -> list[tuple[str, "Filter"]]:
        """What the filter says beyond class, kind and group, in words, each with the filter without it."""
        rest = [] if self.said is None else [(f"taken for {self.said}", replace(self, said=None))]
        for how, text in self.said_of_concepts:
            others = tuple(each for each in getattr(self, how) if each != text)
            rest.append((f"'{text}' {LITERALS[how]}", self.about(how, others)))
        if self.picked:
            rest.append((f"{len(self.picked):,} picked pictures", replace(self, picked=())))
        if self.words:
            rest.append((f"like the words “{self.words}”", replace(self, words="")))
        if self.like is not None:
            rest.append((f"like picture {self.like}", replace(self, like=None)))
        return rest


def spans(rows: tuple[int, ...]) -> str:
    """Rows in short: ``3-7.12``.

    >>> spans((12, 3, 4, 5, 6, 7)), rows_of("3-7.12")
    ('3-7.12', (3, 4, 5, 6, 7, 12))
    """
    found: list[list[int]] = []
    for row in sorted(set(rows)):
        if found and row == found[-1][1] + 1:
            found[-1][1] = row
        else:
            found.append([row, row])
    return ".".join(f"{first}" if first == last else f"{first}-{last}" for first, last in found)


def rows_of(text: str) -> tuple[int, ...]:
    """The inverse of ``spans``.

    Raises:
        UserError: it says no rows, or more than ``PICKED``.
    """
    rows: list[int] = []
    for part in text.split("."):
        first, _, last = part.partition("-")
        if not is_number(first) or not is_number(last or first):
            raise UserError(f"picked={text[:40]}: expected rows such as 3-7.12")
        low, high = int(first), int(last or first)
        if high - low >= PICKED or len(rows) > PICKED:
            raise UserError(f"picked: at most {PICKED:,} pictures can be picked")
        rows += range(low, high + 1)
    return tuple(sorted(set(rows)))


def filter_of(explorer: Explorer, address: str) -> Filter:
    """The filter that a part of an address says; what an address says besides is passed over.

    Raises:
        UserError: it names a class, kind, group or concept that there is not.
    """
    said: dict[str, list[str]] = {}
    for name, value in parts_of_address(address):
        said.setdefault(name, []).append(value[: LONGEST if name != "picked" else 100_000])
    last = {name: values[-1] for name, values in said.items()}
    like = last.get("like")
    if like is not None and not is_number(like):
        raise UserError(f"like={like}: expected the row of a picture")
    many: dict[str, Any] = {how: tuple(dict.fromkeys(said.get(how, [])))[:MOST] for how in LITERALS}
    found = Filter(
        last.get("of"), last.get("said"), last.get("kind", EVERY), last.get("group"), **many,
        picked=rows_of(last["picked"]) if last.get("picked") else (), words=last.get("words", ""),
        like=None if like is None else int(like),
    )  # fmt: skip
    check_filter(explorer, found)
    return found


def check_filter(explorer: Explorer, wanted: Filter) -> None:
    """Check that all that a filter names is there.

    Raises:
        UserError: it is not.
    """
    if wanted.kind not in kinds(explorer):
        raise UserError(f"no kind '{wanted.kind}' of pictures: {did_you_mean(wanted.kind, kinds(explorer))}")
    for name in (wanted.of, wanted.said):
        if name is not None:
            class_index(explorer, name)
    if wanted.said is not None and explorer.many:
        raise UserError("a picture has several labels here: say kind=are said to have it")
    known = groups(explorer)
    if wanted.group is not None and wanted.group not in known:
        raise UserError(f"no group '{wanted.group}' in this split: {did_you_mean(wanted.group, list(known))}")
    for how, text in wanted.said_of_concepts:
        if text not in explorer.bank.texts:
            raise UserError(f"no concept '{text}' in this model: {did_you_mean(text, explorer.bank.texts)}")
        if how in ("shows", "lacks") and label_column(explorer, text) is None:
            raise UserError(f"the data set does not say where '{text}' is shown: say high or low")
    if wanted.like is not None and wanted.like >= len(explorer.split):
        raise UserError(f"no picture {wanted.like}: the split has {len(explorer.split):,}")
    if wanted.picked and wanted.picked[-1] >= len(explorer.split):
        raise UserError(f"no picture {wanted.picked[-1]}: the split has {len(explorer.split):,}")


def class_index(explorer: Explorer, name: str) -> int:
    """Number of a class.

    Raises:
        UserError: there is no such class; names the nearest.
    """
    if name not in explorer.classes:
        raise UserError(f"no class '{name}' in this model: {did_you_mean(name, explorer.classes)}")
    return explorer.classes.index(name)


def kinds(explorer: Explorer) -> list[str]:
    """The kinds of pictures that can be asked for."""
    return [EVERY, HAVE, SAID, MISSED, INVENTED] if explorer.many else [EVERY, MISTAKES]


def groups(explorer: Explorer) -> dict[str, tuple[str, int]]:
    """The groups that the split's pictures are known to be of, "site: A", with the group's column and value."""
    names, columns = explorer.data.group_names, explorer.split.groups
    return {
        f"{name}: {value}": (name, number)
        for name, column in columns.items()
        for number, value in enumerate(names.get(name, []))
        if bool((column == number).any())
    }


def label_column(explorer: Explorer, text: str) -> int | None:
    """Column of the data set's labels of a concept, or None without any."""
    if explorer.split.concepts is None:
        return None
    known = dict(match_concepts(explorer.bank.phrases, explorer.data.concept_names))
    return known.get(explorer.bank.texts.index(text))


@torch.no_grad()
def find_rows(explorer: Explorer, wanted: Filter) -> Tensor:
    """Rows of the pictures that a filter asks for, in its order.

    Raises:
        UserError: it names what there is not, or nobody can say how pictures look like words.
    """
    check_filter(explorer, wanted)
    y, said = explorer.split.y, explorer.predicted
    if explorer.many:
        columns = slice(None) if wanted.of is None else [class_index(explorer, wanted.of)]
        kept = _of_labels(y[:, columns], said[:, columns], wanted.kind)
    else:
        kept = torch.ones(len(y), dtype=torch.bool)
        if wanted.of is not None:
            kept &= y == class_index(explorer, wanted.of)
        if wanted.said is not None:
            kept &= said == class_index(explorer, wanted.said)
        if wanted.kind == MISTAKES:
            kept &= said != y
    if wanted.group is not None:
        name, value = groups(explorer)[wanted.group]
        kept &= torch.from_numpy(explorer.split.groups[name] == value)
    for how, text in wanted.said_of_concepts:
        kept &= _said_of(explorer, how, text)
    if wanted.picked:
        chosen = torch.zeros(len(y), dtype=torch.bool)
        chosen[list(wanted.picked)] = True
        kept &= chosen
    rows = kept.nonzero()[:, 0]
    for order in _orders(explorer, wanted):
        rows = rows[order()[rows].argsort(descending=True, stable=True)]
    return rows


def _orders(explorer: Explorer, wanted: Filter) -> list[Callable[[], Tensor]]:
    """How near every picture is to what is looked for, the last being what counts most."""
    orders: list[Callable[[], Tensor]] = []
    if wanted.like is not None:
        like = wanted.like
        orders.append(lambda: by_likeness(explorer, like))
    if wanted.words.strip():
        orders.append(lambda: by_words(explorer, wanted.words))
    return orders


def _said_of(explorer: Explorer, how: str, text: str) -> Tensor:
    """Where a concept is ``high``, ``low``, ``shows`` or ``lacks``, ``[N]`` bool."""
    if how in ("shows", "lacks"):
        column, labels = label_column(explorer, text), explorer.split.concepts
        assert column is not None and labels is not None  # noqa: PT018
        return labels[:, column] == float(how == "shows")
    scores = scores_of(explorer, explorer.bank.texts.index(text))
    low, high = cuts_of(explorer, explorer.bank.texts.index(text))
    return scores >= high if how == "high" else scores <= low


@lru_cache(maxsize=256)
def scores_of(explorer: Explorer, column: int) -> Tensor:
    """Score of a concept on every picture of the split, ``[N]``."""
    return concept_score(explorer.speaking, column, explorer.split.x)


@lru_cache(maxsize=4096)
def cuts_of(explorer: Explorer, column: int) -> tuple[float, float]:
    """Scores up to which a concept is low, and from which on it is high: quarters of the validation pictures."""
    val = explorer.val
    scores = scores_of(explorer, column) if val is None else concept_score(explorer.speaking, column, val.x)
    low, high = scores.double().quantile(torch.tensor([QUARTER, 1 - QUARTER], dtype=torch.float64)).tolist()
    return low, high


def _of_labels(y: Tensor, said: Tensor, kind: str) -> Tensor:
    """Which pictures ``[N]`` are of a kind by any of some labels ``[N, M]``."""
    if kind == EVERY:
        return torch.ones(len(y), dtype=torch.bool)
    if kind == SAID:
        return said.any(dim=1)
    return {HAVE: y == 1, MISSED: (y == 1) & ~said, INVENTED: (y == 0) & said}[kind].any(dim=1)
