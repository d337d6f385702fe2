"""Who is answered: this page in a browser of this computer, and nobody else."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from explored_run import explored
from served_page import Tab, ask, form, say, serve

from cbm.app import Explorer
from cbm.concepts.units import units_of

pytest.importorskip("gradio", reason="the explorer is not installed (the extra app)")


@pytest.fixture(scope="module")
def address() -> str:
    return serve(explored())


@pytest.fixture
def port(address: str) -> int:
    return urlsplit(address).port


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


HOSTS = {
    "Host: 127.0.0.1:{port}": 200,
    "Host: localhost:{port}": 200,
    "host: LOCALHOST:{port}": 200,
    "Host: [::1]:{port}": 200,
    "Host: evil.test:{port}": 403,
    "Host: evil.test": 403,
    "Host: 127.0.0.1": 403,
    "Host: 127.0.0.1:1": 403,
    "Host: localhost.:{port}": 403,
    "Host: localhost.evil.test:{port}": 403,
    "Host: 127.0.0.1.evil.test:{port}": 403,
    "Host: evil.test@127.0.0.1:{port}": 403,
    "Host: 127.0.0.1:{port}@evil.test": 403,
    "Host: 127.0.0.1:{port}, evil.test": 403,
    "Host: 127.1:{port}": 403,
    "Host: 0.0.0.0:{port}": 403,
    "Host: 2130706433:{port}": 403,
    "Host: [::ffff:127.0.0.1]:{port}": 403,
    "Host:": 403,
    "Host: evil.test\r\nX-Forwarded-Host: 127.0.0.1:{port}": 403,
    "Host: evil.test\r\nForwarded: host=127.0.0.1:{port}": 403,
    "Host: 127.0.0.1:{port}\r\nHost: evil.test": 400,
}


@pytest.mark.parametrize("said", HOSTS)
def test_only_this_server_is_meant(said: str, address: str, port: int):
    """Whatever name is bound to 127.0.0.1; missing, doubled and decorated ones; for every path and method."""
    said, expected = said.format(port=port), HOSTS[said]
    for line in ("GET /config", "GET /", "GET /gradio_api/queue/data?session_hash=x", "POST /gradio_api/upload"):
        answer = say(address, f"{line} HTTP/1.1\r\n{said}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        if expected != 200:
            assert status(answer) == expected, answer
        elif "queue/data" not in line:
            assert status(answer) == (400 if line.startswith("POST") else 200), answer
            assert b"x-frame-options: DENY" in answer


def test_requests_without_a_host_and_to_other_places(address: str, port: int):
    assert status(say(address, b"GET /config HTTP/1.0\r\n\r\n")) == 403
    for target in (f"http://evil.test:{port}/config", "http://127.0.0.1/config", "//evil.test/config", "*"):
        line = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        assert status(say(address, line.encode())) in (400, 403)


def test_there_is_no_websocket(address: str, port: int):
    line = f"GET /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    line += "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert status(say(address, (line + key).encode())) in (400, 403, 405)


@pytest.mark.parametrize(
    "said",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://localhost:{port}"},  # another origin than 127.0.0.1, which is the Host here
        {"Origin": "http://127.0.0.1:{port}.evil.test"},
        {"Referer": "http://evil.test/"},
        {"Referer": "http://127.0.0.1:{port}@evil.test/"},
        {"Referer": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_pages_change_nothing(said: dict, address: str, port: int):
    """Whatever a page of another origin, or of another port, can have a browser send."""
    said = {name: value.format(port=port) for name, value in said.items()}
    body, kind = form("bird.png", b"picture")
    for path, sent, of in (
        ("/gradio_api/upload", body, kind),
        ("/gradio_api/queue/join", b"{}", "application/json"),
        ("/gradio_api/queue/join", b"{}", "text/plain"),
    ):
        found, headers, _ = ask(address, path, "POST", sent, Content_Type=of, **said)
        assert found == 403
        assert not [name for name in headers if name.startswith("access-control-")]
    if "Origin" in said:
        assert ask(address, "/config", **said)[0] == 403
        assert ask(address, "/config", "OPTIONS", Access_Control_Request_Method="POST", **said)[0] == 403


def test_a_link_opens_the_page_and_reads_nothing(address: str):
    assert ask(address, "/", Sec_Fetch_Site="cross-site", Referer="http://evil.test/")[0] == 200
    assert ask(address, "/config", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(address, "/config", Sec_Fetch_Site="none")[0] == 200


def test_what_is_said_with_every_answer(address: str):
    for path in ("/", "/config", "/gradio_api/file=/etc/passwd"):
        headers = ask(address, path)[1]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"


def test_nobody_says_where_the_page_is(address: str):
    """What a proxy would say goes into addresses that the page loads."""
    for name in ("X_Forwarded_Host", "X_Gradio_Server", "X_Forwarded_Proto"):
        found, _, body = ask(address, "/config", **{name: "https://evil.test"})
        assert found == 200
        assert b"evil.test" not in body
        assert json.loads(body)["root"] == address.rstrip("/")


CLOSED = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=cbm/__init__.py",
    "/gradio_api/file=../README.md",
    "/gradio_api/file=.git/config",
    "/gradio_api/file=http://evil.test/x",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/proxy=https://x.hf.space/",
    "/gradio_api/stream/a/b/1/playlist.m3u8",
    "/monitoring",
    "/monitoring/summary",
    "/monitoring/key",
    "/gradio_api/runs",
    "/gradio_api/run-history/buckets",
    "/gradio_api/mcp",
    "/gradio_api/mcp/sse",
    "/gradio_api/openapi.json",
    "/gradio_api/deep_link",
    "/gradio_api/deep_link?session_hash=x",
    "/gradio_api/vibe-code",
    "/gradio_api/custom_component/1/client/component/x.js",
    "/gradio_api/user",
    "/gradio_api/token",
    "/gradio_api/app_id",
    "/gradio_api/dev/reload",
    "/gradio_api/queue/status",
    "/gradio_api/profiling/traces",
    "/login_check",
    "/login",
    "/logout",
    "/docs",
    "/openapi.json",
    "/static/../config",
    "/assets/..%2f..%2froutes.py",
    "/static/%2e%2e/%2e%2e/routes.py",
    "/assets//etc/passwd",
    "/gradio_api/heartbeat/../info",
    "/gradio_api//info",
    "/.git/config",
]


@pytest.mark.parametrize("path", CLOSED)
def test_what_the_page_does_not_need_is_closed(path: str, address: str):
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(address, path, method)[0] in (403, 405)


@pytest.mark.parametrize(
    "path",
    ["api/predict", "run/predict", "call/predict", "call/v2/predict", "component_server", "cancel", "reset",
     "stream/x", "process_recording", "vibe-edit", "run-history/connect"],
)  # fmt: skip
def test_no_other_way_to_call_anything(path: str, address: str):
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"}).encode()
    found, _, said = ask(address, f"/gradio_api/{path}", "POST", body, Content_Type="application/json")
    assert (found, said.count(b"\n")) == (403, 1)


def test_nothing_is_offered_as_an_api(address: str):
    info = json.loads(ask(address, "/gradio_api/info")[2])
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}
    config = json.loads(ask(address, "/config")[2])
    assert {function["api_visibility"] for function in config["dependencies"]} == {"private"}
    assert not config.get("run_history")
    assert config["analytics_enabled"] is False


def test_the_page_names_no_other_host(address: str):
    """What it loads: all scripts and styles are its own. Older versions of Gradio name some, which the policy stops."""
    import gradio

    if tuple(map(int, gradio.__version__.split(".")[:2])) < (6, 31):
        pytest.skip(f"Gradio {gradio.__version__} names other hosts")
    page = ask(address, "/")[2].decode()
    loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page)
    assert loaded
    assert [each for each in loaded if re.match(r"(?:https?:)?//", each)] == []


BODIES = [
    b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"data": [], "fn_index": 99999, "session_hash": "x"}',
    b'{"data": [], "fn_index": "0", "session_hash": "x"}', b'{"data": [], "fn_index": true, "session_hash": "x"}',
    b'{"data": [], "fn_index": 0, "session_hash": "../../x"}', b'{"data": [], "fn_index": 0}',
    b'{"data": {}, "fn_index": 0, "session_hash": "x"}', b'{"data": [1], "fn_index": 0, "session_hash": "x"}',
    b'{"data": ["", false, null], "event_data": [], "fn_index": 0, "session_hash": "x"}', b"\xff\xfe",
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_what_no_page_sends(body: bytes, address: str):
    found, _, said = ask(address, "/gradio_api/queue/join", "POST", body, Content_Type="application/json")
    assert (found, said.count(b"\n")) == (400, 1)


def test_files_of_this_computer_are_not_named(address: str, tmp_path):
    """Nor addresses, which Gradio would load; nor what is linked to in the folder of uploads."""
    tab = Tab(address)
    drop = tab.number("Drop a picture here", "upload")
    for path in ("/etc/passwd", "../../etc/passwd", str(tmp_path), "http://evil.test/x.png", "", 1, None, ["x"]):
        for file in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path, "url": path}, {"url": path}):
            assert "was not dropped here" in tab.refused(drop, [None, file])
            assert "was not dropped here" in tab.refused(tab.of("search", "change"), [None, {"x": [file]}])


def test_values_that_the_page_does_not_offer(address: str, capfd):
    """One message, no traceback, and the tab goes on."""
    tab = Tab(address)
    assert tab.do(tab.of("explanation", "select"), [None], {"key": "0"})["success"]
    here = ["this picture", "all classes", ""]
    drag, mask, reweight = (
        tab.of("value", "input"),
        tab.number("Mask", "click"),
        tab.number("Give it this weight", "click"),
    )
    name = explored().classes[0]
    many = "x" * 1_000_000
    for number in (float("nan"), float("inf"), -float("inf"), 1e308, 10**400, "1", None, True, [], {}):
        assert "number" in tab.refused(drag, [None, number, *here])
        assert "number" in tab.refused(reweight, [None, name, number])
    for scope, told, why in (
        ("x", here[1], ""), (None, here[1], ""), (["x"], here[1], ""), (here[0], "nobody", ""), (here[0], None, ""),
        (here[0], many, ""), (*here[:2], many), (*here[:2], {"a": 1}),
    ):  # fmt: skip
        said = tab.refused(mask, [None, scope, told, why])
        assert "\n" not in said
        assert len(said) < 1000
    assert "300 characters" in tab.refused(tab.of("search", "change"), [None, many])
    assert "at most 2 MB" in tab.refused(tab.of("search", "change"), [None, many * 3])
    assert tab.do(tab.of("search", "change"), [None, "(.*)*\ud800"])["success"]
    for key in ("-1", "1.5", "9" * 5000, "٣", "", None, [1], {"a": 1}, "100000000"):
        for function, data in ((tab.of("explanation", "select"), [None]),
                               (tab.of("gallery", "select"), [None])):  # fmt: skip
            said = tab.refused(function, data, {"key": key})
            assert "stands for nothing" in said or "no concept" in said or "no picture" in said or "characters" in said
    anything = "any class", False, "any group", ""
    for place, odd in ((0, "nobody"), (0, None), (1, "yes"), (1, None), (2, "site: A"), (2, None), (3, many), (3, 1)):
        chosen = [odd if number == place else each for number, each in enumerate(anything)]
        tab.refused(tab.of("words", "submit"), [None, *chosen])
    for key in ("of=nobody", "high=no such thing", "picked=1-2-3", "picked=" + "1." * 10_000, "like=-1", "picture=x",
                "tab=nowhere", "page=0.5", "concept=none", "why=nobody", "a=1&" * 200, "x" * 70_000):  # fmt: skip
        said = tab.refused(tab.of("location", "select"), [None], {"key": key})
        assert "\n" not in said
        assert len(said) < 1000
    assert "no class" in tab.refused(tab.of("verdict", "select"), [None], {"key": "nobody"})
    for file in ("../../etc/passwd", "metrics.json", None, 1, ["edits.yaml"]):
        tab.refused(tab.number("Add these edits", "click"), [None, file])
    propose = tab.number("5. Propose a correction", "click")
    for shots in (float("nan"), 0, -1, 1.5, 1e9, "4", None):
        tab.refused(propose, [None, shots, "", "recentre", "default"])
    tab.refused(propose, [None, 4, "", "recentre", "careless"])
    tab.refused(propose, [None, 4, "", "conda", "default"])
    tab.refused(propose, [None, 4, "\0", "recentre", "default"])
    assert "stands for nothing" in tab.refused(tab.of("truth", "select"), [None], {"key": "perhaps", "row": "1"})
    assert tab.do(mask, [None, *here])["success"]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_tab_that_is_not_known_is_told(address: str):
    tab = Tab(address)
    tab.session = "forgotten"
    assert "reload the page" in tab.refused(tab.number("Undo", "click"), [None])
    assert ask(address, "/gradio_api/queue/data?session_hash=nobody")[0] in (200, 404)


def test_fifty_tabs_edit_at_once(address: str):
    """Each has its own answer; one that fails changes nothing for the others."""
    tabs = [Tab(address) for _ in range(50)]
    explanation, mask = tabs[0].of("explanation", "select"), tabs[0].number("Mask", "click")
    texts = explored().bank.texts
    together = threading.Barrier(50)

    def edit(number: int) -> str:
        tab = tabs[number]
        together.wait()
        if number % 10 == 9:
            return tab.refused(mask, [None, "this picture", "all classes", ""])
        assert tab.do(explanation, [None], {"key": str(number)})["success"]
        found = tab.do(mask, [None, "this picture", "all classes", f"tab {number}"])
        return json.dumps(found["output"]["data"], ensure_ascii=False)

    with ThreadPoolExecutor(50) as pool:
        said = list(pool.map(edit, range(50)))
    for number, each in enumerate(said):
        if number % 10 == 9:
            assert "choose a concept first" in each
        else:
            assert f"<b>{texts[number]}</b>" in each
            assert re.findall(r"tab (\d+)", each) == [str(number)]


def test_shared_pages_write_nothing_and_know_their_address(monkeypatch: pytest.MonkeyPatch):
    """Only the address that Gradio gave is answered too; other folders of this computer stay closed."""
    import gradio

    monkeypatch.setattr(gradio.networking, "setup_tunnel", lambda **how: "http://abc123.gradio.live")
    explorer = Explorer(explored().model.path, explored().cache)
    public = serve(explorer, share=True)
    assert public == "https://abc123.gradio.live"
    found = [each for each in range(7860, 7960) if _serves(each, "abc123.gradio.live")]
    assert len(found) == 1
    here = f"http://127.0.0.1:{found[0]}/"
    answer, _, page = ask(here, "/", Host="abc123.gradio.live")
    assert answer == 200
    assert b"amazonaws" not in page  # where Gradio's page for public addresses loads its scripts from
    assert json.loads(ask(here, "/config", Host="ABC123.gradio.live")[2])["root"] == "https://abc123.gradio.live"
    for host in ("other.gradio.live", "abc123.gradio.live.evil.test", "abc123.gradio.live:1", "gradio.live"):
        assert ask(here, "/config", Host=host)[0] == 403
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"}).encode()
    for origin, expected in ((public, 200), ("http://abc123.gradio.live", 403), (here.rstrip("/"), 403)):
        said = {"Host": "abc123.gradio.live", "Origin": origin, "Content_Type": "application/json"}
        assert ask(here, "/gradio_api/queue/join", "POST", body, **said)[0] == expected
    tab = Tab(here)
    tab.do(tab.of("explanation", "select"), [None], {"key": "0"})
    tab.do(tab.number("Mask", "click"), [None, "all pictures", "all classes", ""])
    assert "shared: nothing is written" in tab.refused(tab.number("Save edits", "click"), [None])
    assert "shared: nothing is written" in tab.refused(tab.of("truth", "select"), [None], {"key": "undo", "row": ""})
    assert "shared: no other folders" in tab.refused(
        tab.number("5. Propose a correction", "click"), [None, 4, "/etc", "test_time", "default"]
    )
    assert units_of(explorer.bank) is None


def _serves(port: int, host: str) -> bool:
    try:
        return ask(f"http://127.0.0.1:{port}/", "/config", Host=host)[0] == 200
    except OSError:
        return False
