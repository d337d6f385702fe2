"""The log on the terminal: our lines, one each. Commands call it; the library never does."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import NoReturn

from cbm.files.inert import for_terminal, one_line

log = logging.getLogger("cbm")

FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
ANSWERED = (
    "QuickGELU mismatch",  # the encoder uses the weights' own activation
)
"""Beginnings of warnings that need nobody's attention, because something is done about them."""


def set_up_logging() -> None:
    """Send our log and the warnings of libraries to the terminal, one line each, but for those to developers."""
    for category in FOR_DEVELOPERS:
        warnings.simplefilter("ignore", category)
    for message in ANSWERED:
        warnings.filterwarnings("ignore", message)
    warnings.showwarning = lambda message, category, *place: log.warning("%s", " ".join(str(message).split()))
    sys.excepthook = show_traceback
    if not log.handlers:
        handler = _terminal_handler() if sys.stderr.isatty() else _Plain()
        handler.setFormatter(_Inert("%(message)s"))
        log.addHandler(handler)
    log.setLevel("INFO" if process_rank() == 0 else "ERROR")  # only the first of several processes speaks
    log.propagate = False
    quiet_libraries()


def stop(message: object, status: int = 2) -> NoReturn:
    """End the process with one line."""
    print(f"error: {one_line(str(message)).rstrip(' :,')}", file=sys.stderr)
    sys.exit(status)


def say(text: str, *, beside: bool = False) -> None:
    """Print text on the output, or ``beside`` it on the errors; text of others in it is only text."""
    print(for_terminal(text), file=sys.stderr if beside else sys.stdout, flush=True)


@contextmanager
def failing_softly(what: str) -> Iterator[None]:
    """Turn an exception inside the block into a warning that begins with ``what``."""
    try:
        yield
    except Exception as error:  # libraries that draw and send can raise anything
        log.warning("%s: %s: %s", what, type(error).__name__, " ".join(str(error).split())[:200])


def open_closed_streams() -> None:
    """Put nothing (``/dev/null``) where the input, the output or the errors were closed (``cbm ... >&-``)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook``: what Python prints of an error that nobody foresaw, with text of others as text."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), beside=True)


def stop_writing(error: OSError) -> NoReturn:
    """End the process with one line because the output cannot be written; what is left of it is given up."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    stop(f"cannot write the output: {error.strerror}")


def stop_without(error: ModuleNotFoundError) -> None:
    """End the process with one line because a package is missing; return if it is a module of our own."""
    if str(error.name).partition(".")[0] != "cbm":
        stop(f"{error}, which cbm needs: cbm doctor says what is not installed")


def _terminal_handler() -> logging.Handler:
    """Lines that break at the width of the terminal, with bold and colour."""
    from rich.logging import RichHandler

    from cbm.files.terminal import errors

    return RichHandler(
        console=errors(),
        show_path=False,
        show_time=False,
        show_level=False,
        markup=False,
        highlighter=None,
    )


class _Inert(logging.Formatter):
    """Messages in which text of others is only text."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


class _Plain(logging.StreamHandler):
    """Lines as they are, for files and pipes, to whatever is stderr at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def pass_on(said: Iterable[warnings.WarningMessage], whose: str) -> None:
    """Log the warnings that a library gave while something was loaded, each once, but for those to developers.

    Args:
        said: recorded warnings (``warnings.catch_warnings(record=True)``).
        whose: what was loaded.
    """
    texts = [" ".join(str(each.message).split()) for each in said if not issubclass(each.category, FOR_DEVELOPERS)]
    for text in dict.fromkeys(texts):
        if not any(re.match(pattern, text) for pattern in ANSWERED):
            log.warning("%s: %s", whose, text)


def process_rank() -> int:
    """Which of several processes this is, as torchrun, SLURM or Lightning say; 0 where there is one."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


@cache
def warn_once(message: str) -> None:
    """A warning that is said once per process, however often it is true."""
    log.warning(message)


def quiet_libraries() -> None:
    """Silence the log messages of Lightning, open_clip and other libraries."""
    rooms = ("pytorch", "fabric", "pytorch.utilities.rank_zero", "pytorch.trainer",
             "fabric.utilities.distributed", "fabric.utilities.rank_zero")  # fmt: skip # importing resets the first two
    for name in ("lightning", *(f"lightning.{room}" for room in rooms)):
        logging.getLogger(name).setLevel("ERROR")
    for name in ("open_clip", "httpx", "huggingface_hub", "root", "timm"):
        logging.getLogger(name).setLevel("CRITICAL")
