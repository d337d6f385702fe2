"""A vision-language model as the one who proposes names for units: it sees on which pictures a unit fires, and on which
it does not."""

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.client import Asker
from cbm.concepts.llm.endpoint import Endpoint
from cbm.concepts.llm.question import Request
from cbm.data.images import Images, store_keys
from cbm.errors import UserError

log = logging.getLogger("cbm")

SYSTEM = (
    "You name what pictures have in common. Every name is a short phrase of one to five words for something that can "
    "be seen in a picture."
)
PROMPT = (
    "The pictures above the black line all show something that the pictures below it do not show. What is it? Give up "
    "to three short names, the best one first. Do not name a species, a brand or a place, and do not speak of pictures."
)
PROPOSALS = 3
ACROSS, TILE, LINE = 4, 160, 12  # pictures in a row, pixels of each, and of the black line


class UnitNamer:
    """Proposals of names, kept in the cache as soon as they come.

    Args:
        endpoint: the server and the model.
        images: the pictures.
        cache: folder of the cache; answers are kept in ``CACHE/vision``.

    Raises:
        UserError: settings that cannot work, or no key for a hosted model.
    """

    def __init__(self, endpoint: Endpoint, images: Images, cache: Path):
        endpoint.check()
        endpoint.key()
        self.endpoint, self.images = endpoint, images
        self.keys = store_keys(images.fingerprints(cache), images.looks(cache), None)
        self._sheets: dict[str, tuple[Sequence[int], Sequence[int]]] = {}
        self.asker = Asker(endpoint, AnswerCache(cache / "vision"), load=self._load)

    def propose(self, units: Mapping[int, tuple[Sequence[int], Sequence[int]]]) -> dict[int, list[str]]:
        """Names that the model proposes, the best first; nothing for units that it has no answer for, or that the
        budget was used before.

        Args:
            units: rows of the pictures on which a unit fires most, and of some on which it does not, by its column.

        Raises:
            UserError: the server does not answer, whatever is tried; the answers before that are kept.
        """
        requests = {column: self._request(*rows) for column, rows in units.items()}
        tally = self.asker.tally
        again = "what was answered is kept, run the same command again to go on"
        try:
            answers = self.asker.ask(requests.values())
        except UserError as error:
            raise UserError(f"{error}; {again}") from error
        if tally.stopped is not None:
            log.warning("stopped at %s, %d of %d units are left: run the same command again to go on",
                        self.asker.budget.spoken, tally.not_asked, len(units))  # fmt: skip
        if tally.failures and not answers:
            raise UserError(f"{self.endpoint.host} does not answer about images "
                            f"({next(iter(tally.failures.values()))}); {again}")  # fmt: skip
        if tally.failures or tally.unreadable:
            first = next(iter({**tally.failures, **tally.unreadable}.values()))
            log.warning("%d units got no proposal: %s", len(tally.failures) + len(tally.unreadable), first)
        found = {column: answers[request.hash] for column, request in requests.items() if request.hash in answers}
        return {column: [item.text for item in answer.items[:PROPOSALS]] for column, answer in found.items()}

    def _request(self, fires: Sequence[int], silent: Sequence[int]) -> Request:
        said = "|".join([*(self.keys[row] for row in fires), "", *(self.keys[row] for row in silent), str(TILE)])
        sheet = hashlib.sha256(said.encode()).hexdigest()
        self._sheets[sheet] = (fires, silent)
        return Request(self.endpoint.model, SYSTEM, PROMPT, "concepts", max_tokens=300, image=sheet)

    def _load(self, sheet: str) -> str:
        """The pictures of a unit on one sheet, as a ``data:`` address."""
        return as_address(sheet_of(self.images.open, *self._sheets[sheet]))


def sheet_of(open_picture: Callable[[int], Image.Image], fires: Sequence[int], silent: Sequence[int]) -> Image.Image:
    """Pictures on a white sheet: those on which a unit fires, a black line, those on which it does not.

    Args:
        open_picture: function from a row to the picture.
        fires: rows of the pictures on which it fires.
        silent: rows of those on which it does not.
    """
    lines = [-(-len(rows) // ACROSS) for rows in (fires, silent)]
    sheet = Image.new("RGB", (ACROSS * TILE, sum(lines) * TILE + LINE), "white")
    sheet.paste("black", (0, lines[0] * TILE, sheet.width, lines[0] * TILE + LINE))
    for rows, top in ((fires, 0), (silent, lines[0] * TILE + LINE)):
        for place, row in enumerate(rows):
            picture = open_picture(row).convert("RGB")
            factor = (TILE - 8) / max(picture.size)
            size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
            left = place % ACROSS * TILE + (TILE - size[0]) // 2
            sheet.paste(picture.resize(size), (left, top + place // ACROSS * TILE + (TILE - size[1]) // 2))
    return sheet


def as_address(picture: Image.Image) -> str:
    """A picture as a ``data:`` address."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
