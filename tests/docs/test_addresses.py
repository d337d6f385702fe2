"""Every module, file and folder that the documentation names is there."""

import importlib
import re
from pathlib import Path

import pytest
from conftest import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
ROOMS = "cbm|scripts|tests|benchmarks|configs|datasets|concepts"
PLACEHOLDER = re.compile(r"[A-Z]{2,}|[*{<|]")  # concepts/NAME.json, tests/**


def names_of_python(text: str) -> list[str]:
    """Modules that a page of the reference shows, and names such as ``cbm.editing.contrast`` in backticks."""
    quoted = [name for name in re.findall(r"`(cbm(?:\.\w+)+)", text) if name != "cbm.json"]
    return re.findall(r"^::: (\S+)", text, re.MULTILINE) + quoted


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and is_there(module) and hasattr(importlib.import_module(module), attribute)
    return True


def paths(text: str) -> list[str]:
    """Files and folders of the repository that a page names, in backticks or as the target of a link."""
    quoted = re.findall(r"`([^`\n]+)`", text)
    linked = re.findall(r"\]\((?:\.\./)*([^)#\s]+)", text)
    words = [word for part in [*quoted, *linked] for word in re.split(r"[\s=,;:()\[\]\"']+", part)]
    named = [word.rstrip(".") for word in words if re.match(rf"(?:{ROOMS})/", word)]
    return [name for name in named if not PLACEHOLDER.search(name)]


def broken(text: str) -> list[str]:
    """What a page names and the repository does not have."""
    missing = [name for name in paths(text) if not (PROJECT / name).exists()]
    return missing + [name for name in names_of_python(text) if not is_there(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_addresses(page: Path):
    assert broken(page.read_text()) == []


def test_a_broken_address_is_found():
    text = """
::: cbm.methods.base

::: cbm.nowhere

`cbm.editing.contrast(model, x)`, `cbm.editing.no_such_function`, `cbm/methods/base.py`, `cbm/methods/no_paper.py`,
`python scripts/gone.py x`, [table](../benchmarks/results/methods.csv), [page](../../benchmarks/results/gone.md#part),
`datasets/NAME.yaml`, `concepts=concepts/birds.json`, `concepts=concepts/gone.json`, `cbm.json`
"""
    assert broken(text) == [
        "cbm/methods/no_paper.py", "scripts/gone.py", "concepts/gone.json", "benchmarks/results/gone.md",
        "cbm.nowhere", "cbm.editing.no_such_function",
    ]  # fmt: skip
