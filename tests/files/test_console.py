"""Where the log goes: as it is to a file, in the width of the terminal to a terminal."""

import io
import logging

import pytest

from cbm.files.console import set_up_logging, show_traceback


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_lines_are_padded_and_broken_for_a_terminal_only(kind: type, monkeypatch: pytest.MonkeyPatch):
    log = logging.getLogger("cbm")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stderr", kind())
    set_up_logging()
    monkeypatch.setattr("sys.stderr", stream := kind())  # whatever stderr is now
    log.info("short")
    log.info("%s", "word " * 20)
    lines = stream.getvalue().split("\n")
    assert len(lines) == (3 if kind is io.StringIO else 4)
    if kind is io.StringIO:
        assert lines == ["short", "word " * 20, ""]


def test_a_traceback_obeys_nobody(capsys: pytest.CaptureFixture):
    try:
        raise ValueError("\x1b]0;title\x07 and \x9b2J")
    except ValueError as error:
        show_traceback(ValueError, error, error.__traceback__)
    written = capsys.readouterr().err
    assert written.startswith("Traceback (most recent call last):\n")
    assert written.endswith("ValueError: \ufffd]0;title\ufffd and \ufffd2J\n")
