"""What is given away says nothing about this computer: settings and names without absolute paths."""

import re
from pathlib import Path
from typing import Any

from cbm.files.shipped import relative_name

SCHEMA = re.compile(r"(?!.*://)(.{2,}?:(?=/|[A-Za-z]:[\\/]))?(.*)", re.DOTALL)
"""``local-dir:`` before an absolute path, and the path; a Windows path has a colon of its own."""


def without_paths(value: Any) -> Any:
    """Settings without absolute paths: what comes with cbm keeps its relative path, others lose their folder."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    found = SCHEMA.fullmatch(value)
    schema, rest = found.groups("") if found else ("", value)
    path = Path(rest)
    if not path.is_absolute() and not rest.startswith("~"):
        return value
    return schema + relative_name(path)
