"""Names of a run's units: what they are, and how they are changed in the run directory.

Only ``bank/bank.json`` is written. A unit keeps its place, its atom and the names that it had: edits and cut points
that say an old one mean the same unit (``cbm.concepts.units``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cbm.concepts.bank import ConceptBank, load_bank
from cbm.concepts.units import Unit, find_unit, name_back, rename_unit, units_of
from cbm.files import locked
from cbm.files.run_directory import open_run, replace_kept
from cbm.layers import require_linear
from cbm.trained.model import TrainedModel


@dataclass(frozen=True)
class UnitState:
    """A unit and how it is called.

    Attributes:
        text: its name.
        unit: what the bank knows of it.
        weight: largest effect on the logit of a class, of one standard deviation over the training images.
        classes: number of classes that use it.
    """

    text: str
    unit: Unit
    weight: float
    classes: int


def unit_states(model: TrainedModel) -> list[UnitState]:
    """The units of a run, those of most weight first.

    Raises:
        UserError: its concepts were written down, or no linear head reads them.
    """
    bottleneck, bank = require_linear(model.model, model.bank), model.bank
    assert bank is not None
    find_unit(bank, bank.texts[0])  # says so if they are none
    importance = bottleneck.importance().abs()
    found = [
        UnitState(text, unit, float(importance[:, k].max()), int((importance[:, k] > 0).sum()))
        for k, (text, unit) in enumerate(zip(bank.texts, units_of(bank) or []))
    ]
    return sorted(found, key=lambda state: -state.weight)


def change_names(run: Path, change: Callable[[ConceptBank], ConceptBank]) -> ConceptBank:
    """Change the bank of a finished run; returns it as it is then.

    Args:
        run: the run directory.
        change: function from the bank to the changed one.

    Raises:
        UserError: no such run, or whatever ``change`` raises; nothing is written then.
    """
    path, _ = open_run(run)
    with locked(path):
        bank = change(load_bank(path / "bank"))
        replace_kept(path, "bank/bank.json", bank.to_json())
    return bank


def rename(run: Path, text: str, new: str) -> tuple[ConceptBank, str, str]:
    """Give a unit of a finished run another name, as a person.

    Args:
        run: the run directory.
        text: the unit's name, as it is or was.
        new: the new one.

    Returns:
        The bank, the name that the unit had, and the one that it has.

    Raises:
        UserError: no such run or unit, or a name that is empty, very long, or another unit's.
    """
    had: list[str] = []

    def change(bank: ConceptBank) -> ConceptBank:
        column = find_unit(bank, text)
        changed = rename_unit(bank, text, new)
        had.extend((bank.texts[column], changed.texts[column]))
        return changed

    return change_names(run, change), had[0], had[1]


def undo_rename(run: Path, text: str | None = None) -> tuple[ConceptBank, str, str]:
    """Take the last new name of a unit back.

    Args:
        run: the run directory.
        text: the unit's name; by default that of the unit that was named last.

    Returns:
        The bank, the name that was taken back, and the one that the unit has again.

    Raises:
        UserError: no such run or unit, or no name to take back.
    """
    had: list[str] = []

    def change(bank: ConceptBank) -> ConceptBank:
        changed, new, old = name_back(bank, text)
        had.extend((new, old))
        return changed

    return change_names(run, change), had[0], had[1]
