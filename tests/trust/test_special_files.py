"""Links, pipes and devices in a directory that came from elsewhere: nothing outside is written, nothing waited for."""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hand_made_run import write_run
from omegaconf import OmegaConf

import cbm
from cbm.errors import UserError
from cbm.files import PARTIAL, write_atomically
from cbm.files.run_directory import RunDirectory

CFG = OmegaConf.create({"method": {"name": "labo"}, "trainer": {}})


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a link to a file": lambda path: path.symlink_to(path.parent.parent / "victim"),
    "a link to nothing": lambda path: path.symlink_to(path.parent.parent / "not there"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a folder": lambda path: path.symlink_to(path.parent.parent),
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a socket": make_socket,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def within(seconds: float, call: Callable[[], object]) -> object:
    """The outcome of a call that must not wait for ever."""
    found: list[object] = []

    def attempt() -> None:
        try:
            found.append(call())
        except Exception as error:  # handed to the test
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits"
    return found[0]


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_lock_that_is_no_file(run: Path, kind: str):
    SPECIAL[kind](run / ".lock")
    outcome = within(10, lambda: RunDirectory(run, CFG))
    assert isinstance(outcome, UserError)
    assert ".lock'" in str(outcome)
    assert "\n" not in str(outcome)
    assert (run.parent / "victim").read_text() == "precious"
    assert not (run.parent / "not there").exists()


def test_a_lock_that_was_there_keeps_what_it_holds(run: Path):
    os.link(run.parent / "victim", run / ".lock")
    RunDirectory(run, CFG)
    assert (run.parent / "victim").read_text() == "precious"


@pytest.mark.parametrize("kind", ["a link to a file", "a link to nothing", "a link to a device", "a link to a folder"])
@pytest.mark.parametrize("name", ["config.yaml", "state.json"])
def test_files_are_replaced_and_never_written_through(run: Path, name: str, kind: str):
    SPECIAL[kind](run / name)
    outcome = within(10, lambda: RunDirectory(run, CFG))
    assert isinstance(outcome, UserError) or (run / name).is_file()
    assert (run.parent / "victim").read_text() == "precious"
    assert not (run.parent / "not there").exists()


@pytest.mark.parametrize("name", ["bank", "checkpoints", "eval", "figures", "wandb", "eval/birds-test-test_time"])
@pytest.mark.parametrize("kind", ["a link to a folder", "a link to nothing", "a pipe"])
def test_nothing_is_written_into_another_place(run: Path, name: str, kind: str):
    """By a run that goes on, or by whoever writes a report, an evaluation or figures of a received one."""
    received = write_run(run.parent / "received")
    for place in (run, received):
        if name == "bank" and place == received:
            (place / "bank").rename(place / "old")
        (place / name).parent.mkdir(exist_ok=True)
        SPECIAL[kind](place / name)
    for call in (lambda: RunDirectory(run, CFG), lambda: cbm.load(received)):
        outcome = within(10, call)
        assert isinstance(outcome, UserError)
        assert f"/{name}' is " in str(outcome)


@pytest.mark.parametrize("name", ["about.json", "model.safetensors", "bank/bank.json", "bank/embeddings.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "a socket"])
def test_what_is_read_of_a_run_is_not_waited_for(run: Path, name: str, kind: str):
    received = write_run(run.parent / "received")
    (received / name).unlink()
    SPECIAL[kind](received / name)
    outcome = within(10, lambda: cbm.load(received))
    assert isinstance(outcome, UserError)
    assert f"/{name}' is neither a file nor a folder" in str(outcome)


def test_links_to_files_are_read(run: Path):
    """As the hub's cache keeps them."""
    received = write_run(run.parent / "received")
    for name in ("config.yaml", "model.safetensors", "bank/bank.json"):
        (received / name).rename(run / Path(name).name)
        (received / name).symlink_to(run / Path(name).name)
    assert cbm.load(received).classes


@pytest.mark.parametrize("kind", SPECIAL)
def test_leftovers_that_are_no_files_stay_and_stop_nothing(run: Path, kind: str):
    SPECIAL[kind](run / f"{PARTIAL}x")
    assert within(10, lambda: write_atomically(run / "file", b"content")) is None
    assert (run / "file").read_bytes() == b"content"
    assert (run.parent / "victim").read_text() == "precious"
    assert os.path.lexists(run / f"{PARTIAL}x")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(run: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunDirectory(run, CFG).write_json("metrics.json", {})
    assert (run / "metrics.json").is_file()


def test_another_process_is_one_still(run: Path):
    first = RunDirectory(run, CFG)
    with pytest.raises(UserError, match="another process is writing"):
        RunDirectory(run, CFG)
    del first


def test_answers_are_not_written_through_a_link(run: Path):
    from cbm.concepts.llm.client import Answer, AnswerCache, Request

    cache, request = AnswerCache(run), Request("tiny", "", "?", "word", image="f" * 32)
    file = cache.file(request)
    file.parent.mkdir(parents=True)
    file.symlink_to(run.parent / "victim")
    cache.put(request, Answer((), "refused", "", "tiny", "2026-01-01"))
    assert not file.is_symlink()
    assert not (run.parent / "victim").exists() or (run.parent / "victim").read_text() == "precious"
    assert cache.get(request) is not None
