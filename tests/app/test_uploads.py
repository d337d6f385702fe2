"""Dropped pictures: how much may wait, and that nothing stays."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from explored_run import explored, trained
from served_page import Tab, ask, form, say, serve

from cbm.app import uploads as module
from cbm.app.uploads import LOCK, PREFIX, OwnFolder, UploadRefusedError, Uploads, own_uploads, plain_name, sweep_folders

pytest.importorskip("gradio", reason="the explorer is not installed (the extra app)")
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", each=1000, total=2500, most=4)


def send(uploads: Uploads, content: bytes = b"x", name: str = "bird.png", parts: int = 7) -> Path:
    """Upload a file in some parts."""
    body, kind = form(name, content)

    async def come():
        for start in range(0, len(body), max(1, len(body) // parts)):
            yield body[start : start + max(1, len(body) // parts)]

    return asyncio.run(uploads.receive([(b"Content-Type", kind.encode())], come()))


def test_a_picture_is_there_until_it_was_read(uploads: Uploads):
    path = send(uploads, b"content")
    assert uploads.holds(path)
    with uploads.reading(path) as found:
        assert found.read_bytes() == b"content"
        with pytest.raises(FileNotFoundError), uploads.reading(path):
            pass
    assert not path.parent.exists()
    assert uploads.size == 0
    with pytest.raises(FileNotFoundError), uploads.reading("/etc/passwd"):
        pass


def test_the_same_picture_of_two_tabs_is_two(uploads: Uploads):
    first, second = send(uploads, b"same"), send(uploads, b"same")
    with uploads.reading(first):
        pass
    with uploads.reading(second) as found:
        assert found.read_bytes() == b"same"


def test_limits(uploads: Uploads, monkeypatch: pytest.MonkeyPatch):
    """Of one, of all, of their number; those that wait long make place."""
    monkeypatch.setattr(module, "MULTIPART", 300)
    with pytest.raises(UploadRefusedError, match="too large"):
        send(uploads, b"x" * 1001)
    kept = [send(uploads, b"x" * 1000) for _ in range(2)]
    with pytest.raises(UploadRefusedError, match="wait to be read"):
        send(uploads, b"x" * 1000)
    assert all(path.exists() for path in kept)
    assert uploads.size == 2000
    monkeypatch.setattr(module, "WAITING", 0.0)
    with uploads.reading(kept[0]):  # is looked at
        third = send(uploads, b"x" * 1000)
        assert [path.exists() for path in kept] == [True, False]
    monkeypatch.setattr(module, "WAITING", 60.0)
    few = [send(uploads) for _ in range(3)]
    with pytest.raises(UploadRefusedError, match="4 pictures wait"):
        send(uploads)
    monkeypatch.setattr(module, "FORGOTTEN", 0.0)
    last = send(uploads)
    assert not any(path.exists() for path in (third, *few))
    assert sorted(uploads.folder.iterdir()) == [last.parent]


def test_the_disk_is_not_filled_by_what_is_refused(uploads: Uploads, monkeypatch: pytest.MonkeyPatch):
    """Without a length that is told before, what comes is counted, and no more is asked for."""
    monkeypatch.setattr(module, "MULTIPART", 300)
    asked = []

    async def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        while True:
            asked.append(1)
            yield b"x" * 100

    with pytest.raises(UploadRefusedError, match="too large"):
        asyncio.run(uploads.receive([(b"content-type", b"multipart/form-data; boundary=x")], endless()))
    assert len(asked) < 15
    assert uploads.size == 0
    assert not uploads.folder.exists() or not list(uploads.folder.iterdir())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("bird.png", "bird.png"), ("../../x", "x"), ("C:\\birds\\x.png", "x.png"), ("con", "_con"),
        ("Con.png", "_Con.png"),
        ("COM1.tar.gz", "_COM1.tar.gz"), ("a\0b\n.png", "ab.png"), ("..", "picture"), ("", "picture"), ("/", "picture"),
        ("x" * 5000 + ".png", "x" * 146 + ".png"), ("." * 300, "picture"), ("ü" * 300, "ü" * 75), ("\ud800.png", "png"),
    ],
)  # fmt: skip
def test_names(name: str, kept: str):
    assert plain_name(name) == kept


def test_what_is_no_form_with_one_file(uploads: Uploads):
    whole, kind = form("a.png", b"x")
    edge = kind.partition("boundary=")[2].encode()
    two = whole.removesuffix(b"--\r\n") + b"\r\n" + whole
    text = b'--E\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--E--\r\n'.replace(b"E", edge)
    part = b'--E\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n'.replace(b"E", edge)
    long = whole.replace(b"\r\n\r\n", b"\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", 1)
    for body in (
        b"",
        b"x",
        two,
        text,
        part * 5000 + b"--" + edge + b"--\r\n",
        whole.replace(b'name="files"', b""),
        long,
    ):

        async def come(body: bytes = body):
            yield body

        with pytest.raises(UploadRefusedError):
            asyncio.run(uploads.receive([(b"content-type", kind.encode())], come()))
    for other in (b"", b"text/plain", b"multipart/form-data", b"multipart/mixed; boundary=x"):
        with pytest.raises(UploadRefusedError):
            asyncio.run(uploads.receive([(b"content-type", other)] if other else [], come()))
    assert uploads.size == 0


# ------------------------------------------------------------------------------------------------------- the folder


def test_folders_of_the_dead_are_removed_and_no_others(tmp_path: Path):
    alive = OwnFolder(tmp_path)
    assert alive.path.stat().st_mode & 0o777 == 0o700
    dead, foreign, young = tmp_path / f"{PREFIX}dead", tmp_path / "cbm", tmp_path / f"{PREFIX}young"
    for folder in (dead, foreign):
        (folder / "token").mkdir(parents=True)
        (folder / LOCK).touch()
        (folder / "token" / "bird.png").touch()
    young.mkdir()  # whose process has not come to lock it
    (tmp_path / f"{PREFIX}link").symlink_to(foreign)
    (tmp_path / f"{PREFIX}file").touch()
    os.mkfifo(young / "pipe")
    sweep_folders(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        [alive.path.name, "cbm", young.name, f"{PREFIX}link", f"{PREFIX}file"]
    )
    assert (foreign / "token" / "bird.png").exists()
    os.utime(young, (0, 0))
    sweep_folders(tmp_path)
    assert not young.exists()
    alive.close()
    assert not alive.path.exists()


def test_nothing_stays_when_the_server_ends(tmp_path: Path):
    """By Ctrl-C; after a kill, as soon as the next one begins."""
    program = (
        "import time\nfrom cbm.app.uploads import own_uploads\nown_uploads()\nprint('open', flush=True)\ntime.sleep(60)"
    )
    servers = {}
    for how in (signal.SIGINT, signal.SIGKILL):
        (tmp_path / how.name).mkdir()
        settings = os.environ | {"TMPDIR": str(tmp_path / how.name), "PYTHONPATH": str(PROJECT)}
        servers[how] = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, env=settings, text=True)  # fmt: skip
    for how, server in servers.items():
        assert server.stdout.readline() == "open\n"
        assert [each.name.startswith(PREFIX) for each in (tmp_path / how.name).iterdir()] == [True]
        server.send_signal(how)
        server.wait(timeout=60)
        server.stdout.close()
    assert list((tmp_path / "SIGINT").iterdir()) == []
    assert len(list((tmp_path / "SIGKILL").iterdir())) == 1
    OwnFolder(tmp_path / "SIGKILL").close()
    assert list((tmp_path / "SIGKILL").iterdir()) == []


# ----------------------------------------------------------------------------------------------------- on the server


@pytest.fixture(scope="module")
def address() -> str:
    return serve(explored())


def upload(address: str, content: bytes, name: str = "bird.png") -> str:
    body, kind = form(name, content)
    status, _, said = ask(address, "/gradio_api/upload", "POST", body, Content_Type=kind)
    assert status == 200, said
    return json.loads(said)[0]


def test_a_dropped_picture_is_read_and_gone(address: str, tmp_path: Path):
    explored().picture(3).image.save(tmp_path / "bird.png")
    tab, other = Tab(address), Tab(address)
    drop = tab.number("Drop a picture here", "upload")
    path, again = (upload(address, (tmp_path / "bird.png").read_bytes()) for _ in range(2))
    for each, file in ((tab, path), (other, again)):
        found = each.do(
            drop,
            [None, {"path": file, "orig_name": "x", "size": "?", "meta": {"_type": "gradio.FileData"}}],
        )
        assert found["success"], found
        assert "true class not known" in json.dumps(found["output"]["data"])
    assert "drop it again" in tab.refused(drop, [None, {"path": path, "meta": {"_type": "gradio.FileData"}}])
    for content in (b"", b"<svg/>", b"\x89PNG\r\n\x1a\n"):
        file = {"path": upload(address, content, "odd.png"), "meta": {"_type": "gradio.FileData"}}
        assert "'odd.png' is no picture" in tab.refused(drop, [None, file])
    assert [each.name for each in own_uploads().folder.iterdir()] == [LOCK]


def test_too_much_is_refused_while_it_comes(address: str):
    """Also in chunks, whose length nobody tells; and headers without an end."""
    place = urlsplit(address).netloc.encode()
    begun = time.perf_counter()
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: " + place
    kind = b"\r\nContent-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    chunk = b"%x\r\n" % 1_000_000 + b"x" * 1_000_000 + b"\r\n"
    answer = say(address, head + kind + b"%x\r\n" % len(first) + first + b"\r\n" + chunk * 60 + b"0\r\n\r\n")
    assert b" 413 " in answer
    assert b" 413 " not in say(address, head + b"\r\nX-Long: " + b"x" * 5_000_000)
    assert own_uploads().size == 0
    assert time.perf_counter() - begun < 20
    assert ask(address, "/config")[0] == 200


def test_the_command_leaves_nothing(tmp_path: Path):
    """The whole server, ended as a service is."""
    settings = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "cbm", "app", str(trained("labo")), "--cache", str(explored().cache)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=settings, text=True
    ) as server:
        text = ""
        while "http://" not in text:
            text += server.stdout.read(1)
        address = f"http://{(text + server.stdout.readline()).partition('http://')[2].split()[0]}"
        upload(address, b"x" * 1000)
        assert len(list(tmp_path.glob(f"{PREFIX}*/*/bird.png"))) == 1
        server.terminate()
        assert server.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.glob(f"{PREFIX}*")) == []
