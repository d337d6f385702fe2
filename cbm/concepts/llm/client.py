"""Asking any OpenAI-compatible endpoint: a few requests at a time, retried, every answer kept on disk."""

import asyncio
import hashlib
import ipaddress
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import openai
import tenacity

from cbm.concepts.llm.answers import (
    SAY_JSON,
    SAY_PLAIN,
    Item,
    Kind,
    Unparsable,
    read_answer,
    response_format,
)
from cbm.concepts.llm.thinking import said as words_of
from cbm.errors import UserError
from cbm.files import write_atomically

HOSTED = "https://api.openai.com/v1"

OTHER_NAMES = {
    "max_tokens": ("max_completion_tokens", "max_output_tokens"),
    "system": ("developer", "user"),
    "seed": ("random_seed", ""),
    "temperature": ("",),
}
"""What servers call a parameter or a role that they do not know by its first name, in the order in which the names are
tried; "" leaves out what only makes answers differ (a temperature only where nobody chose it: in questions about
images)."""
KNOWN_TO_CLIENT = frozenset(
    ("model", "messages", "response_format", "temperature", "seed", "max_tokens", "max_completion_tokens")
)


@dataclass(frozen=True)
class Endpoint:
    """Who is asked, and how patiently.

    Attributes:
        model: the model's name there.
        base_url: ends in ``/v1`` as a rule; None is OPENAI_BASE_URL, else OpenAI.
        concurrency: requests in flight.
        timeout: seconds for one answer.
        retries: further tries after a passing failure (429, 5xx, no connection, broken body).
        first_wait: seconds before the first retry; doubles each time.
        longest_wait: no wait is longer, whatever Retry-After says.
        rewrites: further tries after an answer that is not of the schema.
    """

    model: str
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0
    rewrites: int = 2

    @property
    def url(self) -> str:
        """The URL that is asked."""
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or HOSTED).strip()

    @property
    def host(self) -> str:
        """Scheme, host, port and path: no user, password or query, so that it may be written down."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    @property
    def local(self) -> bool:
        """Whether it is this machine or its network, where servers want no key."""
        name = urlsplit(self.url).hostname or ""
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or "." not in name or name.endswith((".local", ".localhost"))
        return address.is_loopback or address.is_private or address.is_unspecified

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: names the option.
        """
        for option, value, least in (("concurrency", self.concurrency, 1), ("retries", self.retries, 0)):
            if value < least:
                raise UserError(f"--{option} {value}: expected {least} or more")
        if not self.timeout > 0:
            raise UserError(f"--timeout {self.timeout}: expected seconds above 0")
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UserError("--base-url: expected a URL such as http://localhost:8000/v1")

    def key(self) -> str:
        """The key from the environment; a local server gets a made-up one.

        Raises:
            UserError: a hosted model and no key.
        """
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            return key
        if self.local:
            return "not-needed"
        raise UserError(f"{self.host} wants a key: set the environment variable OPENAI_API_KEY")


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
        return sum(len(m["content"]) for m in self.payload(True, 0)["messages"])


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
    """

    items: tuple[Item, ...]
    status: str
    text: str
    model: str
    date: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Tally:
    """What a run of requests came to.

    Attributes:
        asked: requests answered by the server in this run.
        cached: answers that were there already.
        retried: tries after a passing failure or a bad answer.
        prompt_tokens: paid in this run.
        completion_tokens: paid in this run.
        failures: hash of a request to why it failed for good.
        not_asked: requests left when the run gave up.
        unreadable: hash of a request to why its image cannot be read.
    """

    asked: int = 0
    cached: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    not_asked: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """US dollars at these prices per million tokens, or None without prices."""
        if price_in is None and price_out is None:
            return None
        return (self.prompt_tokens * (price_in or 0) + self.completion_tokens * (price_out or 0)) / 1e6


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
            content = json.loads(self.file(request).read_text(encoding="utf-8"))["answer"]
            items = tuple(Item(str(text), group, int(number)) for text, group, number in content.pop("items"))
            answer = Answer(items=items, **content)
            if answer.status == "refused":
                return answer
            found, status = read_answer(answer.text, request.kind, cut=answer.status == "truncated")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # Unparsable is a ValueError
            return None
        return replace(answer, items=tuple(found), status=status)

    def put(self, request: Request, answer: Answer) -> None:
        """Keep an answer."""
        content = {"request": asdict(request), "answer": asdict(answer)}
        write_atomically(self.file(request), json.dumps(content, indent=1, ensure_ascii=False).encode())


class _Passing(Exception):
    """A failure that may pass; ``wait`` is what the server asked for."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class _Failed(Exception):
    """This request failed for good, the others may go on."""


class _UnreadableImage(Exception):
    """The image of a request cannot be read, which says nothing about the server."""


class Asker:
    """Asks the requests of one run.

    Args:
        endpoint: who is asked.
        cache: where answers are kept.
        advance: called once per request answered, for a progress bar.
        load: the image with a fingerprint, as a ``data:`` address; needed for questions about images, and called only
            while such a question is asked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: AnswerCache,
        advance: Callable[[], None] = lambda: None,
        load: Callable[[str], str] = lambda fingerprint: "",
    ):
        self.endpoint, self.cache, self.advance, self.load = endpoint, cache, advance, load
        self._loaded: dict[str, str] = {}  # images of the questions in flight
        self.tally = Tally()
        self.structured = True
        self.names: dict[str, str] = {}  # what this server calls a parameter
        self._tried: set[tuple[str, str]] = set()
        self._lost = 0  # requests in a row that failed for good
        self._fatal: UserError | None = None

    def ask(self, requests: Iterable[Request]) -> dict[str, Answer]:
        """Request hash to answer, for all that could be had; the others are in ``tally.failures``.

        Raises:
            UserError: a wrong key, an unknown model, or anything else no retry can mend.
        """
        answers: dict[str, Answer] = {}
        pending = []
        for key, request in {request.hash: request for request in requests}.items():
            if (answer := self.cache.get(request)) is not None:
                answers[key] = answer
                self.tally.cached += 1
                self.advance()
            else:
                pending.append(request)
        if pending:
            asyncio.run(self._ask_all(pending, answers))
        return answers

    async def _ask_all(self, pending: list[Request], answers: dict[str, Answer]) -> None:
        """As many workers as requests may be in flight."""
        http = openai.DefaultAsyncHttpxClient(trust_env=not self.endpoint.local)
        queue = iter(pending)
        async with openai.AsyncOpenAI(
            api_key=self.endpoint.key(), base_url=self.endpoint.url, max_retries=0, timeout=self.endpoint.timeout,
            http_client=http,
        ) as client:  # fmt: skip

            async def work() -> None:
                while self._fatal is None and not self._gave_up:
                    if (request := next(queue, None)) is None:
                        return
                    try:
                        if request.image:
                            self._loaded[request.hash] = await self._load(request.image)
                        answer = await self._answer(client, request)
                    except _UnreadableImage as error:
                        self.tally.unreadable[request.hash] = str(error)
                    except _Failed as error:
                        self.tally.failures[request.hash] = str(error)
                        self._lost += 1
                    except UserError as error:
                        self._fatal = self._fatal or error
                    else:
                        self._lost = 0
                        self.tally.asked += 1
                        self.cache.put(request, answer)
                        answers[request.hash] = answer
                    finally:
                        self._loaded.pop(request.hash, None)
                    self.advance()

            await asyncio.gather(*(work() for _ in range(min(self.endpoint.concurrency, len(pending)))))
        self.tally.not_asked += sum(1 for _ in queue)
        if self._fatal is not None:
            raise self._fatal

    @property
    def _gave_up(self) -> bool:
        """The server seems gone: as many failures in a row as there are workers, at least three."""
        return self._lost >= max(3, self.endpoint.concurrency)

    async def _load(self, fingerprint: str) -> str:
        try:
            return await asyncio.to_thread(self.load, fingerprint)
        except Exception as error:  # a broken file can make a decoder raise anything
            raise _UnreadableImage(f"{type(error).__name__}: {_short(str(error))}") from error

    async def _answer(self, client: openai.AsyncOpenAI, request: Request) -> Answer:
        """One answer, asked again while it is not of the schema; at last read by rules."""
        paid_in = paid_out = 0
        text, cut, body, why = "", False, {}, ""
        for attempt in range(self.endpoint.rewrites + 1):
            structured = self.structured and request.kind != "word"
            body = await self._patiently(client, request, structured, attempt)
            usage: Any = body.get("usage")
            usage = usage if isinstance(usage, dict) else {}
            spent = [n if isinstance(n := usage.get(key), int) else 0 for key in ("prompt_tokens", "completion_tokens")]
            paid_in, paid_out = paid_in + spent[0], paid_out + spent[1]
            self.tally.prompt_tokens += spent[0]
            self.tally.completion_tokens += spent[1]
            choice = body["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            new = words_of(message.get("content"))
            if message.get("refusal") or finish == "content_filter":
                return self._made((), "refused", str(message.get("refusal") or new), body, paid_in, paid_out)
            if new.strip():
                text, cut = new, finish == "length"
            try:  # a model that was asked for JSON and wrote something else is asked again before rules read it
                items, status = read_answer(
                    new, request.kind, cut=finish == "length", plain=not (structured and self.structured)
                )
                return self._made(items, status, new, body, paid_in, paid_out)
            except Unparsable as error:
                why = str(error)
            if attempt < self.endpoint.rewrites:
                self.tally.retried += 1
        try:
            items, status = read_answer(text, request.kind, cut=cut, plain=not (cut and self.structured))
            return self._made(items, status, text, body, paid_in, paid_out)
        except Unparsable as error:
            why = str(error)
        raise _Failed(f"no usable answer in {self.endpoint.rewrites + 1} tries ({why})")

    def _made(self, items: Iterable[Item], status: str, text: str, body: dict, paid_in: int, paid_out: int) -> Answer:
        created = body.get("created")
        moment = created if isinstance(created, int | float) and 0 < created < 1e11 else time.time()
        date = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
        model = str(body.get("model") or self.endpoint.model)
        return Answer(tuple(items), status, text, model, date, paid_in, paid_out)

    async def _patiently(self, client: openai.AsyncOpenAI, request: Request, structured: bool, attempt: int) -> dict:
        """The body of a response, after as many retries as it takes and is allowed."""

        def note(_: tenacity.RetryCallState) -> None:
            self.tally.retried += 1

        try:
            async for trial in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(self.endpoint.retries + 1),
                wait=self._wait,
                retry=tenacity.retry_if_exception_type(_Passing),
                before_sleep=note,
                reraise=True,
            ):
                with trial:
                    return await self._once(client, request, structured and self.structured, attempt)
        except _Passing as error:
            raise _Failed(str(error)) from error
        raise AssertionError("tenacity ends with a result or an error")

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """What the server asked for, else exponential back-off with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Passing) and error.wait is not None:
            return min(error.wait, self.endpoint.longest_wait)
        longest = min(self.endpoint.first_wait * 2 ** (state.attempt_number - 1), self.endpoint.longest_wait)
        return longest * random.uniform(0.5, 1.0)

    async def _once(self, client: openai.AsyncOpenAI, request: Request, structured: bool, attempt: int) -> dict:
        """One HTTP request: the body, or what kind of failure it was."""
        names = dict(self.names)
        content = request.payload(structured, attempt, self._loaded.get(request.hash, ""), names)
        extra = {name: content.pop(name) for name in set(content) - KNOWN_TO_CLIENT}
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                response = await client.chat.completions.with_raw_response.create(**content, extra_body=extra or None)
                content = response.http_response.content
        except (openai.APITimeoutError, TimeoutError):
            raise _Passing(f"no answer in {self.endpoint.timeout:g} s") from None
        except openai.APIConnectionError as error:
            reason = str(error.__cause__ or error).strip() or type(error.__cause__).__name__
            raise _Passing(f"no connection to {self.endpoint.host}: {reason}") from error
        except openai.APIStatusError as error:
            if error.status_code in (400, 422) and self._learn_name(error, request, names):
                return await self._once(client, request, structured, attempt)
            return await self._bad_status(error, client, request, structured, attempt)
        except openai.OpenAIError as error:
            raise _Passing(f"{type(error).__name__}: {_short(str(error))}") from error
        try:
            body = json.loads(content)
            if not isinstance(body["choices"][0]["message"], dict):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError):
            said = _short(content.decode(errors="replace"))
            raise _Passing(f"the response is not a chat completion: {said}") from None
        return body

    def _learn_name(self, error: openai.APIStatusError, request: Request, sent: dict[str, str]) -> bool:
        """Whether the server complains of the name of something that was sent, and there is a name not yet tried."""
        body = error.body if isinstance(error.body, dict) else {}
        parameter, words = str(body.get("param") or ""), _said(error, longest=1000)
        for name, others in OTHER_NAMES.items():
            said = sent.get(name, name)
            used = (name == "system" and request.kind != "word") or said in request.payload(False, 1000, "", sent)
            used = used and (name != "temperature" or request.kind == "word")
            if not said or not used or not _names(said, parameter, words):
                continue
            if (known := self.names.get(name, name)) != said:
                return True  # another request has learned it meanwhile
            hint = re.search(r"\b[Uu]se\s+['\"`‘“]?(\w+)['\"`’”]?\s+instead", words)
            rest = (name, *others)[(name, *others).index(known) + 1 :] if known in (name, *others) else ()
            new = [hint[1]] if hint and hint[1] not in (known, name) and name != "system" else rest[:1]
            if not new or (name, new[0]) in self._tried:
                return False
            self._tried.add((name, new[0]))
            self.names[name] = new[0]
            return True
        return False

    async def _bad_status(
        self, error: openai.APIStatusError, client: openai.AsyncOpenAI, request: Request, structured: bool, attempt: int
    ) -> dict:
        """What a status above 399 means."""
        status, said = error.status_code, _said(error)
        host, model = self.endpoint.host, self.endpoint.model
        if status in (401, 403):
            raise UserError(f"{host} refused the key in OPENAI_API_KEY (status {status}): {said}") from error
        if status == 404:
            raise UserError(f"{host} has no model '{model}', or --base-url is wrong (status 404): {said}") from error
        if status == 429 and "insufficient_quota" in f"{error.code} {said}":
            raise UserError(f"the account at {host} has no credit left: {said}") from error
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Passing(f"status {status} from {host}: {said}", _retry_after(error.response.headers)) from error
        if "content_filter" in f"{error.code} {said}" or "content_policy" in f"{error.code} {said}":
            refusal = {"message": {"content": "", "refusal": said}, "finish_reason": "content_filter"}
            return {"choices": [refusal]}
        if structured and status in (400, 415, 422):
            if any(word in said.casefold() for word in ("response_format", "json_schema", "structured", "schema")):
                self.structured = False
                return await self._once(client, request, False, attempt)
            body = await self._once(client, request, False, attempt)
            self.structured = False
            return body
        if self.tally.asked == 0:
            raise UserError(f"{host} does not accept the request (status {status}): {said}") from error
        raise _Failed(f"status {status} from {host}: {said}") from error


def _names(said: str, parameter: str, words: str) -> bool:
    """Whether an error is about the name of a parameter, or about the role ``said``."""
    if said in ("system", "developer"):
        return re.search(rf"\b{said}\b", words, re.I) is not None and "role" in (parameter + words).casefold()
    wrong = (
        r"unsupported|not support|unknown|unrecogni|unexpected|not permitted|not allowed|instead|extra|deprecat"
        r"|invalid (parameter|argument|field|name)"
    )
    return (parameter == said or re.search(rf"\b{said}\b", words) is not None) and bool(re.search(wrong, words, re.I))


def _said(error: openai.APIStatusError, longest: int = 160) -> str:
    """The server's own words, on one short line."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
        if isinstance(body, dict):
            body = body.get("message") or body
    return _short(str(body or error.message), longest)


def _short(text: str, longest: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date."""
    if (exact := headers.get("retry-after-ms")) is not None:
        try:
            return max(0.0, float(exact) / 1000)
        except ValueError:
            pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
