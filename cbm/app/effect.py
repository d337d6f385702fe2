"""What the edits do to all pictures of the split: accuracy before and after, and every decision that flips."""

from dataclasses import dataclass

from torch import Tensor

from cbm.app.gallery import Tile, tile
from cbm.app.session import Session
from cbm.editing import Comparison, changed_most
from cbm.trained.label_comparison import LabelComparison

FLIPS, CLASSES = 12, 8


@dataclass(frozen=True)
class Effect:
    """Before and after.

    Attributes:
        count: number of pictures of the split.
        name: name of the headline: accuracy, or mean AUROC of labels.
        shown: the headline before and after the edits; of classes, then the mean accuracy over the classes.
        gained: number of pictures that become right; of labels, of entries (picture, label).
        lost: number of them that become wrong.
        flipped: number of decisions that change; those neither gained nor lost were wrong before and after, or nobody
            knows.
        p_value: p of an exact McNemar test; of labels the smallest, corrected for their number (Holm).
        gains: some of the gained pictures.
        losses: some of the lost ones.
        classes: class, pictures, share right before and after, of those that changed most; of labels the balanced
            accuracy.
    """

    count: int
    name: str
    shown: list[tuple[float, float]]
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
    if isinstance(found, LabelComparison):
        name, shown = "mean AUROC", [(values["auroc_macro_before"], values["auroc_macro_after"])]
        tests = [test.p_holm for test in found.tests]
        p_value = min(tests, default=1.0)
    else:
        name, p_value = "accuracy", found.p_value
        shown = [(values[f"{key}_before"], values[f"{key}_after"]) for key in ("accuracy", "accuracy_macro")]
    return Effect(
        len(found.y),
        name,
        shown,
        len(found.gained),
        len(found.lost),
        len(found.flipped),
        p_value,
        _tiles(session, found, found.gained),
        _tiles(session, found, found.lost),
        changed_most(found, CLASSES),
    )


def _tiles(session: Session, found: Comparison | LabelComparison, rows: Tensor) -> list[Tile]:
    names = found.classes
    if isinstance(found, LabelComparison):
        after = found.after > found.thresholds
        notes = [f"{'+' if after[row, label] else '−'} {names[label]}" for row, label in rows[:FLIPS].tolist()]
        pictures = rows[:FLIPS, 0].tolist()
    else:
        before, after = found.before.argmax(dim=1), found.after.argmax(dim=1)
        pictures = rows[:FLIPS].tolist()
        notes = [f"{names[int(before[row])]} → {names[int(after[row])]}" for row in pictures]
    return [tile(session.explorer, row, note, after) for row, note in zip(pictures, notes)]
