import http.server
import socket
import threading
import time

import pytest

from cbm.files.network import hub_state


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", f"{address}/")
        assert hub_state() == f"yes: {address} (it says 404)"


def test_a_hub_that_is_silent_or_not_there(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        began = time.monotonic()
        assert hub_state(0.3).startswith(f"no: {address}")
        assert time.monotonic() - began < 2
    assert hub_state(1).startswith(f"no: {address} (")
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    assert hub_state(1).startswith("no: not an address (")


def test_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_state().startswith("offline: HF_HUB_OFFLINE is set")
