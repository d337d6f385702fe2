"""Whatever a received run directory holds: the commands and the explorer do nothing but say so, or show it as text."""

import shutil
import threading
from pathlib import Path

import pytest
from birds_run import small
from conftest import PROJECT
from hostile_run import ATTACKS, HARMLESS, KEY, hostile_run

from cbm.errors import UserError

SETTINGS = [*small(), "report=false", "controls=false", "nec=[]", "encoder.num_workers=0", "trainer.progress=false"]
CACHE = small()[1].removeprefix("cache=")
DOORS = ["report", "compare", "predict", "explorer"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(PROJECT / "cbm" / "encoders" / "tiny_clip", folder / "encoder")
    return folder


@pytest.fixture
def sound(place: Path, command) -> Path:
    """A run, which is trained once."""
    if not (place / "run").is_dir():
        own = ["method=posthoc", f"encoder.model=local-dir:{place / 'encoder'}", f"run_dir={place / 'run'}"]
        status, errors = command("train", *SETTINGS, *own)
        assert status == 0, errors
    return place / "run"


def explore(run: Path) -> tuple[int, str]:
    """What the explorer shows of a run, or the line by which it refuses it."""
    from cbm.app.explorer import Explorer
    from cbm.app.page import Page

    try:
        Page(Explorer(run, Path(CACHE)))
    except UserError as error:
        return 2, f"error: {error}\n"
    return 0, ""


def soon(call, seconds: float = 60):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits"
    return found[0]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_happens_but_a_line(attack: str, sound: Path, tmp_path: Path, module, monkeypatch: pytest.MonkeyPatch):
    run = hostile_run(sound, tmp_path / "place", attack)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    picture = next(Path(small()[0].removeprefix("dataset.root=")).rglob("*.png"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {path for path in run.parent.rglob("*") if run not in path.parents}
    arguments = {
        "report": ["report", str(run), f"--cache={CACHE}"],
        "predict": ["predict", str(run), str(picture), "--out", "p.csv", "--html", "p.html"],
    }
    said, refused = [], {}
    for door in DOORS:
        if door == "explorer":
            status, errors = explore(run)
        elif door == "compare":
            status, errors = 0, ""
            for style in ("rich", "markdown", "latex", "csv"):
                status, printed, errors = module("compare", str(run), "--style", style)
                said.append(printed)
        else:
            status, printed, errors = module(*arguments[door])
            said.append(printed)
        said.append(errors)
        refused[door] = status != 0
        assert status in (0, 2), (door, errors)
        assert "Traceback" not in said[-1], (door, said[-1])
        if status:
            assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1, (door, errors)
    files = [path for path in (*run.rglob("*"), *Path().glob("p.*")) if path.is_file()]
    written = [path.read_bytes() for path in files if path.stat().st_size < 1e8]
    assert not (run.parent / "RAN").exists()
    assert (run.parent / "victim").read_text() == "precious"
    assert {path for path in run.parent.rglob("*") if run not in path.parents} == before
    assert not any(KEY in text for text in said)
    assert not any(KEY.encode() in content for content in written)
    assert not any(mark in text for text in said for mark in ("\x1b", "\x9b", "\x07"))
    pages = [path.read_text(encoding="utf-8") for path in (run / "report.html", Path("p.html")) if path.is_file()]
    assert not any("<script>alert(1)" in page or "<img src=x" in page for page in pages)
    if attack in HARMLESS:
        assert not any(refused.values()), (refused, said)
    else:
        assert any(refused.values()), said
