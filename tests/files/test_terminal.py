"""What strangers call things reaches the terminal as text: through tables, lines, the log, and errors."""

import logging

import pytest
from rich.table import Table

from cbm.commands.shared import show
from cbm.files import console
from cbm.files.terminal import Terminal

NAME = "[red]x[/red] :smile: [/nothing] \x1b]0;title\x1b[2J\x9b1m"
SHOWN = "[red]x[/red] :smile: [/nothing] \ufffd]0;title\ufffd[2J\ufffd1m"


def test_tables_and_lines():
    terminal = Terminal(width=200)
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    with terminal.capture() as printed:
        terminal.print(table)
        terminal.print(NAME)
    assert printed.get().count(SHOWN) == 4
    assert "\x1b" not in printed.get()


def test_colours_of_its_own_stay():
    terminal = Terminal(width=80, force_terminal=True, color_system="standard")
    with terminal.capture() as printed:
        terminal.print(NAME, style="red")
    assert printed.get().startswith("\x1b[31m[red]x")
    assert "title\ufffd" in printed.get()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_log(terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(console.log, "handlers", [])
    console.set_up_logging()
    logging.getLogger("cbm.x").warning("a class '%s'", NAME)
    assert f"a class '{SHOWN}'" in " ".join(capsys.readouterr().err.split())


def test_errors_json_and_single_lines(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        console.stop(f"no class '{NAME}'")
    assert capsys.readouterr().err == f"error: no class '{SHOWN}'\n"
    console.say(NAME)
    assert capsys.readouterr().out == f"{SHOWN}\n"
    show(None, {"name": NAME}, as_json=True)
    printed = capsys.readouterr().out
    assert "\x9b" not in printed
    assert "\\u009b1m" in printed
