"""Who may talk to the page: everything that is sent to it passes here first, before Gradio sees it.

A web page of somebody else can make a browser send requests to this computer, and a name that it owns can be made to
mean 127.0.0.1 (DNS rebinding). So an answer is given only to requests that name this very server (``Host``), that come
from this page (``Origin``, or what stands for it), and that ask for what the page needs: whatever else Gradio offers is
closed. What is sent is bounded, and files that it names must be pictures that were dropped here.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from cbm.app.uploads import RefusedError, UploadRefusedError, Uploads
from cbm.errors import UserError

log = logging.getLogger("cbm")

NAMES = ("127.0.0.1", "localhost", "[::1]")
"""What this computer is called by itself."""
READ, WRITE = ("GET", "HEAD"), ("POST",)
UPLOAD, PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
TOLD = "/gradio_api/queue/join"
"""Where the page tells what was done in it."""
WORD = r"[\w-]{1,64}"
FILE = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"
OPEN: tuple[tuple[tuple[str, ...], re.Pattern], ...] = (
    (READ, re.compile(r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt", re.ASCII)),
    (READ, re.compile(rf"/(?:assets|static|svelte)/{FILE}", re.ASCII)),
    (READ, re.compile(rf"/gradio_api/(?:info|startup-events|theme\.css|queue/data|heartbeat/{WORD})", re.ASCII)),
    (READ, re.compile(re.escape(PROGRESS))),
    (READ, re.compile(r"/api(?:/[a-z]{1,20})?", re.ASCII)),
    (WRITE, re.compile(f"{re.escape(UPLOAD)}|{re.escape(TOLD)}")),
)
"""What the page needs: methods and paths. All others are closed, those that later versions of Gradio add too."""
FORWARDED = (b"forwarded", b"x-gradio-server", b"x-original-url", b"x-rewrite-url")
"""Headers by which a client could say that the page is elsewhere; those that begin with x-forwarded- too."""
LONGEST_BODY = 2_000_000
"""Bytes that a tab may tell at once."""
LONGEST_HEADERS = 32_000
IDLE = 60.0
"""Seconds until somebody who sends nothing more is given up."""
DRAIN = 5.0
"""Seconds in which the rest of something that is refused is read."""
DEPTH = 20
"""How deep lists and objects may be nested in what a tab tells."""
API = "/api"
"""Where the page says what it shows as JSON (``cbm.app.api``)."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        b"frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""Said with every answer: load nothing from and send nothing to others, be framed and read by nobody else."""
SESSION = re.compile(WORD, re.ASCII)
LOCAL_FRAMES = b"frame-ancestors http://localhost:* http://127.0.0.1:*"


def framed_by_notebooks() -> tuple[tuple[bytes, bytes], ...]:
    """``HEADERS`` of a page that notebooks of this computer may show inline, and nobody else."""
    kept = [(name, value) for name, value in HEADERS if name != b"x-frame-options"]
    return tuple((name, value.replace(b"frame-ancestors 'none'", LOCAL_FRAMES)) for name, value in kept)


def headers_of(scope: Mapping[str, Any], name: bytes) -> list[str]:
    """All values of a header of a request."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


class Guard:
    """ASGI middleware around all others.

    Args:
        app: what is guarded.
        uploads: where dropped pictures go.
        inputs: function that returns how many inputs each function of the page has, by its number.
        api: function from the last part of the path and the query to what is said as JSON.
        public: function that returns the public address of a page that is shared; None if it is not.
        headers: what is said with every answer.
    """

    def __init__(
        self,
        app: Any,
        uploads: Uploads,
        inputs: Callable[[], Mapping[int, int]],
        api: Callable[[str, str], Any],
        public: Callable[[], str | None] = lambda: None,
        headers: tuple[tuple[bytes, bytes], ...] = HEADERS,
    ):
        self.app, self.uploads, self.inputs, self.api, self.public = app, uploads, inputs, api, public
        self.headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or say why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, with_headers(send, self.headers))
            except RefusedError as error:
                await say(with_headers(send, self.headers), error.status, str(error), scope["method"])
        elif scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        own = self._host(scope)
        check_origin(scope, own)
        check_path(scope)
        scope = {**scope, "scheme": own.partition(":")[0], "headers": self._own_headers(scope, own)}
        if scope["path"] == "/":
            scope["query_string"] = b""  # a deep link would be read from a file
        if scope["path"] == API or scope["path"].startswith(f"{API}/"):
            await self._say_json(scope, send)
        elif scope["path"] == UPLOAD:
            await self._take_picture(scope, receive, send)
        elif scope["path"] == PROGRESS:
            await say(send, 200, 'data: {"msg": "done"}\n', scope["method"], b"text/event-stream")
        elif scope["path"] == TOLD:
            body = self._checked(await Body(receive).whole(LONGEST_BODY))
            headers = [(key, value) for key, value in scope["headers"] if key not in (b"content-length", b"expect")]
            headers = [(key, value) for key, value in headers if key != b"transfer-encoding"]
            headers.append((b"content-length", str(len(body)).encode()))
            await self._pass({**scope, "headers": headers}, replayed(body, receive), send)
        else:
            await self._pass(scope, receive, send)

    async def _say_json(self, scope: Any, send: Any) -> None:
        """What the page shows, as JSON."""
        what, address = (
            scope["path"].removeprefix(API).removeprefix("/"),
            scope.get("query_string", b"").decode("latin-1"),
        )
        try:
            status, found = 200, await asyncio.to_thread(self.api, what, address)
        except UserError as error:
            status, found = 400, {"error": str(error)}
        except Exception as error:
            log.warning("the page: %s at %s", type(error).__name__, scope["path"])
            log.debug("the page", exc_info=error)
            status, found = 500, {"error": "this cannot be answered"}
        await say(send, status, json.dumps(found, ensure_ascii=False), scope["method"], b"application/json")

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        """Let Gradio answer; what it does not expect is a line in the log."""
        begun = False

        async def sent(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            log.warning("the page: %s at %s", type(error).__name__, scope["path"])
            log.debug("the page", exc_info=error)
            if not begun:
                raise RefusedError(500, "this cannot be answered") from error
            await send({"type": "http.response.body", "body": b""})

    def _host(self, scope: Any) -> str:
        """The origin (``http://127.0.0.1:7860``) that a request is to: that of this very page."""
        if sum(len(key) + len(value) for key, value in scope["headers"]) > LONGEST_HEADERS:
            raise RefusedError(431, "the headers are too long")
        hosts, server, public = headers_of(scope, b"host"), scope.get("server"), self.public()
        host = hosts[0].lower() if len(hosts) == 1 else ""
        port = server[1] if server else None
        if port is not None and host in [f"{name}:{port}" for name in NAMES] + (list(NAMES) if port == 80 else []):
            return f"http://{host}"
        if public is not None and host:
            known = urlsplit(public.lower())
            if host in (known.netloc, f"{known.netloc}:{443 if known.scheme == 'https' else 80}"):
                return f"{known.scheme}://{known.netloc}"
        raise RefusedError(403, f"only requests to {NAMES[0]} or {NAMES[1]} with the port are answered (header Host)")

    def _own_headers(self, scope: Any, own: str) -> list[tuple[bytes, bytes]]:
        """The headers of a request without what a client says about where the page is."""
        headers = [(key.lower(), value) for key, value in scope["headers"]]
        kept = [(key, value) for key, value in headers if key not in FORWARDED and not key.startswith(b"x-forwarded-")]
        return [*kept, (b"x-forwarded-proto", b"https")] if own.startswith("https:") else kept

    async def _take_picture(self, scope: Any, receive: Any, send: Any) -> None:
        body = Body(receive)
        try:
            path = await self.uploads.receive(scope["headers"], body.parts())
        except UploadRefusedError:
            await body.drain()
            raise
        await say(send, 200, json.dumps([str(path)]), scope["method"], b"application/json")

    def _checked(self, body: bytes) -> bytes:
        """What a tab told, if it can be meant; files in it are pictures that were dropped and not read yet."""
        try:
            told = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "what was sent is not JSON") from error
        inputs = self.inputs()
        if not isinstance(told, dict) or type(told.get("fn_index")) is not int or told["fn_index"] not in inputs:
            raise RefusedError(400, "what was sent names no function of the page")
        if not isinstance(told.get("session_hash"), str) or not SESSION.fullmatch(told["session_hash"]):
            raise RefusedError(400, "what was sent names no tab")
        data, event = told.get("data"), told.get("event_data")
        if not isinstance(data, list) or len(data) != inputs[told["fn_index"]]:
            raise RefusedError(400, f"expected {inputs[told['fn_index']]} values")
        if isinstance(event, str):  # what was typed, which is in the data too
            event = None
        if event is not None and not isinstance(event, dict):
            raise RefusedError(400, "an event is an object, or nothing")
        trigger = told.get("trigger_id")
        kept = {
            "fn_index": told["fn_index"],
            "session_hash": told["session_hash"],
            "trigger_id": trigger if type(trigger) is int else None,
            "data": [self._known(value) for value in data],
            "event_data": self._known(event, files=False),
        }
        return json.dumps(kept).encode()

    def _known(self, value: Any, depth: int = 0, *, files: bool = True) -> Any:
        """A value whose files are dropped pictures, described as Gradio does."""
        if depth > DEPTH:
            raise RefusedError(400, "what was sent is nested too deep")
        if isinstance(value, list):
            return [self._known(each, depth + 1, files=files) for each in value]
        if isinstance(value, str):
            return value.encode(errors="replace").decode()  # half of a character cannot be sent back
        if not isinstance(value, dict):
            return value
        if not {"path", "url", "meta"} & value.keys():
            return {key: self._known(each, depth + 1, files=files) for key, each in value.items()}
        path = value.get("path")
        if not files:
            return None
        if not isinstance(path, str) or not self.uploads.holds(path):
            raise RefusedError(400, "this file was not dropped here, or it was read before: drop it again")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def check_origin(scope: Any, own: str) -> None:
    """Raise a ``RefusedError`` if a request was made by another page.

    Args:
        scope: the request.
        own: origin of this page.
    """
    origins, referers = headers_of(scope, b"origin"), headers_of(scope, b"referer")
    sites, writes = headers_of(scope, b"sec-fetch-site"), scope["method"] not in READ
    opened = scope["path"] == "/" and not writes  # by a link: the answer is shown, not given to the other page
    if origins:
        ours = [origin.lower() for origin in origins] == [own]
    else:
        ours = opened or all(site.lower() in ("same-origin", "none") for site in sites)
        ours = ours and not (writes and any(origin_of(referer) != own for referer in referers))
    if not ours:
        raise RefusedError(
            403, "another page asks: only this one is answered (headers Origin, Referer, Sec-Fetch-Site)"
        )


def origin_of(address: str) -> str:
    """``http://name:port`` of an address; empty if it is none."""
    try:
        parts = urlsplit(address.strip().lower())
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"


def check_path(scope: Any) -> None:
    """Raise a ``RefusedError`` for what the page does not need."""
    methods = [methods for methods, path in OPEN if path.fullmatch(scope["path"])]
    if not methods or ".." in scope["path"]:
        raise RefusedError(403, "the page needs nothing there")
    if not any(scope["method"] in each for each in methods):
        raise RefusedError(405, f"expected {methods[0][0]} there")


def with_headers(send: Any, said: tuple[tuple[bytes, bytes], ...]) -> Any:
    """``send`` that says ``HEADERS`` (or others like them) with every answer, and lets no other page read it."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            ours = {key for key, _ in said}
            kept = [
                (key, value)
                for key, value in message.get("headers", [])
                if key.lower() not in ours and not key.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": [*kept, *said]}
        await send(message)

    return sent


async def say(send: Any, status: int, line: str, method: str, kind: bytes = b"text/plain; charset=utf-8") -> None:
    """Answer with a line."""
    body = f"{line}\n".encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    if status >= 400:
        headers.append((b"connection", b"close"))  # what else was sent is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


class Body:
    """The body of a request, as it comes in.

    Args:
        receive: the ``receive`` of ASGI.
    """

    def __init__(self, receive: Any):
        self._receive, self.ended = receive, False

    async def parts(self) -> AsyncIterator[bytes]:
        """Part by part.

        Raises:
            RefusedError: nothing comes any more.
        """
        while not self.ended:
            try:
                message = await asyncio.wait_for(self._receive(), IDLE)
            except TimeoutError as error:
                raise RefusedError(408, f"nothing was sent for {IDLE:.0f} seconds") from error
            self.ended = not message.get("more_body", False)
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the connection was closed")
            yield message.get("body", b"")

    async def whole(self, most: int) -> bytes:
        """All of it.

        Raises:
            RefusedError: it has more than ``most`` bytes.
        """
        found, size = [], 0
        async for part in self.parts():
            size += len(part)
            if size > most:
                await self.drain()
                raise RefusedError(413, f"too much at once: at most {most // 1_000_000} MB are read")
            found.append(part)
        return b"".join(found)

    async def drain(self) -> None:
        """Let the sender end, for some seconds: many read no answer before. Nothing is kept."""

        async def read() -> None:
            async for _ in self.parts():
                pass

        with suppress(TimeoutError, RefusedError):
            await asyncio.wait_for(read(), DRAIN)


def replayed(body: bytes, receive: Any) -> Any:
    """``receive`` that gives a body which was read already, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return waiting.pop() if waiting else await receive()

    return again


def guarding(
    uploads: Uploads,
    api: Callable[[str, str], Any],
    public: Callable[[], str | None],
    headers: tuple[tuple[bytes, bytes], ...] = HEADERS,
) -> Callable[[Any], Any]:
    """The lifespan of an application of Gradio that is guarded before its first request.

    It is given as ``lifespan``, not as a middleware: Gradio puts its own around those, and one of them answers CORS.

    Args:
        uploads: where dropped pictures go.
        api: function from the last part of the path and the query to what is said as JSON.
        public: function that returns the public address of a page that is shared; None if it is not.
        headers: what is said with every answer.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        def inputs() -> dict[int, int]:
            return {number: len(function.inputs) for number, function in app.get_blocks().fns.items()}

        app.middleware_stack = Guard(app.middleware_stack, uploads, inputs, api, public, headers)
        yield

    return lifespan
