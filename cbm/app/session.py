"""``Session``: what one browser tab does: the picture it looks at, the concept it holds, the edits it made."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from cbm.app.explorer import Explorer, Picture
from cbm.app.filters import Filter, class_index
from cbm.app.inputs import LARGEST, LONGEST, LONGEST_WHY, number, one_of, text
from cbm.app.label import Labelling
from cbm.concepts.units import former_names
from cbm.editing import Comparison, Edit, EditSet, load_edits
from cbm.errors import UserError
from cbm.files import cannot_write, locked, place_new, write_atomically, write_in_parts
from cbm.layers import Linked
from cbm.trained.editor import Editor
from cbm.trained.heat_map import HeatMap
from cbm.trained.label_comparison import LabelComparison, compared

ALL_CLASSES = "all classes"
HERE, EVERYWHERE = "this picture", "all pictures"


class Session:
    """One tab.

    Args:
        explorer: the run it looks at.

    Attributes:
        editor: its edits; None for a model without concepts.
        picture: the picture that is looked at.
        concept: column of the concept that is held, if any.
        why: the class whose decision is explained; the decided one by default.
        proposed: edits to look at, which are not applied.
        heat: where the picture shows the held concept, once that was asked.
        wanted: which pictures of the split are shown to choose from.
        page: number of the page of them.
        compared: the edits that were last run over the split.
        labelling: the questions whether what was used is true.
        note: what became of the last thing that was written, if it is not what was to be expected.
        lock: held while something is done in the tab, which may ask for much at once.
    """

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.lock = threading.RLock()
        self.note = ""
        self._editor = Editor(explorer.model, domain=explorer.domain) if explorer.has_concepts else None
        self._saved: tuple[Path, bytes] | None = None  # the file that this tab wrote or read, as it was then
        self._dragged: Edit | None = None
        self._comparison: tuple[EditSet, Comparison | LabelComparison] | None = None
        self.wanted, self.page = Filter(), 0
        self.picture: Picture = explorer.picture(0)
        self.concept: int | None = None
        self.why: str | None = None
        self.proposed = EditSet()
        self.heat: HeatMap | None = None
        self.compared: EditSet | None = None
        self.labelling = Labelling(explorer)

    @property
    def editor(self) -> Editor:
        """Its edits.

        Raises:
            UserError: the model has no concepts.
        """
        if self._editor is None:
            _ = self.explorer.bank  # says so
        assert self._editor is not None
        if self._editor.bank is not self.explorer.model.bank:  # some tab has named a unit
            self._editor.follow_names()
            self.proposed = self.proposed.renamed(former_names(self._editor.bank))
            self._dragged = self._comparison = self.compared = None
            self.labelling = Labelling(self.explorer)
        return self._editor

    @property
    def edits(self) -> EditSet:
        """What was edited so far; nothing in a model without concepts."""
        return EditSet() if self._editor is None else self.editor.edits

    @property
    def here(self) -> EditSet:
        """The edits that act on the picture that is looked at, as edits of all pictures."""
        acting = self.edits.for_picture(self.picture.name, self.explorer.domain)
        return EditSet(tuple(replace(edit, samples=None, domain=None) for edit in acting.edits))

    @property
    def held(self) -> str:
        """Text of the concept that is held.

        Raises:
            UserError: none is.
        """
        bank = self.explorer.bank
        if self.concept is None:
            raise UserError("choose a concept first: click one of the bars, or search for it")
        return bank.texts[self.concept]

    # ------------------------------------------------------------------------------------------------------- choosing

    def look_at(self, picture: Picture) -> None:
        """Go to another picture."""
        self.picture, self.why, self.proposed, self.heat = picture, None, EditSet(), None

    def explain(self, name: str) -> None:
        """Explain the decision about a class.

        Raises:
            UserError: there is no such class.
        """
        class_index(self.explorer, text(name, "class"))
        self.why = name

    def hold(self, column: int) -> None:
        """Take up a concept.

        Raises:
            UserError: there is no such column.
        """
        if not 0 <= column < len(self.explorer.bank):
            raise UserError(f"no concept {column}: the model has {len(self.explorer.bank)}")
        self.concept, self.heat = column, None

    def look_for(self, method: str | None = None) -> None:
        """Find where the picture shows the held concept (``cbm.trained.heat_map``).

        Raises:
            UserError: there is no image, only its features, or the model has no encoder or no concepts.
        """
        if self.picture.image is None:
            raise UserError(f"'{self.picture.name}': only its features are known, there is no image to look at")
        self.heat = self.explorer.model.heat_map(self.picture.image, self.held, method)

    def rename(self, new: str | None) -> tuple[str, str]:
        """Give the held unit another name, or take its last one back (``cbm.app.Explorer.rename``)."""
        held = self.held
        was, now = self.explorer.rename(held, new)
        self.note = "" if held == was else f"'{held}' was called '{was}' by somebody else meanwhile"
        _ = self.editor  # follows the names
        return was, now

    def explained(self, logits: torch.Tensor) -> int:
        """The class that is explained: the chosen one, else the first by logits ``[C]``; of labels, the one that is
        furthest above the logit from which on it is said."""
        if self.why is not None:
            return class_index(self.explorer, self.why)
        model = self.explorer.model.model
        cuts = model.thresholds if isinstance(model, Linked) else None
        return int((logits if cuts is None else logits - cuts.to(logits)).argmax())

    # -------------------------------------------------------------------------------------------------------- editing

    def edit(
        self, op: str, value: float | str | None = None, *, scope: str = HERE, classes: str = ALL_CLASSES, why: str = ""
    ) -> Edit:
        """Edit the held concept. Setting it again takes the place of the last edit, so that a dragged value is one.

        With a concept that is set present, those that exclude it are set absent (``cbm.Editor.exclusively``).

        Args:
            op: one of ``cbm.editing.edits.OPS``.
            value: if it takes one.
            scope: "this picture" or "all pictures".
            classes: the class that is told, or "all classes".
            why: kept with the edit.
        """
        edit = self._edit(self.held, op, value, scope, classes, why)
        number = self.explorer.bank.concepts[self.explorer.bank.index(edit.concept)].provenance.get("number")
        if number is not None and op == "set":
            if isinstance(edit.value, str):
                raise UserError(f"'{edit.concept}' is a number: it is neither present nor absent, but has a value")
            said = f"{number['mean'] + number['sd'] * edit.number:.4g} {number['unit'] or ''}".strip()
            edit = replace(edit, why=f"{edit.why}: {said}" if edit.why else said)
        self.why = self.explorer.classes[self.explained(self.logits())]  # stays, whatever comes first by the edit
        before = self._dragged
        self._dragged = None
        if before is not None and before.op == op and replace(before, value=value, why=edit.why) == edit:
            self.editor.undo()
        self._apply(self.editor.exclusively(edit))
        self._dragged = edit
        return edit

    def remove_alike(self, *, scope: str = HERE, classes: str = ALL_CLASSES, why: str = "") -> list[str]:
        """Remove the held concept and all that go with it on these pictures: one would read on for the other.

        Returns:
            The texts of all that are removed, to be looked at: one may belong to the class itself.
        """
        self._dragged = None
        texts = self.editor.alike(self.held, split=self.explorer.split)
        self._apply(EditSet(tuple(self._edit(text, "remove", None, scope, classes, why) for text in texts)))
        return texts

    def _edit(self, concept: str, op: str, value: float | str | None, scope: str, classes: str, why: str) -> Edit:
        one_of(scope, (HERE, EVERYWHERE), "For")
        text(classes, "As read by")
        text(why, "Why", LONGEST_WHY)
        if value is not None and not isinstance(value, str):
            number(value, "the value", -LARGEST * LARGEST, LARGEST * LARGEST)
        told = None if classes == ALL_CLASSES else (self.explorer.classes[class_index(self.explorer, classes)],)
        return Edit(op, concept, value, told, (self.picture.name,) if scope == HERE else None, why=why.strip() or None)

    def _apply(self, edits: Edit | EditSet) -> None:
        """Add edits that the model has a place for, or none: a tab must go on after a refusal."""
        self.editor.apply(edits)
        try:
            self.logits()
        except UserError:
            self.editor.undo()
            raise

    def undo(self) -> None:
        """Take the last change back."""
        self._dragged = None
        self.editor.undo()

    def redo(self) -> None:
        """Make it again."""
        self._dragged = None
        self.editor.redo()

    def go_to(self, step: int) -> None:
        """Undo or redo until a step of the edits' timeline."""
        self._dragged = None
        self.editor.go_to(step)

    def propose(self, edits: EditSet, *, scope: str = EVERYWHERE) -> None:
        """Keep edits to look at, for this picture or for all."""
        if scope == HERE:
            edits = EditSet(tuple(replace(edit, samples=(self.picture.name,)) for edit in edits.edits))
        self.proposed = edits

    def accept(self) -> None:
        """Apply what was proposed.

        Raises:
            UserError: nothing was.
        """
        if not len(self.proposed):
            raise UserError("nothing is proposed")
        self._dragged = None
        self._apply(self.proposed)
        self.proposed = EditSet()

    def correct(self, label: str, margin: float = 0.2, present: bool = True) -> None:
        """Give the held concept just the weight by which this picture becomes ``label``; of a model of labels, by which
        it is said to have the label, or not to have it if ``present`` is False."""
        self._dragged = None
        has = ("has" if present else "does not have") if self.explorer.many else "is"
        there, why = Editor(self.explorer.model, self.here), f"'{self.picture.name}' {has} {label}"
        there.correct(self.picture.x, label, self.held, margin=margin, present=present, why=why)
        self._apply(EditSet(there.edits.edits[len(self.here) :]))

    def smallest_flip(self, label: str | None = None) -> None:
        """Propose the fewest concepts that would change the decision about this picture.

        Args:
            label: the class that it should be, any other by default; of a model of labels, the label of which the
                opposite should be said.

        Raises:
            UserError: no change of five concepts or fewer does it.
        """
        found = Editor(self.explorer.model, self.here).smallest_flip(self.picture.x, label)
        if found is None:
            to = "the decision" if label is None else f"the decision {'about' if self.explorer.many else 'to'} {label}"
            raise UserError(f"no change of five concepts or fewer, within what training pictures show, flips {to}")
        self.propose(found, scope=HERE)

    def follow(self) -> None:
        """Propose what follows from the concepts that were set present or absent on this picture.

        Raises:
            UserError: the model is not energy-based, or nothing was told yet.
        """
        told = {
            edit.concept: edit.value for edit in self.here.edits if edit.op == "set" and isinstance(edit.value, str)
        }
        if self.explorer.energies is not None and not told:
            raise UserError("tell it something first: set a concept of this picture present or absent")
        found = self.editor.follow(self.picture.x, told)
        self.propose(EditSet(tuple(edit for edit in found.edits if edit.concept not in told)), scope=HERE)

    # ------------------------------------------------------------------------------------------- the whole split, files

    def compare(self) -> Comparison | LabelComparison:
        """Decisions about all pictures of the split, before and after; remembered until the edits change."""
        if self._comparison is None or self._comparison[0] != self.edits:
            explorer, split = self.explorer, self.explorer.split
            after = self.editor.logits(split.x, split.names, explorer.logits)
            made = compared(explorer.model.model, explorer.logits, after, split.y, explorer.classes)
            self._comparison = self.edits, made
        return self._comparison[1]

    def save(self) -> tuple[Path, int]:
        """Write the edits into the run directory: ``edits.yaml``, or the next free ``edits-2.yaml``, ...

        A file that this tab wrote or read is written again unless somebody else has changed it; others are left alone.
        ``note`` says so where it came to that.

        Returns:
            The file, and how many edits are not in it: those of dropped pictures, which no split knows.

        Raises:
            UserError: there is nothing to save, or it cannot be written; the edits stay in the tab.
        """
        known = set(self.explorer.split.names)
        kept = EditSet(tuple(edit for edit in self.edits.edits if known.issuperset(edit.samples or ())))
        if not len(kept):
            raise UserError("there is no edit to save" + (" but of dropped pictures" if len(self.edits) else ""))
        self.explorer.check_place()
        record = self.editor.record(f"{self.explorer.domain}/{self.explorer.name}")
        folder, content = self.explorer.model.path, EditSet(kept.edits, record).to_yaml()
        try:
            with locked(folder):
                passed, path = self._write(folder, content)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self.note = f"{passed}: saved as {path.name}" if passed else ""
        self._saved = path, content
        return path, len(self.edits) - len(kept)

    def _write(self, folder: Path, content: bytes) -> tuple[str, Path]:
        """Write to the first file that is this tab's, as it left it, or that is not there; and why not to one before.

        Nothing is replaced but what this tab wrote or read, also where there are no locks.
        """
        passed = ""
        for path in edit_files(folder):
            if self._saved is not None and path == self._saved[0] and os.path.lexists(path):
                if is_still(path, self._saved[1]):
                    write_atomically(path, content)
                    return passed, path
                passed = f"{path.name} was changed by somebody else meanwhile"
            elif os.path.lexists(path):
                passed = passed or f"{path.name} was there already, and is not this tab's"
            elif write_new(path, content):
                return passed, path
        raise AssertionError("there is always another name")

    def saved_files(self) -> list[Path]:
        """Edits that are in the run directory."""
        return sorted(path for path in self.explorer.model.path.glob("edits*.yaml") if path.is_file())

    def read(self, file: str) -> Path:
        """Add the edits of a file of the run directory.

        Raises:
            UserError: there is no such file, or it does not fit the model; nothing is changed then.
        """
        found = {path.name: path for path in self.saved_files()}
        if file not in found:
            raise UserError(f"no '{file[:LONGEST]}' in '{self.explorer.model.path}'")
        try:
            content = found[file].read_bytes()
        except OSError as error:
            raise UserError(f"cannot read '{found[file]}': {error.strerror or error}") from error
        edits = load_edits(found[file])
        begun = bool(len(self.edits))
        self._dragged = None
        self._apply(edits)
        if not begun:
            self._saved = found[file], content
        return found[file]

    def logits(self) -> torch.Tensor:
        """``[C]`` of the picture that is looked at, after the edits."""
        if self._editor is None:
            return self.explorer.model.predict_features(self.picture.x[None]).logits[0]
        return self.editor.logits(self.picture.x[None], [self.picture.name])[0]


def edit_files(folder: Path) -> Iterator[Path]:
    """``edits.yaml``, ``edits-2.yaml``, ... of a folder, without end."""
    yield folder / "edits.yaml"
    yield from (folder / f"edits-{number}.yaml" for number in count(2))


def is_still(path: Path, content: bytes) -> bool:
    """Whether a file is there and says what it said."""
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError:
        return False


def write_new(path: Path, content: bytes) -> bool:
    """Write a file if nothing has its name; whether it was so.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    placed: list[bool] = []
    write_in_parts(path.parent, [content], lambda: path.name, lambda new, at: placed.append(place_new(new, at)))
    return placed[0]
