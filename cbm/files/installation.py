"""What is installed: versions, what is missing for each extra, and whether another package hides this one.

Read from the records of the installed packages; nothing of them is imported.
"""

import importlib.metadata as metadata
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from cbm.errors import UserError
from cbm.files.shipped import DISTRIBUTION, PACKAGE, in_checkout

ROOT = PACKAGE.parent
PROJECT_FILE = ROOT / "pyproject.toml"


@dataclass(frozen=True)
class Needs:
    """What this package asks for.

    Attributes:
        name: name of the distribution.
        said_in: where that stands, in words.
        always: requirements, such as ``torch>=2.11``.
        extras: requirements by extra.
    """

    name: str
    said_in: str
    always: list[str]
    extras: dict[str, list[str]] = field(default_factory=dict)


def own_distributions() -> list[str]:
    """The installed distributions that have a package ``cbm``: one, unless there is another of that name.

    What an older installation left in a checkout (``cbm.egg-info``) is none.
    """
    named = set(metadata.packages_distributions().get(PACKAGE.name, []))
    if in_checkout():
        named = {name for name in named if Path(str(metadata.distribution(name).locate_file(""))).resolve() != ROOT}
    installed = {DISTRIBUTION} if version_of(DISTRIBUTION) is not None else set()
    return sorted(named | installed)


def read_needs(distributions: list[str]) -> Needs:
    """The requirements of the installed distribution, or those of ``pyproject.toml`` of a checkout.

    Raises:
        UserError: there is neither.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    if len(distributions) != 1:
        if not PROJECT_FILE.is_file():
            raise UserError("cbm is not installed, and there is no pyproject.toml beside it: install it with pip")
        project = tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]
        return Needs(
            project["name"], str(PROJECT_FILE), project["dependencies"], project.get("optional-dependencies", {})
        )
    own = metadata.distribution(distributions[0])
    always, extras = [], {name: list[str]() for name in own.metadata.get_all("Provides-Extra") or []}
    for line in own.requires or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        plain = line.partition(";")[0].strip()
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            always.append(plain)
        for extra in extras:
            marker = requirement.marker
            if marker is not None and "extra" in str(marker) and marker.evaluate({"extra": extra}):
                extras[extra].append(plain)
    return Needs(own.metadata["Name"], f"the installed {own.metadata['Name']} {own.version}", always, extras)


def unmet(requirements: list[str], needs: Needs) -> list[str]:
    """Those that are not installed, or in another version: ``torch>=2.11 (2.9.1 is installed)``.

    Args:
        requirements: what is asked for; extras of this package stand for what they ask for.
        needs: what this package asks for.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    own = {canonicalize_name(name) for name in (needs.name, PACKAGE.name)}
    found: dict[str, None] = {}
    for line in requirements:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) in own:
            for extra in sorted(requirement.extras):
                found |= dict.fromkeys(unmet(needs.extras.get(extra, []), needs))
        elif (version := version_of(requirement.name)) is None:
            found[f"{line} (not installed)"] = None
        elif not requirement.specifier.contains(version, prereleases=True):
            found[f"{line} ({version} is installed)"] = None
    return list(found)


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def differing(file: Path) -> tuple[list[str], int]:
    """Installed packages in another version than a file of ``NAME==VERSION`` lines says, and how many were compared."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    there = [(name, pin, version) for name, pin in pins if (version := version_of(name)) is not None]
    other = [f"{name} {version} ({pin})" for name, pin, version in there if version.partition("+")[0] != pin]
    return other, len(there)


def others_of_this_name() -> list[Path]:
    """Other packages ``cbm`` where Python looks for packages: another working folder would import one of them."""
    found = []
    for place in dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path):
        for file in (place / PACKAGE.name / "__init__.py", place / f"{PACKAGE.name}.py"):
            if file.is_file() and file.parent.resolve() != PACKAGE:
                found.append(file)
    return found
