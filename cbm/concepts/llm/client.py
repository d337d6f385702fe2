"""Asking any OpenAI-compatible endpoint: a few requests at a time, retried, every answer kept on disk."""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import tenacity

from cbm.concepts.llm.answers import Item, Unparsable, read_answer
from cbm.concepts.llm.body import BrokenBody, Completion, read_completion
from cbm.concepts.llm.budget import LETTERS_PER_TOKEN, BudgetUsed
from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.endpoint import Endpoint
from cbm.concepts.llm.question import Answer, Request
from cbm.concepts.llm.redact import Redactor
from cbm.concepts.llm.transport import Failed, Passing, Reply, Transport
from cbm.errors import UserError

OTHER_NAMES = {
    "max_tokens": ("max_completion_tokens", "max_output_tokens"),
    "system": ("developer", "user"),
    "seed": ("random_seed", ""),
    "temperature": ("",),
}
"""What servers call a parameter or a role that they do not know by its first name, in the order in which the names are
tried; "" leaves out what only makes answers differ (a temperature only where nobody chose it: in questions about
images)."""


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
        not_asked: requests left when the run gave up, or its budget was used.
        unreadable: hash of a request to why its image cannot be read.
        stopped: the budget is used; the last failure before that, if there was one.
    """

    asked: int = 0
    cached: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    not_asked: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """US dollars at these prices per million tokens, or None without prices."""
        if price_in is None and price_out is None:
            return None
        return (self.prompt_tokens * (price_in or 0) + self.completion_tokens * (price_out or 0)) / 1e6


class _UnreadableImage(Exception):
    """The image of a request cannot be read, which says nothing about the server."""


@dataclass
class _Said:
    """An answer of a server, and what all attempts at it have cost."""

    completion: Completion
    host: str
    prompt_tokens: int
    completion_tokens: int


class Asker:
    """Asks the requests of one run.

    Args:
        endpoint: who is asked, and how much in all.
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
        self.tally, self.budget = Tally(), endpoint.budget()
        self.clean = Redactor(endpoint.secrets())
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
                answers[key] = self._clean(answer)
                self.tally.cached += 1
                self.advance()
            else:
                pending.append(request)
        if pending:
            asyncio.run(self._ask_all(pending, answers))
        return answers

    async def _ask_all(self, pending: list[Request], answers: dict[str, Answer]) -> None:
        """As many workers as requests may be in flight."""
        queue = iter(pending)
        async with Transport(self.endpoint, self.clean) as transport:

            async def work() -> None:
                while self._fatal is None and not self._gave_up and self.tally.stopped is None:
                    if (request := next(queue, None)) is None:
                        return
                    if (answer := await self._one(transport, request)) is not None:
                        answers[request.hash] = answer
                    self.advance()

            await asyncio.gather(*(work() for _ in range(min(self.endpoint.concurrency, len(pending)))))
        self.tally.not_asked += sum(1 for _ in queue)
        if self._fatal is not None:
            raise self._fatal

    async def _one(self, transport: Transport, request: Request) -> Answer | None:
        """The answer to a request, kept; or None, and why is in the tally. Whatever happens, the others go on."""
        try:
            if request.image:
                self._loaded[request.hash] = await self._load(request.image)
            answer = await self._answer(transport, request)
            self.cache.put(request, answer)
        except _UnreadableImage as error:
            self.tally.unreadable[request.hash] = str(error)
        except BudgetUsed as error:
            self.tally.stopped = self.tally.stopped or str(error)
            self.tally.not_asked += 1
        except UserError as error:
            self._fatal = self._fatal or error
        except Exception as error:
            why = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {_short(str(error))}"
            self.tally.failures[request.hash] = self.clean(why)
            self._lost += 1
        else:
            self._lost = 0
            self.tally.asked += 1
            return answer
        finally:
            self._loaded.pop(request.hash, None)
        return None

    @property
    def _gave_up(self) -> bool:
        """The server seems gone: as many failures in a row as there are workers, at least three."""
        return self._lost >= max(3, self.endpoint.concurrency)

    async def _load(self, fingerprint: str) -> str:
        try:
            return await asyncio.to_thread(self.load, fingerprint)
        except Exception as error:  # a broken file can make a decoder raise anything
            raise _UnreadableImage(f"{type(error).__name__}: {_short(str(error))}") from error

    def _clean(self, answer: Answer) -> Answer:
        """The answer without secrets, also where its JSON had hidden them."""
        items = tuple(Item(self.clean(i.text), i.group and self.clean(i.group), i.number) for i in answer.items)
        text, model, host = map(self.clean, (answer.text, answer.model, answer.host))
        return replace(answer, items=items, text=text, model=model, host=host)

    async def _answer(self, transport: Transport, request: Request) -> Answer:
        """One answer, asked again while it is not of the schema; at last read by rules."""
        paid_in = paid_out = 0
        text, cut, why = "", False, ""
        for attempt in range(self.endpoint.rewrites + 1):
            structured = self.structured and request.kind != "word"
            said = await self._patiently(transport, request, structured, attempt, why)
            paid_in, paid_out = paid_in + said.prompt_tokens, paid_out + said.completion_tokens
            said.prompt_tokens, said.completion_tokens = paid_in, paid_out
            new, finish, refusal = said.completion.text, said.completion.finish, said.completion.refusal
            if refusal or finish == "content_filter":
                return self._made((), "refused", refusal or new, said)
            if new.strip():
                text, cut = new, finish == "length"
            try:  # a model that was asked for JSON and wrote something else is asked again before rules read it
                items, status = read_answer(
                    new, request.kind, cut=finish == "length", plain=not (structured and self.structured)
                )
                return self._made(items, status, new, said)
            except Unparsable as error:
                why = str(error)
            if attempt < self.endpoint.rewrites:
                self.tally.retried += 1
        try:
            items, status = read_answer(text, request.kind, cut=cut, plain=not (cut and self.structured))
            return self._made(items, status, text, said)
        except Unparsable as error:
            why = str(error)
        raise Failed(f"no usable answer in {self.endpoint.rewrites + 1} tries ({why})")

    def _made(self, items: Iterable[Item], status: str, text: str, said: _Said) -> Answer:
        moment = said.completion.created or time.time()
        date = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
        model = said.completion.model or self.endpoint.model
        paid = said.prompt_tokens, said.completion_tokens
        return self._clean(Answer(tuple(items), status, text, model, date, *paid, said.host))

    async def _patiently(
        self, transport: Transport, request: Request, structured: bool, attempt: int, why: str
    ) -> _Said:
        """What the server says, after as many retries as it takes and is allowed."""

        def note(state: tenacity.RetryCallState) -> None:
            if self.budget.requests_left == 0:
                raise BudgetUsed(str(state.outcome.exception()) if state.outcome else "")
            self.tally.retried += 1

        try:
            async for trial in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(self.endpoint.retries + 1),
                wait=self._wait,
                retry=tenacity.retry_if_exception_type(Passing),
                before_sleep=note,
                reraise=True,
            ):
                with trial:
                    return await self._once(transport, request, structured and self.structured, attempt, why)
        except Passing as error:
            raise Failed(str(error)) from error
        raise AssertionError("tenacity ends with a result or an error")

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """What the server asked for, else exponential back-off with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Passing) and error.wait is not None:
            return min(error.wait, self.endpoint.longest_wait)
        longest = min(self.endpoint.first_wait * 2 ** (state.attempt_number - 1), self.endpoint.longest_wait)
        return longest * random.uniform(0.5, 1.0)

    async def _once(self, transport: Transport, request: Request, structured: bool, attempt: int, why: str) -> _Said:
        """One question over HTTP: what the server says, or what kind of failure it was."""
        names = dict(self.names)
        content = request.payload(structured, attempt, self._loaded.get(request.hash, ""), names)
        prompt = request.letters // LETTERS_PER_TOKEN
        reply = await transport.post(content, lambda: self.budget.take(prompt, why))
        if reply.status >= 300:
            if reply.status in (400, 422) and self._learn_name(reply, request, names):
                return await self._once(transport, request, structured, attempt, why)
            return await self._bad_status(reply, transport, request, structured, attempt, why)
        return self._paid(reply, request)

    def _paid(self, reply: Reply, request: Request) -> _Said:
        """The completion in a reply, its tokens counted.

        Raises:
            Passing: it is none.
        """
        try:
            found = read_completion(reply.body)
        except BrokenBody as error:
            self.budget.pay(0, request.letters)
            raise Passing(_short(str(error))) from None
        self.budget.pay(found.prompt_tokens, request.letters)
        self.budget.pay(found.completion_tokens, len(found.text or found.refusal))
        self.tally.prompt_tokens += found.prompt_tokens
        self.tally.completion_tokens += found.completion_tokens
        return _Said(found, reply.host, found.prompt_tokens, found.completion_tokens)

    def _learn_name(self, reply: Reply, request: Request, sent: dict[str, str]) -> bool:
        """Whether the server complains of the name of something that was sent, and there is a name not yet tried."""
        parameter, words = str(_error(reply).get("param") or ""), _said(reply, longest=1000)
        for name, others in OTHER_NAMES.items():
            said = sent.get(name, name)
            used = (name == "system" and request.kind != "word") or said in request.payload(False, 1000, "", sent)
            used = used and (name != "temperature" or request.kind == "word")
            if not said or not used or not _names(said, parameter, words):
                continue
            if (known := self.names.get(name, name)) != said:
                return True  # another request has learned it meanwhile
            hint = re.search(r"\b[Uu]se\s+['\"`‘“]?(\w{1,40})['\"`’”]?\s+instead", words)
            rest = (name, *others)[(name, *others).index(known) + 1 :] if known in (name, *others) else ()
            new = [hint[1]] if hint and hint[1] not in (known, name) and name != "system" else rest[:1]
            if not new or (name, new[0]) in self._tried or sum(name == tried for tried, _ in self._tried) > len(others):
                return False
            self._tried.add((name, new[0]))
            self.names[name] = new[0]
            return True
        return False

    async def _bad_status(
        self, reply: Reply, transport: Transport, request: Request, structured: bool, attempt: int, why: str
    ) -> _Said:
        """What a status above 299 means."""
        status, said = reply.status, _said(reply)
        code = f"{_error(reply).get('code')} {said}"
        host, model = self.endpoint.host, self.endpoint.model
        if status in (401, 403):
            raise UserError(f"{host} refused the key in OPENAI_API_KEY (status {status}): {said}")
        if status == 404:
            raise UserError(f"{host} has no model '{model}', or --base-url is wrong (status 404): {said}")
        if status == 429 and "insufficient_quota" in code:
            raise UserError(f"the account at {host} has no credit left: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            raise Passing(f"status {status} from {host}: {said}", reply.retry_after)
        if "content_filter" in code or "content_policy" in code:
            return _Said(Completion("", said, "content_filter"), reply.host, 0, 0)
        if structured and status in (400, 415, 422):
            if any(word in said.casefold() for word in ("response_format", "json_schema", "structured", "schema")):
                self.structured = False
                return await self._once(transport, request, False, attempt, why)
            found = await self._once(transport, request, False, attempt, why)
            self.structured = False
            return found
        if self.tally.asked + self.tally.cached == 0:  # nothing says that it ever accepted one
            raise UserError(f"{host} does not accept the request (status {status}): {said}")
        raise Failed(f"status {status} from {host}: {said}")


def _names(said: str, parameter: str, words: str) -> bool:
    """Whether an error is about the name of a parameter, or about the role ``said``."""
    if said in ("system", "developer"):
        return re.search(rf"\b{said}\b", words, re.I) is not None and "role" in (parameter + words).casefold()
    wrong = (
        r"unsupported|not support|unknown|unrecogni|unexpected|not permitted|not allowed|instead|extra|deprecat"
        r"|invalid (parameter|argument|field|name)"
    )
    return (parameter == said or re.search(rf"\b{re.escape(said)}\b", words) is not None) and bool(
        re.search(wrong, words, re.I)
    )


def _error(reply: Reply) -> dict[str, Any]:
    """What a server says of an error, field by field; empty where it says it otherwise."""
    body = reply.body.get("error", reply.body) if isinstance(reply.body, dict) else None
    return body if isinstance(body, dict) else {}


def _said(reply: Reply, longest: int = 160) -> str:
    """The server's own words, on one short line."""
    body = reply.body.get("error", reply.body) if isinstance(reply.body, dict) else reply.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
        if isinstance(body, dict):
            body = body.get("message") or body
    return _short(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False), longest)


def _short(text: str, longest: int = 160) -> str:
    text = " ".join(text[: 10 * longest].split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
