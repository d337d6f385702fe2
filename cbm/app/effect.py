"""What the edits do to all pictures of the split: accuracy before and after, and every decision that flips."""

from dataclasses import dataclass

from torch import Tensor

from cbm.app.gallery import Tile, tile
from cbm.app.session import Session
from cbm.editing import Comparison, changed_most

FLIPS, CLASSES = 12, 8


@dataclass(frozen=True)
class Effect:
    """Before and after.

    Attributes:
        count: number of pictures of the split.
        before: accuracy before the edits.
        after: accuracy after the edits.
        macro_before: mean accuracy over the classes before the edits.
        macro_after: mean accuracy over the classes after the edits.
        gained: number of pictures that become right.
        lost: number of pictures that become wrong.
        flipped: number of decisions that change.
        p_value: p of an exact McNemar test.
        gains: some of the gained pictures.
        losses: some of the lost ones.
        classes: class, pictures, share right before and after, of those that changed most.
    """

    count: int
    before: float
    after: float
    macro_before: float
    macro_after: float
    gained: int
    lost: int
    flipped: int
    p_value: float
    gains: list[Tile]
    losses: list[Tile]
    classes: list[tuple[str, int, float, float]]


def effect_on_split(session: Session) -> Effect:
    """Run the edits over the whole split.

    Raises:
        UserError: a model without concepts.
    """
    found = session.compare()
    values = {key.removeprefix("edits/"): value for key, value in found.metrics().items()}
    return Effect(
        len(found.y),
        values["accuracy_before"],
        values["accuracy_after"],
        values["accuracy_macro_before"],
        values["accuracy_macro_after"],
        len(found.gained),
        len(found.lost),
        len(found.flipped),
        found.p_value,
        _tiles(session, found, found.gained),
        _tiles(session, found, found.lost),
        changed_most(found, CLASSES),
    )


def _tiles(session: Session, found: Comparison, rows: Tensor) -> list[Tile]:
    names, before, after = found.classes, found.before.argmax(dim=1), found.after.argmax(dim=1)
    return [
        tile(session.explorer, row, f"{names[int(before[row])]} → {names[int(after[row])]}", after)
        for row in rows[:FLIPS].tolist()
    ]
