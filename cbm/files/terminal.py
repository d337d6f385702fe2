"""``Terminal``: the console that all tables, lines and bars are printed with, on which text of others is only text."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from cbm.files.inert import for_terminal


class Terminal(Console):
    """A console that takes no markup (``[bold]`` is what it is), and passes on no escape sequence but its own.

    Args:
        settings: of ``rich.console.Console``.

    Example:
        >>> with (terminal := Terminal(width=40)).capture() as printed:
        ...     terminal.print("[red] is a colour, \\x1b[2J is not")
        >>> printed.get() == "[red] is a colour, \\ufffd[2J is not\\n"
        True
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Text as it is laid out."""
        return super().render_str(for_terminal(text), **settings)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, in pieces; all text comes through here."""
        for piece in super().render(renderable, options):
            text, style, control = piece
            yield piece if control else Segment(for_terminal(text), style)


def output() -> Terminal:
    """A console of the standard output: as wide as the terminal, or 120 letters where there is none."""
    return Terminal(width=None if sys.stdout.isatty() else 120)


def errors() -> Terminal:
    """A console of the standard errors, for progress bars."""
    return Terminal(stderr=True)
