"""Answers on disk, one file each, which count only if they are what was written."""

import json
import logging
import re
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cbm.concepts.llm.answers import Item, read_answer
from cbm.concepts.llm.body import LONGEST
from cbm.concepts.llm.question import Answer, Request
from cbm.concepts.llm.redact import whole
from cbm.files import open_regular, write_atomically

log = logging.getLogger(__name__)

LARGEST = 8 << 20
"""Bytes of a file that is read."""
STATUSES = ("ok", "rules", "truncated", "refused")
TEXTS, COUNTS = ("status", "text", "model", "date", "host"), ("prompt_tokens", "completion_tokens")
DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII)
MOST = 10**9
"""Tokens of all attempts at one answer are fewer."""


class AnswerCache:
    """Answers on disk, one file each."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, request: Request) -> Path:
        """Where the answer is kept."""
        return self.folder / request.hash[:2] / f"{request.hash}.json"

    def get(self, request: Request) -> Answer | None:
        """The answer, or None if there is none, its file is damaged, or nothing can be read of it.

        The kept text is read anew, so that an answer that an older version misread is read right now.
        """
        try:
            with open(self.file(request), "rb", opener=open_regular) as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                return None
            answer = read_kept(json.loads(content)["answer"])
            if answer.status == "refused":
                return answer
            found, status = read_answer(answer.text, request.kind, cut=answer.status == "truncated")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # Unparsable is a ValueError
            return None
        return replace(answer, items=tuple(found), status=status)

    def put(self, request: Request, answer: Answer) -> None:
        """Keep an answer.

        Raises:
            UserError: it cannot be written.
        """
        file = self.file(request)
        if file.exists() and not file.is_file():
            log.warning("a folder, a pipe or a device is where an answer is to be kept: remove '%s'", file)
            return
        content = {"request": asdict(request), "answer": asdict(answer)}
        said = json.dumps(content, indent=1, ensure_ascii=False)
        write_atomically(file, said.encode(errors="backslashreplace"))  # half a surrogate pair, as JSON escapes it


def read_kept(content: Any) -> Answer:
    """An answer as it was kept, every field of its type; the items are still to be read of its text.

    Raises:
        ValueError: it is not what was written.
        TypeError: likewise.
        KeyError: a field is missing.
    """
    known = {"host": Answer.host, "prompt_tokens": 0, "completion_tokens": 0, **content}
    if set(known) != {"items", *TEXTS, *COUNTS}:
        raise ValueError("other fields")
    if not all(isinstance(known[name], str) and len(known[name]) <= LONGEST for name in TEXTS):
        raise TypeError("a text")
    if not all(type(known[name]) is int and 0 <= known[name] <= MOST for name in COUNTS):
        raise TypeError("a number of tokens")
    if known["status"] not in STATUSES or not _is_date(known["date"]) or not _are_items(known["items"]):
        raise ValueError("status, date or items")
    texts: dict[str, Any] = {name: whole(known[name]) for name in TEXTS}
    return Answer((), **texts, **{name: known[name] for name in COUNTS})


def _is_date(said: str) -> bool:
    """Whether it is a moment, a day, a month or a year in ISO form.

    Raises:
        ValueError: it has the form, but there is no such day.
    """
    if DATE.fullmatch(said) is None:
        return False
    datetime.fromisoformat(f"{said}-01-01"[:10] if len(said) == 4 else f"{said}-01" if len(said) == 7 else said)
    return True


def _are_items(items: Any) -> bool:
    """Whether it is a list of text, group and number."""
    return isinstance(items, list) and all(
        isinstance(item, list)
        and len(item) == len(Item._fields)
        and isinstance(item[0], str)
        and isinstance(item[1], str | None)
        and type(item[2]) is int
        for item in items
    )
