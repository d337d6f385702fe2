"""The log on the terminal: our lines, one each. Commands call it; the library never does."""

import logging
import os
import sys
import warnings
from functools import cache

log = logging.getLogger("cbm")


def set_up_logging() -> None:
    """Send our log to the terminal, one line each, and silence the messages of other libraries."""
    from rich.console import Console
    from rich.logging import RichHandler

    warnings.simplefilter("ignore")
    if not log.handlers:
        console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
        handler = RichHandler(
            console=console, show_path=False, show_time=False, show_level=False, markup=False, highlighter=None
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel("INFO" if process_rank() == 0 else "ERROR")  # only the first of several processes speaks
    log.propagate = False
    quiet_libraries()


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
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel("ERROR")
    for name in ("open_clip", "httpx", "huggingface_hub", "root", "timm"):
        logging.getLogger(name).setLevel("CRITICAL")
