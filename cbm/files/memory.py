"""How much memory this machine has."""

import ctypes
import os
from typing import Any


def memory_bytes() -> int:
    """Bytes of memory that are built into this machine; 0 where the system does not say."""
    if hasattr(os, "sysconf"):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return 0
    return _ask_windows()


class _Status(ctypes.Structure):
    """What ``GlobalMemoryStatusEx`` of Windows fills in."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "free", "pages", "pages_free", "virtual", "virtual_free")),
        ("extended", ctypes.c_ulonglong),
    )


def _ask_windows() -> int:
    libraries: Any = getattr(ctypes, "windll", None)
    status = _Status()
    status.length = ctypes.sizeof(status)
    if libraries is None or not libraries.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return 0
    return int(status.total)
