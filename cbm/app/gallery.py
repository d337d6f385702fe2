"""Pictures of the split as thumbnails, a page at a time."""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.filters import Filter, find_rows
from cbm.report.thumbnails import Thumbnail, thumbnail

PER_PAGE = 16


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


def find_pictures(explorer: Explorer, wanted: Filter | None = None, number: int = 0) -> Page:
    """A page of the split's pictures.

    Args:
        explorer: the run.
        wanted: which ones; all by default.
        number: of the page; the nearest there is.

    Raises:
        UserError: the filter names a class, kind, group or concept that there is not.
    """
    return page_of(explorer, find_rows(explorer, wanted or Filter()), number)


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
