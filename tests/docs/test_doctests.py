"""The examples in docstrings are true."""

import doctest
import importlib

import pytest
from conftest import PROJECT

WITH_EXAMPLES = sorted(
    ".".join(file.relative_to(PROJECT).with_suffix("").parts)
    for room in ("data", "files", "concepts", "losses", "methods", "report", "solvers")
    for file in (PROJECT / "cbm" / room).rglob("*.py")
    if ">>>" in file.read_text()
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module: str):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed
