"""The page of dependencies is that of the versions in constraints.txt, and says what the packages say."""

import importlib.metadata
import importlib.util
import re

import pytest
from conftest import PROJECT

PAGE = (PROJECT / "docs" / "licences.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)[1:]
SPEC = importlib.util.spec_from_file_location("licences", PROJECT / "scripts" / "licences.py")
licences = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(licences)


def test_every_pinned_package_has_its_row():
    assert {name: version for name, version, _, _ in ROWS} == licences.pinned()


@pytest.mark.parametrize(("name", "version", "said", "by"), ROWS)
def test_the_licence_is_what_the_package_says(name: str, version: str, said: str, by: str):
    assert "(not installed)" not in said
    assert not re.search(r"\bA?GPL", said)
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed here")
    if installed != version:
        pytest.skip(f"{installed} is installed here")
    assert licences.licence(name).replace("|", "/") == said


def test_what_is_always_needed_says_so():
    by = {name: extras for name, _, _, extras in ROWS}
    assert all(by[name] == "always" for name in ("torch", "open-clip-torch", "lightning", "pillow", "safetensors"))
    assert "`llm`" in by["openai"]
    assert "`app`" in by["gradio"]
    assert set(licences.WHAT) - {""} == set(re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE))
