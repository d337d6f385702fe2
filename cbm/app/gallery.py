"""Choosing a picture: of a class, a label or a group, or mistakes only, a page of thumbnails at a time."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.errors import UserError, did_you_mean
from cbm.report.thumbnails import Thumbnail, thumbnail

PER_PAGE = 16
EVERY, MISTAKES = "all pictures", "mistakes"
HAVE, SAID, MISSED, INVENTED = "have it", "are said to have it", "are missed", "are wrongly said to have it"
"""Kinds of pictures: of one class the first two; of a label, or of any label, all but the second."""


@dataclass(frozen=True)
class Tile:
    """A picture among others.

    Attributes:
        row: row in the split.
        picture: thumbnail.
        true: true class, or the labels that it has.
        called: predicted class, or the labels that are said.
        right: whether everything that is known of it is said.
        wrong: what is wrong, in words; empty if nothing is.
        note: further words.
    """

    row: int
    picture: Thumbnail
    true: str
    called: str
    right: bool
    wrong: str = ""
    note: str = ""


@dataclass(frozen=True)
class Page:
    """Some of the pictures that were asked for.

    Attributes:
        tiles: pictures of this page.
        number: number of the page, from 0.
        pages: number of pages.
        count: number of pictures on all pages.
    """

    tiles: list[Tile]
    number: int
    pages: int
    count: int


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


def find_pictures(
    explorer: Explorer, *, of: str | None = None, kind: str = EVERY, group: str | None = None, number: int = 0
) -> Page:
    """A page of the split's pictures.

    Args:
        explorer: the run.
        of: only of this class; of a model of labels, the label that ``kind`` is about (any label by default).
        kind: one of ``kinds``. What is said is said without edits.
        group: only of this one of ``groups``.
        number: of the page; the nearest there is.

    Raises:
        UserError: there is no such class, kind or group.
    """
    if kind not in kinds(explorer):
        raise UserError(f"no kind '{kind}' of pictures: {did_you_mean(kind, kinds(explorer))}")
    y, said = explorer.split.y, explorer.predicted
    if explorer.many:
        columns = slice(None) if of is None else [class_index(explorer, of)]
        wanted = _of_labels(y[:, columns], said[:, columns], kind)
    else:
        wanted = torch.ones(len(y), dtype=torch.bool) if of is None else y == class_index(explorer, of)
        if kind == MISTAKES:
            wanted = wanted & (said != y)
    if group is not None:
        there = groups(explorer)
        if group not in there:
            raise UserError(f"no group '{group}' in this split: {did_you_mean(group, list(there))}")
        name, value = there[group]
        wanted = wanted & torch.from_numpy(explorer.split.groups[name] == value)
    return page_of(explorer, wanted.nonzero()[:, 0], number)


def _of_labels(y: Tensor, said: Tensor, kind: str) -> Tensor:
    """Which pictures ``[N]`` are of a kind by any of some labels ``[N, M]``."""
    if kind == EVERY:
        return torch.ones(len(y), dtype=torch.bool)
    if kind == SAID:
        return said.any(dim=1)
    return {HAVE: y == 1, MISSED: (y == 1) & ~said, INVENTED: (y == 0) & said}[kind].any(dim=1)


def page_of(explorer: Explorer, rows: Tensor, number: int = 0) -> Page:
    """A page of the pictures at ``rows``."""
    pages = max(1, -(-len(rows) // PER_PAGE))
    number = min(max(number, 0), pages - 1)
    shown = rows[number * PER_PAGE : (number + 1) * PER_PAGE].tolist()
    return Page([tile(explorer, row) for row in shown], number, pages, len(rows))


def tile(explorer: Explorer, row: int, note: str = "", called: Tensor | None = None) -> Tile:
    """One picture, small; ``called`` (``[N]``, or ``[N, L]`` bool) are decisions other than those without edits."""
    names, decided = explorer.classes, (explorer.predicted if called is None else called)[row]
    y, small = explorer.split.y[row], _small(explorer, row)
    if not explorer.many:
        true, said = names[int(y)], names[int(decided)]
        return Tile(row, small, true, said, true == said, "" if true == said else f"✗ {said}", note)
    missed, invented = (y == 1) & ~decided, (y == 0) & decided
    parts = [("missed", missed), ("invented", invented)]
    wrong = "; ".join(f"✗ {word} {names_of(explorer, which)}" for word, which in parts if bool(which.any()))
    return Tile(row, small, names_of(explorer, y == 1), names_of(explorer, decided), not wrong, wrong, note)


def names_of(explorer: Explorer, which: Tensor) -> str:
    """The labels of a mask ``[L]``, in words."""
    return ", ".join(explorer.classes[label] for label in which.nonzero()[:, 0].tolist()) or "no label"


@lru_cache(maxsize=2000)
def _small(explorer: Explorer, row: int) -> Thumbnail:
    return thumbnail(explorer.images, row)
