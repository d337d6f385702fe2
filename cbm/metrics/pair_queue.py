"""``PairQueue``: which image and phrase to ask about next, and what the answers say so far."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cbm.concepts import ConceptBank
from cbm.data import FeatureSplit
from cbm.data.concept_answers import (
    PEOPLE,
    RESERVED,
    ConceptAnswer,
    answered_by,
    beside,
    read_concept_answers,
    write_concept_answers,
)
from cbm.data.images import Images
from cbm.data.picture_places import PicturePlaces
from cbm.errors import UserError, did_you_mean
from cbm.files import cannot_write, locked
from cbm.files.names import one_form
from cbm.layers import ConceptBottleneck
from cbm.metrics.precision import Precision, precision_of
from cbm.metrics.used_concepts import used_concepts

TOP = 5
"""Concepts of an image of which one is asked about."""


@dataclass(frozen=True)
class Pair:
    """A question: does the image show the phrase?

    Attributes:
        row: row of the image in its split.
        name: name of the image.
        path: where it is, as seen from the table.
        label: its class.
        concept: the phrase.
    """

    row: int
    name: str
    path: str
    label: str
    concept: str


class PairQueue:
    """Questions about what a model used, drawn so that their answers estimate how often it is true.

    The next question is about the class with the fewest answers, an image of it that was not asked about before, and
    one of the ``top`` concepts that the image's decision uses most, each as likely as the others. One question per
    image, and per subject where subjects are known: two would not be independent. Images that use no concept are passed
    over.

    Answers are in a table of ``cbm.data.concept_answers``, which is written after every answer and read again when
    somebody else has changed it: several may answer at the same time, and whoever comes back goes on where it ended.

    Args:
        table: the table.
        model: bottleneck with K concepts.
        bank: the K concepts.
        split: N images.
        images: the same images to look at.
        classes: C class names.
        name: name of the split.
        by: who answers, ``people`` or ``model:NAME``.
        who: name of the person, if there is one to be kept.
        only: classes to ask about; all by default.
        top: concepts per image of which one is asked about.
        seed: random seed for the order of classes and images and for the choice of the concept.

    Raises:
        UserError: an unknown class, a split without images to look at, a damaged table, or one with the answers of
            somebody else or about another model.

    Attributes:
        answers: all answers in the table, also about other splits.
    """

    def __init__(
        self,
        table: Path,
        model: ConceptBottleneck,
        bank: ConceptBank,
        split: FeatureSplit,
        images: Images,
        classes: Sequence[str],
        *,
        name: str = "val",
        by: str = PEOPLE,
        who: str = "",
        only: Sequence[str] = (),
        top: int = TOP,
        seed: int = 0,
    ):
        if top < 1:
            raise UserError(f"--top {top}: expected 1 or more")
        self.table, self.model, self.split, self.classes = table, model, split, list(classes)
        self.name, self.by, self.who, self.top, self.seed = name, by, who, top, seed
        self.texts = [one_form(text) for text in bank.texts]
        self.places = PicturePlaces(images, table)
        self._rows = self._drawn(only)
        self._phrases: dict[int, str | None] = {}
        self._mine: list[str] = []
        self._seen: tuple[int, ...] | None = None
        self.answers: list[ConceptAnswer] = []
        self._read()

    def next(self, waiting: Iterable[Pair] = ()) -> Pair | None:
        """The next question; None when there is no image left to ask about.

        Args:
            waiting: questions that were given out and have no answer yet.
        """
        self._read()
        here, waiting = self.here, list(waiting)
        asked = {answer.path for answer in here} | {pair.path for pair in waiting}
        subjects = {subject for path in asked if (subject := self._subject(path)) is not None}
        counts = Counter(answer.label for answer in here if answer.shown is not None)
        counts.update(pair.label for pair in waiting)
        for label in sorted(self._rows, key=lambda each: counts[each]):  # stable: ties as they were drawn
            for row in self._rows[label]:
                if (path := self.places.path(row)) in asked or self._subject(path) in subjects:
                    continue
                if (concept := self._concept(row)) is not None:
                    return Pair(row, self.split.names[row], path, label, concept)
        return None

    def answer(self, pair: Pair, shown: bool | None) -> None:
        """Keep an answer: True, False, or None to skip. What somebody else has answered meanwhile stays.

        Raises:
            UserError: the table cannot be read or written.
        """
        self.answer_all([(pair, shown)])

    def answer_all(self, given: Iterable[tuple[Pair, bool | None]]) -> None:
        """Keep several answers, written together.

        Raises:
            UserError: as for ``answer``.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = [ConceptAnswer(p.path, p.label, self.name, p.concept, shown, self.who, now) for p, shown in given]
        with self._alone():
            self._read()
            asked = {answer.path for answer in self.here}
            fresh = [answer for answer in made if answer.path not in asked]
            self._write([*self.answers, *fresh])
        self._mine += [answer.path for answer in fresh]

    def undo(self) -> ConceptAnswer | None:
        """Take back the last answer: of this queue, or if it has none, of the table; None if there is nothing left."""
        with self._alone():
            self._read()
            last = {answer.path: number for number, answer in enumerate(self.answers) if answer.split == self.name}
            mine = [path for path in self._mine if path in last]
            if not last:
                return None
            number = last[mine[-1]] if mine else max(last.values())
            taken = self.answers[number]
            self._write([*self.answers[:number], *self.answers[number + 1 :]])
        self._mine = mine[:-1]
        return taken

    @property
    def here(self) -> list[ConceptAnswer]:
        """The answers about this split."""
        return [answer for answer in self.answers if answer.split == self.name]

    @property
    def precision(self) -> Precision:
        """How often what is used is true, by the answers about this split and the classes that are asked about."""
        return precision_of(answer for answer in self.here if answer.label in self._rows)

    def _drawn(self, only: Sequence[str]) -> dict[str, list[int]]:
        """Rows of every class to ask about, classes and rows in the order in which they are drawn."""
        for label in only:
            if label not in self.classes:
                raise UserError(f"no class '{label}': {did_you_mean(label, self.classes)}")
        generator = np.random.default_rng(self.seed)
        labels, order = self.split.y.numpy(), generator.permutation(len(self.classes))
        rows = {self.classes[c]: generator.permutation(np.flatnonzero(labels == c)).tolist() for c in order}
        return {label: each for label, each in rows.items() if each and (not only or label in only)}

    def _subject(self, path: str) -> Any:
        """What an image is of (a patient), if that is known."""
        return self._subjects.get(path)

    @cached_property
    def _subjects(self) -> dict[str, Any]:
        subjects = self.split.subjects
        return {} if subjects is None else {self.places.path(row): each for row, each in enumerate(subjects.tolist())}

    def _concept(self, row: int) -> str | None:
        """The phrase that an image is asked about: the same whenever it is drawn with this seed; None without one."""
        if row not in self._phrases:
            self._phrases[row] = self._draw_concept(row)
        return self._phrases[row]

    def _draw_concept(self, row: int) -> str | None:
        found = used_concepts(self.model, self.split.x[row : row + 1].float(), self.top)[0]
        texts = [text for text in (self.texts[k] for k in found) if text and text not in RESERVED]
        if not texts:
            return None
        name = self.split.names[row].encode(errors="surrogatepass")
        key = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
        return texts[int(np.random.default_rng([self.seed, key]).integers(len(texts)))]

    def _alone(self) -> AbstractContextManager[None]:
        """Nobody else changes the table meanwhile."""
        try:
            self.table.parent.mkdir(parents=True, exist_ok=True)
            return locked(self.table.parent)
        except OSError as error:
            raise cannot_write(self.table, error) from error

    def _read(self) -> None:
        """Read the table if it is not as this queue left it."""
        if (state := _state(self.table)) == self._seen and state is not None:
            return
        answers = read_concept_answers(self.table)
        if answers and (by := answered_by(self.table)) != self.by:
            raise UserError(f"'{self.table}' has answers by {by}, not by {self.by}: choose another --out")
        known = set(self.texts)
        for answer in answers:
            if answer.concept not in known:
                near = did_you_mean(answer.concept, self.texts)
                raise UserError(f"'{self.table}': no concept '{answer.concept}' in this model: {near}")
            if answer.label not in self.classes:
                near = did_you_mean(answer.label, self.classes)
                raise UserError(f"'{self.table}': no class '{answer.label}' in this model: {near}")
        self.answers, self._seen = answers, state

    def _write(self, answers: list[ConceptAnswer]) -> None:
        splits = list(dict.fromkeys(answer.split for answer in answers))
        found = {name: precision_of(answer for answer in answers if answer.split == name) for name in splits}
        precision = {name: asdict(each) for name, each in found.items() if each.count}
        write_concept_answers(self.table, answers, self.by, {"top": self.top, "precision": precision})
        self.answers, self._seen = answers, _state(self.table)


def _state(table: Path) -> tuple[int, ...] | None:
    """What changes when a table or the file beside it does; None if there is no table."""
    found: list[int] = []
    for file in (table, beside(table)):
        try:
            stat = file.stat()
        except OSError:
            if file == table:
                return None
            continue
        found += (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return tuple(found)
