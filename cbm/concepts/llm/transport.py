"""One question to a server over HTTP, and what comes back: bounded in time and size, and free of secrets."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit

import openai

from cbm.concepts.llm.body import BodyError, BrokenBody, parse_body, read_body
from cbm.concepts.llm.endpoint import Endpoint, host_of, is_local, is_private

REDIRECTS = 4
"""Addresses that a server may send one question on to, one after the other."""


class Passing(Exception):
    """A failure that may pass; ``wait`` is what the server asked for."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Failed(Exception):
    """This request failed for good, the others may go on."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP.
        body: JSON, or the beginning of the text that it is instead.
        retry_after: seconds that the server wants to be left alone.
        host: who answered, without credentials.
    """

    status: int
    body: Any
    retry_after: float | None
    host: str


class Transport:
    """A server's connections; a context manager.

    Nothing but the headers of ``Endpoint.headers`` is sent, whatever the environment says, and of those the key goes to
    no other machine than the one that was named.

    Args:
        endpoint: who is asked.
        clean: makes a text whole and free of secrets.

    Raises:
        UserError: no key, or one that must not be sent there.
    """

    def __init__(self, endpoint: Endpoint, clean: Callable[[str], str]):
        self.endpoint, self.clean = endpoint, clean
        self.headers = endpoint.headers()
        # of the package's client only the connections are used: it would send what the environment holds for OpenAI to
        # any server, and read bodies without end
        self._http = openai.DefaultAsyncHttpxClient(trust_env=not endpoint.local, timeout=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def post(self, content: Mapping[str, Any], count: Callable[[], None]) -> Reply:
        """Ask, and read the answer.

        Args:
            content: the question.
            count: called before every HTTP request, redirected ones too; may raise BudgetUsed.

        Raises:
            Passing: no connection, no answer in time, a body that did not come whole.
            Failed: a body that is not read, or a way to another server that is not followed.
        """
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                return await self._follow(json.dumps(content).encode(), count)
        except TimeoutError:
            raise Passing(f"no answer in {self.endpoint.timeout:g} s") from None
        except BodyError as error:
            raise Failed(self.clean(str(error))) from None
        except BrokenBody as error:
            raise Passing(self.clean(str(error))) from None

    async def _follow(self, content: bytes, count: Callable[[], None]) -> Reply:
        """The reply of the last server on the way."""
        request = self._http.build_request("POST", self.endpoint.chat_url, content=content, headers=self.headers)
        for _ in range(REDIRECTS + 1):
            for name in set(request.headers) - {"host", "content-length", *map(str.lower, self.headers)}:
                del request.headers[name]
            count()
            response = await self._send(request)
            try:
                if response.next_request is None:
                    return await self._read(response)
                self._check_way(request, response.next_request, response.status_code)
                request = response.next_request
            finally:
                await response.aclose()
        raise Failed(f"{self.endpoint.host} sends from one address to the next, more than {REDIRECTS} times")

    async def _send(self, request: Any) -> Any:
        """The response, of which the body is still to be read."""
        try:
            return await self._http.send(request, stream=True, follow_redirects=False, auth=None)
        except Exception as error:  # whatever the client raises: no name, no route, no TLS, no HTTP
            raise self._no_connection(error) from None

    def _no_connection(self, error: Exception) -> Passing:
        reason = self.clean(str(error)).strip() or type(error).__name__
        return Passing(f"no connection to {self.endpoint.host}: {reason[:200]}")

    async def _read(self, response: Any) -> Reply:
        """The reply, with a body that can be used."""
        headers = response.headers
        try:
            content = await read_body(response.aiter_raw(), headers.get("content-encoding", ""))
        except (BodyError, BrokenBody):
            raise
        except Exception as error:
            raise self._no_connection(error) from None
        body = parse_body(content, self.clean)
        host = self.clean(host_of(str(response.url)).removesuffix("/chat/completions"))
        return Reply(response.status_code, body, retry_after(headers), host)

    def _check_way(self, before: Any, after: Any, status: int) -> None:
        """Refuse to be sent on to where a question must not go; take the key off where it must not."""
        there, here = str(after.url), str(before.url)
        shown = self.clean(host_of(there))[:200]
        if after.method != "POST":
            raise Failed(f"{self.endpoint.host} has moved to {shown} (status {status}): say that as --base-url")
        if is_private(here) and not is_private(there):
            raise Failed(f"{self.endpoint.host} sends on to {shown}, unencrypted: this is not followed")
        if not self.endpoint.local and is_local(urlsplit(there).hostname or ""):
            raise Failed(f"{self.endpoint.host} sends on to {shown}, on this network: this is not followed")
        if urlsplit(there).hostname != urlsplit(self.endpoint.url).hostname:
            for name in ("authorization", "openai-organization", "openai-project"):
                after.headers.pop(name, None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date."""
    if (exact := headers.get("retry-after-ms")) is not None:
        try:
            return _seconds(float(exact) / 1000)
        except ValueError:
            pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return _seconds(float(value))
    except ValueError:
        try:
            return _seconds((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError, OverflowError, IndexError):
            return None


def _seconds(value: float) -> float | None:
    return max(0.0, value) if value == value else None


for _name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):  # they would print addresses
    logging.getLogger(_name).setLevel("CRITICAL")
