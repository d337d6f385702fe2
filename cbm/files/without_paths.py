"""What is given away says nothing about this computer: settings and names without absolute paths."""

from pathlib import Path
from typing import Any

from cbm.files.shipped import relative_name


def without_paths(value: Any) -> Any:
    """Settings without absolute paths: what comes with cbm keeps its relative path, others lose their folder."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    schema, mark, rest = value.rpartition(":") if ":/" in value and "://" not in value else ("", "", value)
    path = Path(rest)
    if not path.is_absolute() and not rest.startswith("~"):
        return value
    return schema + mark + relative_name(path)
