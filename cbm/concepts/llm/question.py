"""A question to a model, by which its answer is found on disk, and the answer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from cbm.concepts.llm.answers import SAY_JSON, SAY_PLAIN, Item, Kind, response_format

UNKNOWN = "unknown"
"""Who gave an answer that was kept before its server was."""


@dataclass(frozen=True)
class Request:
    """One question to the model.

    Attributes:
        model: its name.
        system: the system prompt.
        user: the question.
        kind: shape of the answer.
        temperature: None is the server's own.
        max_tokens: longest answer, or None.
        sample: 0, 1, ... when the same question is asked several times.
        image: fingerprint of the image that the question is about, or empty.
    """

    model: str
    system: str
    user: str
    kind: Kind
    temperature: float | None = None
    max_tokens: int | None = None
    sample: int = 0
    image: str = ""

    @property
    def hash(self) -> str:
        """Names the answer on disk. Where the server is and its key play no part."""
        form = None if self.kind == "word" else response_format(self.kind)
        content = {**asdict(self), "format": form, "version": 1}
        if not self.image:  # questions without one are named as they always were
            del content["image"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def payload(
        self, structured: bool, attempt: int, image: str = "", names: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Any]:
        """What is sent. Only further samples and attempts say a seed: not every server knows it.

        Args:
            structured: whether the server is told the schema of the answer.
            attempt: 0, 1, ... after answers that could not be used.
            image: the image as a ``data:`` address, for a question about one.
            names: what the server calls a parameter, or the role ``system``; a parameter called "" is not sent.
        """
        content: dict[str, Any] = {"model": self.model, "messages": []}
        if self.kind != "word":
            how = (SAY_JSON if structured else SAY_PLAIN)[self.kind]
            content["messages"].append({"role": "system", "content": f"{self.system}\n{how}"})
        shown = [{"type": "text", "text": self.user}, {"type": "image_url", "image_url": {"url": image}}]
        content["messages"].append({"role": "user", "content": shown if image else self.user})
        if structured:
            content["response_format"] = response_format(self.kind)
        if self.temperature is not None:
            content["temperature"] = self.temperature
        if self.max_tokens is not None:
            content["max_tokens"] = self.max_tokens
        if seed := self.sample + 1000 * attempt:
            content["seed"] = seed
        for message in content["messages"]:
            message["role"] = names.get(message["role"], message["role"])
        return {names.get(key, key): value for key, value in content.items() if names.get(key, key)}

    @property
    def letters(self) -> int:
        """Length of the prompt in letters."""
        return sum(len(m["content"]) for m in self.payload(self.kind != "word", 0)["messages"])


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        items: phrases, possibly none.
        status: ``ok``, ``rules`` (not of the schema, read by rules), ``truncated`` or ``refused``.
        text: what the model wrote.
        model: as the server names it.
        date: when it was written, UTC.
        prompt_tokens: as counted by the server, all attempts.
        completion_tokens: likewise.
        host: who answered, without credentials.
    """

    items: tuple[Item, ...]
    status: str
    text: str
    model: str
    date: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    host: str = UNKNOWN
