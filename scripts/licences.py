"""``python scripts/licences.py >docs/licences.md``: what cbm stands on, with versions, licences and what asks for it.

The versions are those of ``constraints.txt``; licences are what each installed package says of itself. Run it where
everything is installed: ``pip install -e '.[dev,docs,bench]' -c constraints.txt``.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
WHAT = {
    "": "always: training, evaluation, editing, reports",
    "wandb": "logging to W&B, which sends metrics, settings and pictures to its server when it is asked to",
    "llm": "concepts, labels and names by a language model",
    "sweep": "many runs at once, on this machine or a cluster",
    "vocabulary": "lists of English words",
    "app": "the explorer: a web server on this computer only",
    "export": "ONNX",
    "heic": "photographs of iPhones",
    "dicom": "radiographs",
    "docs": "this documentation",
    "browser": "the test of the explorer in a browser",
    "test": "tests",
    "bench": "peers to compare with, in benchmarks",
    "dev": "lint and types",
}
"""What each extra is for; "" stands for none."""
SHORT = (
    ("Apache Software License", "Apache-2.0"), ("Apache License, Version 2.0", "Apache-2.0"),
    ("Apache 2.0", "Apache-2.0"),
    ("MIT License", "MIT"), ("BSD License", "BSD"), ("Python Software Foundation License", "PSF-2.0"),
    ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"), ("The Unlicense (Unlicense)", "Unlicense"),
    ("Historical Permission Notice and Disclaimer (HPND)", "HPND"), ("ISC License (ISCL)", "ISC"),
)  # fmt: skip
"""Licences as packages say them, and their names in short."""
UNSAID = ("OSI Approved", "Other/Proprietary License")
"""What says of a licence only that there is one."""


def pinned() -> dict[str, str]:
    """Name to version of every package in ``constraints.txt``."""
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(m[1]): m[2] for line in lines if (m := re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line))}


def licence(name: str) -> str:
    """What a package says its licence is."""
    try:
        said = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
    if said["License-Expression"]:
        return said["License-Expression"]
    lines = [line for line in said.get_all("Classifier") or () if line.startswith("License :: ")]
    classes = [each for line in lines if (each := line.rpartition(" :: ")[2]) not in UNSAID]
    text = " / ".join(classes) or (said["License"] or "").strip().partition("\n")[0][:60]
    for long, short in SHORT:
        text = text.replace(long, short)
    return text or _first_line(name) or "(says none)"


def _first_line(name: str) -> str:
    """How the licence file of a package begins."""
    files = importlib.metadata.files(name) or []
    for file in files:
        if re.match(r"(LICEN[CS]E|COPYING)", file.name.upper()):
            text = file.read_text().strip().partition("\n")[0].strip()
            return dict(SHORT).get(text, text)[:60]
    return ""


def needed_by() -> dict[str, set[str]]:
    """Package to the extras that bring it; "" where cbm always needs it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    roots = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, set[str]] = {}
    for extra, lines in roots.items():
        todo, seen = [Requirement(line) for line in lines], set()
        while todo:
            requirement = todo.pop()
            name = canonicalize_name(requirement.name)
            if name == canonicalize_name(project["name"]) or (name, *sorted(requirement.extras)) in seen:
                continue
            seen.add((name, *sorted(requirement.extras)))
            found.setdefault(name, set()).add(extra)
            try:
                inner = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            for line in inner:
                each = Requirement(line)
                settings = [{"extra": extra} for extra in (requirement.extras or {""})]
                if each.marker is None or any(each.marker.evaluate(setting) for setting in settings):
                    todo.append(each)
    return {name: {""} if "" in extras else extras for name, extras in found.items()}


def page() -> str:
    """The page in Markdown."""
    versions, extras = pinned(), needed_by()
    lines = [
        "# Dependencies and their licences",
        "",
        "Made by `python scripts/licences.py`: the versions that are tested together (`constraints.txt`), what each",
        "package says its licence is, and which extra brings it (`pip install '.[EXTRA]'`). cbm itself is under the",
        "Apache licence 2.0. None of these is under the GPL. The packages of CUDA, which torch brings on Linux, are",
        "under NVIDIA's own licence: who passes an installation on (an image of a container) passes them on too.",
        "",
        "| extra | for | packages |",
        "|---|---|---|",
    ]
    for extra, what in WHAT.items():
        count = sum(extra in found for name, found in extras.items() if name in versions)
        lines.append(f"| {f'`{extra}`' if extra else '(none)'} | {what} | {count} |")
    lines += ["", "| package | version | licence | brought by |", "|---|---|---|---|"]
    for name, version in sorted(versions.items()):
        by = ", ".join(f"`{extra}`" for extra in sorted(extras.get(name, ())) if extra) or (
            "always" if name in extras else "installing and building"
        )
        lines.append(f"| {name} | {version} | {licence(name).replace('|', '/')} | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
