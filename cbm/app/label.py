"""The tab "Is it true?": a picture, a phrase that was used for it, yes or no, and what the answers say so far."""

from functools import cached_property

from cbm.app.explorer import Explorer
from cbm.app.render import render, script
from cbm.data.concept_answers import PEOPLES_TABLE
from cbm.errors import UserError
from cbm.files import cannot_write
from cbm.layers import require_linear
from cbm.metrics.pair_queue import Pair, PairQueue
from cbm.report.thumbnails import data_uri

ANSWERS = {"yes": True, "no": False, "skip": None}
UNDO = "undo"
KEYS = script("keys")
"""A button is chosen by a click or, while the tab is seen, by the first letter of its key."""


class Labelling:
    """The questions of one browser tab; answers go to the same table as those of ``python -m cbm label``.

    Args:
        explorer: the run that is looked at.
    """

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.pair: Pair | None = None
        self.note = ""  # why the last answer was not kept

    @cached_property
    def queue(self) -> PairQueue:
        """The questions.

        Raises:
            UserError: other pictures than the run's own are shown, or there is nothing to ask about.
        """
        explorer, model = self.explorer, self.explorer.model
        if explorer.card != model.config.dataset:
            raise UserError("only the run's own pictures are asked about: open it without --dataset and --root")
        return PairQueue(
            model.path / PEOPLES_TABLE,
            require_linear(model.model, model.bank),
            explorer.bank,
            explorer.split,
            explorer.images,
            explorer.classes,
            name=explorer.name,
        )

    def press(self, key: str, row: str = "") -> None:
        """What a button does.

        Args:
            key: yes, no, skip or undo.
            row: row of the picture that was seen: a second click on a button is no answer about the next picture.

        Raises:
            UserError: no such button, or the table cannot be written.
        """
        if key not in (UNDO, *ANSWERS):
            raise UserError(f"'{key}' stands for nothing here")
        self.explorer.check_place()
        self.note = ""
        try:
            if key == UNDO:
                self.queue.undo()
            elif self.pair is not None and row == str(self.pair.row):
                self._answer(self.pair, ANSWERS[key])
        except OSError as error:
            raise cannot_write(self.queue.table, error) from error

    def _answer(self, pair: Pair, shown: bool | None) -> None:
        """Keep an answer, or say that somebody else was faster and said something else: a picture has one."""
        self.queue.answer(pair, shown)
        kept = next((each for each in self.queue.here if each.path == pair.path), None)
        if kept is not None and (kept.concept, kept.shown) != (pair.concept, shown):
            said = next(key for key, value in ANSWERS.items() if value == kept.shown)
            self.note = f"'{pair.name}' was answered by somebody else meanwhile: '{kept.concept}', {said}; that is kept"

    def view(self) -> str:
        """The next question and what the answers say so far, as HTML; or why there is none."""
        try:
            self.pair = self.queue.next()
            uri, tiny = "", False
            if self.pair is not None and (picture := self.explorer.picture(self.pair.row).image) is not None:
                uri, tiny = data_uri(picture.copy())
        except UserError as error:
            return render("label", problem=str(error))
        split, table = self.explorer.name, str(self.queue.table)
        found = self.queue.precision
        return render("label", problem="", pair=self.pair, uri=uri, tiny=tiny, found=found, split=split, table=table)
