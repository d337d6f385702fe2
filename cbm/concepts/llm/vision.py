"""A vision-language model as the expert who is asked about concepts: yes, no, or it does not know.

Any OpenAI-compatible server that reads images. Every answer is kept in the cache as soon as it comes, so an interrupted
run goes on where it was, and other policies pay nothing for the same question.
"""

import base64
import hashlib
import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cbm.concepts.llm.answers import first_word
from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.client import Asker
from cbm.concepts.llm.endpoint import Endpoint
from cbm.concepts.llm.question import Request
from cbm.data.images import Images, store_keys
from cbm.errors import UserError

log = logging.getLogger("cbm")

PROMPT = 'Look at the picture. Does it show this: "{concept}"? Answer with one word: yes, no or unsure.'
SIDE = 512  # pixels; larger images are sent smaller
WORDS = {"yes": 1.0, "no": 0.0}


class VisionExpert:
    """Answers about images; a function from what is asked ``[N, K]`` (bool) to answers (1, 0, NaN).

    Args:
        endpoint: the server and the model.
        images: N images.
        concepts: texts of the K concepts.
        cache: folder of the cache; answers are kept in ``CACHE/vision``.
        truth: true concepts ``[N, K]``, with which the share of right answers is counted; None if it is not known.

    Raises:
        UserError: settings that cannot work, or no key for a hosted model.
    """

    def __init__(
        self, endpoint: Endpoint, images: Images, concepts: list[str], cache: Path, truth: Tensor | None = None
    ):
        endpoint.check()
        endpoint.key()
        self.endpoint, self.images, self.concepts, self.truth = endpoint, images, concepts, truth
        self.keys = store_keys(images.fingerprints(cache), images.looks(cache), None)
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.asker = Asker(endpoint, AnswerCache(cache / "vision"), load=self._load)
        self.former = _former_answers(cache / "vision", endpoint.model)
        self.known = dict(self.former)
        self.right, self.judged = 0, 0

    def __call__(self, asked: Tensor) -> Tensor:
        """Ask about the concepts ``[N, K]`` that are True; the other answers are NaN.

        Raises:
            UserError: the server does not answer, whatever is tried, or the budget is used before all is answered.
        """
        pairs = [(n, self.concepts[k]) for n, k in asked.nonzero().tolist()]
        found = torch.full(asked.shape, math.nan)
        answers = self.ask(pairs)
        if None in answers:
            questions = self._kept() + self.asker.tally.not_asked
            raise UserError(self.asker.budget.used(self._kept(), questions, self.asker.tally.stopped or ""))
        found[asked] = torch.tensor(answers)
        if self.truth is not None:
            judged = ~found.isnan() & ~self.truth.isnan()
            self.judged += int(judged.sum())
            self.right += int((found[judged] == self.truth[judged]).sum())
        return found

    def ask(self, questions: Sequence[tuple[int, str]]) -> list[float | None]:
        """Ask about pairs of an image's row and a concept; returns the answers: 1, 0, NaN, or None where the budget was
        used before the question was asked.

        Raises:
            UserError: the server does not answer, whatever is tried.
        """
        pairs = [(self.keys[row], concept) for row, concept in questions]
        requests = {pair: self._request(*pair) for pair in pairs if pair not in self.known}
        tally = self.asker.tally
        try:
            answers = self.asker.ask(requests.values())
        except UserError as error:
            raise UserError(f"{error}; {self._kept()} answers are kept, run the same command again to go on") from error
        for pair, request in requests.items():
            if (answer := answers.get(request.hash)) is not None:
                self.known[pair] = WORDS.get(answer.items[0].text, math.nan) if answer.items else math.nan
            elif request.hash in tally.unreadable:
                self.known[pair] = math.nan
        if tally.failures:
            raise UserError(
                f"{self.endpoint.host} does not answer about images ({next(iter(tally.failures.values()))}); "
                f"{self._kept()} answers are kept, run the same command again to go on"
            )
        return [self.known.get(pair) for pair in pairs]

    def summary(self) -> str:
        """One line: what was asked, and how often the answer was right."""
        share = f", {100 * self.right / self.judged:.1f}% right" if self.judged else ""
        tally = self.asker.tally
        lost = ""
        if tally.unreadable:
            first = next(iter(tally.unreadable.values()))
            lost = f"; {len(tally.unreadable)} about images that cannot be read: {first}"
        return f"{self.endpoint.model} answered {tally.asked} new questions ({self._kept()} are kept{share}){lost}"

    def _request(self, picture: str, concept: str) -> Request:
        question = PROMPT.format(concept=concept)
        return Request(self.endpoint.model, "", question, "word", temperature=0.0, max_tokens=8, image=picture)

    def _kept(self) -> int:
        """Number of answers in the cache that this run has used or added."""
        return len(self.former) + self.asker.tally.cached + self.asker.tally.asked

    def _load(self, key: str) -> str:
        """An image as a ``data:`` address."""
        picture = self.images.open(self.rows[key])
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _former_answers(folder: Path, model: str) -> dict[tuple[str, str], float]:
    """Answers by picture and concept in the one file per model that they were once kept in."""
    file = folder / f"{hashlib.sha256(f'{model}|{PROMPT}'.encode()).hexdigest()[:12]}.jsonl"
    known: dict[tuple[str, str], float] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
            known[entry["picture"], entry["concept"]] = WORDS.get(first_word(entry["answer"]), math.nan)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the last line of an interrupted run
    return known
