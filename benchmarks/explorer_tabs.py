"""Time and memory of the explorer with many tabs: ``python benchmarks/explorer_tabs.py runs/first``.

Every tab opens the page, looks at pictures, holds a concept and masks it, all tabs at the same time; then they are
closed, and as many are opened again. Memory is that of the server's process (Linux only).
"""

import http.client
import json
import re
import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

TABS, TURNS = 50, 13
WANTED = ("gallery", "explanation")


class Tab:
    """A tab of the page at an address."""

    def __init__(self, address: str):
        self.place, self.session = urlsplit(address).netloc, secrets.token_hex(6)
        self.config = json.loads(self._read("GET", "/config"))
        self.alive = http.client.HTTPConnection(self.place, timeout=600)
        self.alive.request("GET", f"/gradio_api/heartbeat/{self.session}")
        self.first = self.do(0, [])

    def _read(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(self.place, timeout=600)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        said = connection.getresponse().read()
        connection.close()
        return said

    def number(self, wanted: str) -> int:
        """The function that a click on a view or a button calls."""
        for function in self.config["dependencies"]:
            for part, _ in function["targets"]:
                found = next((each for each in self.config["components"] if each["id"] == part), {"props": {}})["props"]
                if wanted in (found.get("elem_id"), found.get("value")):
                    return int(function["id"])
        raise KeyError(wanted)

    def do(self, function: int, data: list, event: dict | None = None) -> dict:
        """Call a function and wait for its answer."""
        told = {"data": data, "event_data": event, "fn_index": function, "session_hash": self.session}
        self._read("POST", "/gradio_api/queue/join", json.dumps(told).encode())
        connection = http.client.HTTPConnection(self.place, timeout=600)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        answer = connection.getresponse()
        while line := answer.readline():
            if b"process_completed" in line:
                connection.close()
                found = json.loads(line[5:])
                assert found["success"], found
                return dict(found)
        raise AssertionError("no answer")

    def work(self, number: int) -> float:
        """Look at a picture, hold a concept, mask it; seconds of the slowest of these."""
        slowest = 0.0
        for wanted, data, event in (
            ("gallery", [None], {"key": str(number % 16)}),
            ("explanation", [None], {"key": str(number % 7)}),
            ("Mask", [None, "this picture", "all classes", ""], None),
        ):
            begun = time.perf_counter()
            self.do(self.number(wanted), data, event)
            slowest = max(slowest, time.perf_counter() - begun)
        return slowest


def memory(process: int) -> float:
    """MB of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def main() -> None:
    """Print a line for every step."""
    run = sys.argv[1]
    server = subprocess.Popen([sys.executable, "-m", "cbm", "app", run], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    try:
        print(f"opened: {memory(server.pid):.0f} MB")
        for turn in range(1, TURNS + 1):
            begun = time.perf_counter()
            with ThreadPoolExecutor(TABS) as pool:
                tabs = list(pool.map(lambda _: Tab(address), range(TABS)))
                opened = time.perf_counter() - begun
                slowest = sorted(pool.map(lambda each: each[1].work(each[0]), enumerate(tabs)))
            print(
                f"{turn}. {TABS} tabs: opened in {opened:.1f} s, slowest answer of a tab {slowest[TABS // 2]:.2f} s "
                f"(median) {slowest[-1]:.2f} s (last), {memory(server.pid):.0f} MB"
            )
            for tab in tabs:
                tab.alive.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
