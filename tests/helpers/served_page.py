"""The explorer's page on a port of this computer, asked without a browser."""

import http.client
import json
import queue
import secrets
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from cbm.app import Explorer

"""What the page's gallery shows at first: class, mistakes only, group and number of the page (kept by the server)."""


def serve(explorer: Explorer, **settings: Any) -> str:
    """The page, served as the command serves it; returns its address."""
    from cbm.app.page import launch

    opened: queue.Queue[str] = queue.Queue()
    settings["opened"] = opened.put
    threading.Thread(target=launch, args=(explorer,), kwargs=settings, daemon=True).start()
    return opened.get(timeout=300)


def ask(address: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer; underscores in names of headers are dashes."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body or None, {name.replace("_", "-"): said for name, said in headers.items()})
    answer = connection.getresponse()
    found = answer.status, {name.lower(): said for name, said in answer.getheaders()}, answer.read()
    connection.close()
    return found


def say(address: str, request: bytes, most: int = 2000) -> bytes:
    """The beginning of what the server says to any bytes."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        try:
            connection.sendall(request)
            return connection.recv(most)
        except (ConnectionResetError, BrokenPipeError):
            return b"closed"


class Tab:
    """A tab of the page, as its script talks to the server.

    Args:
        address: the page.
    """

    def __init__(self, address: str):
        self.address, self.session = address, secrets.token_hex(6)
        self.config = json.loads(ask(address, "/config")[2])
        self.labels = {part["id"]: part["props"].get("label") or part["props"].get("value")
                       for part in self.config["components"]}  # fmt: skip
        self.do(0, [])

    def number(self, label: str, event: str) -> int:
        """Number of the function that an event of the part with a label calls."""
        for function in self.config["dependencies"]:
            for part, name in function["targets"]:
                if name == event and self.labels.get(part) == label:
                    return function["id"]
        raise KeyError(label)

    def of(self, elem_id: str, event: str) -> int:
        """Number of the function that an event of the part with an id calls."""
        parts = [part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id]
        for function in self.config["dependencies"]:
            if any(part in parts and name == event for part, name in function["targets"]):
                return function["id"]
        raise KeyError(elem_id)

    def join(self, told: Any, **headers: str) -> tuple[int, dict, bytes]:
        """Send anything."""
        headers.setdefault("Content_Type", "application/json")
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        return ask(self.address, "/gradio_api/queue/join", "POST", body, **headers)

    def do(self, function: int, data: list, event: Any = None) -> dict:
        """Call a function, and wait for what it says: ``{"success": ..., "output": ...}``."""
        told = {"data": data, "event_data": event, "fn_index": function, "session_hash": self.session}
        status, _, body = self.join(told)
        if status != 200:
            return {"success": False, "status": status, "output": {"error": body.decode()}}
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=120)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] in ("process_completed", "unexpected_error"):
                    connection.close()
                    return message
        raise AssertionError("nothing was said")

    def refused(self, function: int, data: list, event: Any = None) -> str:
        """What is said by a call that must fail."""
        found = self.do(function, data, event)
        assert not found["success"], found
        return found["output"]["error"]


def form(name: str, content: bytes, *, field: str = "files") -> tuple[bytes, str]:
    """The body of an upload and its type."""
    edge = secrets.token_hex(8)
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"
