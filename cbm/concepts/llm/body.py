"""What a server sends, as something to be used: no larger than a limit, whole text, no secrets, sane numbers."""

import json
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from cbm.concepts.llm.thinking import said

LARGEST = 4 << 20
"""Bytes of a body, as sent and as decoded."""
LONGEST = 200_000
"""Letters of one text in a body."""
MOST_TOKENS = 10_000_000
"""More tokens than this nobody has counted for one answer."""
SHOWN = 2000
"""Letters of a body that is not JSON: of those a few are shown."""


class BodyError(Exception):
    """A body that is not read, which no retry mends: it is too large, or in an encoding that nobody asked for."""


class BrokenBody(Exception):
    """A body that did not come whole, or is no answer: the next one may."""


async def read_body(chunks: AsyncIterator[bytes], encoding: str) -> bytes:
    """The decoded bytes of a body.

    Args:
        chunks: its bytes as they were sent.
        encoding: the header Content-Encoding.

    Raises:
        BodyError: there are too many bytes, sent or decoded, or the encoding is unknown.
        BrokenBody: the encoded bytes are damaged.
    """
    raw = bytearray()
    async for chunk in chunks:
        raw += chunk
        if len(raw) > LARGEST:
            raise _too_large()
    content = bytes(raw)
    codings = [word.strip().lower() for word in encoding.split(",") if word.strip().lower() not in ("", "identity")]
    if len(codings) > 2 or set(codings) - {"gzip", "x-gzip", "deflate"}:
        raise BodyError(f"the response is encoded as '{encoding[:40]}', which was not asked for")
    for coding in reversed(codings):
        content = _inflate(content, coding)
    return content


def _inflate(content: bytes, coding: str) -> bytes:
    """The bytes that were compressed, never more than may be kept."""
    plain = bytearray()
    while content:
        zipped = coding != "deflate" or content[0] & 15 == 8  # some servers leave the header of zlib out
        bits = 31 if coding != "deflate" else 15 if zipped else -15
        decoder = zlib.decompressobj(wbits=bits)
        try:
            plain += decoder.decompress(content, LARGEST + 1 - len(plain))
        except zlib.error as error:
            raise BrokenBody(f"the response is damaged: {error}") from None
        if len(plain) > LARGEST:
            raise _too_large()
        if not decoder.eof:
            raise BrokenBody("the response is cut off")
        content = decoder.unused_data.lstrip(b"\0") if coding != "deflate" else b""
    return bytes(plain)


def _too_large() -> BodyError:
    return BodyError(f"the response is larger than {LARGEST >> 20} MB")


def parse_body(content: bytes, clean: Callable[[str], str]) -> Any:
    """A body as JSON, or the beginning of its text if it is none; all text in it is clean.

    Args:
        content: the decoded bytes.
        clean: makes a text whole and free of secrets.

    Raises:
        BodyError: a text in it is too long.
    """
    text = content.decode(json.detect_encoding(content), "replace")
    try:
        return _cleaned(json.loads(text, parse_constant=lambda word: None, parse_int=_integer), clean)
    except (ValueError, RecursionError):
        return clean(text[:SHOWN])


def _integer(digits: str) -> int | None:
    """A number; None for one that is too long to be read."""
    return int(digits) if len(digits) <= 400 else None


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """JSON with clean text, keys too."""
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise BodyError(f"the response has a text of more than {LONGEST:,} letters")
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(entry, clean) for entry in value]
    if isinstance(value, dict):
        return {_cleaned(key, clean): _cleaned(entry, clean) for key, entry in value.items()}
    return value


@dataclass(frozen=True)
class Completion:
    """A chat completion.

    Attributes:
        text: what the model wrote.
        refusal: what it said instead, or empty.
        finish: why it ended.
        model: its name, as the server says; empty if it does not.
        created: seconds since 1970, or None.
        prompt_tokens: as counted by the server; 0 where it counts none, or what cannot be.
        completion_tokens: likewise.
    """

    text: str
    refusal: str = ""
    finish: str = ""
    model: str = ""
    created: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_completion(body: Any) -> Completion:
    """The first choice of a chat completion.

    Raises:
        BrokenBody: it is none.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        message = None
    if not isinstance(message, dict):
        said_instead = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)[:SHOWN]
        raise BrokenBody(f"the response is not a chat completion: {said_instead}")
    refusal, finish, model = message.get("refusal"), choice.get("finish_reason"), body.get("model")
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    created = body.get("created")
    good = isinstance(created, int | float) and not isinstance(created, bool) and 0 < created < 1e11
    return Completion(
        said(message.get("content")),
        "" if not refusal else refusal if isinstance(refusal, str) else json.dumps(refusal, ensure_ascii=False),
        finish if isinstance(finish, str) else "",
        model[:200] if isinstance(model, str) else "",
        created if good else None,
        token_count(usage.get("prompt_tokens")),
        token_count(usage.get("completion_tokens")),
    )


def token_count(value: Any) -> int:
    """A number of tokens; 0 for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return 0
    return int(value)
