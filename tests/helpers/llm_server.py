import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PHRASES = ["white belly with {0} spots", "long {0} tail", "{0} wing bars"]


def completion(content: str | None, finish: str = "stop", **message: object) -> dict:
    """A chat completion as servers send it."""
    return {
        "id": "x", "object": "chat.completion", "created": 1_700_000_000, "model": "tiny-0613",
        "choices": [{"index": 0, "finish_reason": finish,
                     "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }  # fmt: skip


def concepts(*phrases: str) -> dict:
    return completion(json.dumps({"concepts": list(phrases)}))


class Server:
    """A real server on loopback. ``script`` holds what the next requests get; then everything is answered well."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.in_flight = self.most = 0
        self.script: list[Callable[[BaseHTTPRequestHandler, dict], None]] = []
        self.always: Callable[[BaseHTTPRequestHandler, dict], None] | None = None
        self.delay = 0.0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.in_flight += 1
                    outer.most = max(outer.most, outer.in_flight)
                    act = outer.script.pop(0) if outer.script else outer.always or well
                try:
                    time.sleep(outer.delay)
                    act(self, body)
                except OSError:
                    pass
                finally:
                    with outer.lock:
                        outer.in_flight -= 1

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def asked(self) -> list[str]:
        return [body["messages"][1]["content"] for body in self.bodies]


def send(status: int, content: dict | str, **headers: str):
    """An action: this response."""

    def act(handler: BaseHTTPRequestHandler, _: dict) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    return act


def well(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Three phrases that name the first word of the class."""
    word = body["messages"][1]["content"].split('"')[1].split()[0]
    send(200, concepts(*(phrase.format({"cat": "grey", "dog": "brown"}.get(word, word)) for phrase in PHRASES)))(
        handler, body
    )


def drop(handler: BaseHTTPRequestHandler, _: dict) -> None:
    """No response: the connection ends."""
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def module(module, tmp_path: Path):
    """``python -m cbm concepts llm``, where a file of names is."""
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    return lambda *arguments: module("concepts", "llm", *arguments)
