"""Choosing a picture: of a class, or mistakes only, a page of thumbnails at a time."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.errors import UserError, did_you_mean
from cbm.report.thumbnails import Thumbnail, thumbnail

PER_PAGE = 16


@dataclass(frozen=True)
class Tile:
    """A picture among others.

    Attributes:
        row: row in the split.
        picture: thumbnail.
        true: true class.
        called: predicted class.
        note: further words.
    """

    row: int
    picture: Thumbnail
    true: str
    called: str
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether it was called what it is."""
        return self.true == self.called


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


def find_pictures(explorer: Explorer, *, of: str | None = None, mistakes: bool = False, number: int = 0) -> Page:
    """A page of the split's pictures.

    Args:
        explorer: the run.
        of: only of this class.
        mistakes: only those that are called something else, without edits.
        number: of the page; the nearest there is.
    """
    wanted = torch.ones(len(explorer.split), dtype=torch.bool)
    if of is not None:
        wanted &= explorer.split.y == class_index(explorer, of)
    if mistakes:
        wanted &= explorer.predicted != explorer.split.y
    return page_of(explorer, wanted.nonzero()[:, 0], number)


def page_of(explorer: Explorer, rows: Tensor, number: int = 0) -> Page:
    """A page of the pictures at ``rows``."""
    pages = max(1, -(-len(rows) // PER_PAGE))
    number = min(max(number, 0), pages - 1)
    shown = rows[number * PER_PAGE : (number + 1) * PER_PAGE].tolist()
    return Page([tile(explorer, row) for row in shown], number, pages, len(rows))


def tile(explorer: Explorer, row: int, note: str = "", called: Tensor | None = None) -> Tile:
    """One picture, small; ``called`` ``[N]`` are decisions other than those without edits."""
    names, decided = explorer.classes, explorer.predicted if called is None else called
    true = names[int(explorer.split.y[row])]
    return Tile(row, _small(explorer, row), true, names[int(decided[row])], note)


@lru_cache(maxsize=2000)
def _small(explorer: Explorer, row: int) -> Thumbnail:
    return thumbnail(explorer.images, row)
