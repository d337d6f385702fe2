"""Say where cbm can be installed: ``python scripts/check_platforms.py`` (needs ``uv`` and an index; some minutes).

Every Python and system is asked for a set of versions that has wheels, with all extras of the tests. Packages that have
no wheel anywhere are built from their source: the table names them. Nothing is run: that what was resolved works is
another question.
"""

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACOS = "14.0"
"""The oldest macOS that is asked for."""
SYSTEMS = {
    "Linux, x86_64": "x86_64-unknown-linux-gnu",
    "Linux, ARM": "aarch64-unknown-linux-gnu",
    f"macOS {MACOS}, ARM": "aarch64-apple-darwin",
    "Windows, x86_64": "x86_64-pc-windows-msvc",
}
WANTED = {"cbm": (), "with the extras of the tests": ("--extra", "test")}
TRIES = 12
"""Packages without wheels after which a row is given up."""


def main() -> None:
    """Print the table in Markdown, and which packages come as source."""
    print(f"Resolved on {date.today().isoformat()} with the newest versions that fit `pyproject.toml`.\n")
    print("| Python | system | " + " | ".join(WANTED) + " | torch |")
    print("|---" * (len(WANTED) + 3) + "|")
    sources: set[str] = set()
    for python in PYTHONS:
        for system, platform in SYSTEMS.items():
            cells, torch = [], ""
            for extras in WANTED.values():
                said, built, versions = resolve(python, platform, extras)
                cells.append(said)
                sources |= built
                torch = versions.get("torch", torch)
            print(f"| {python} | {system} | {' | '.join(cells)} | {torch} |", flush=True)
    print(f"\nWithout wheels, built from source: {', '.join(f'`{name}`' for name in sorted(sources)) or 'none'}.")


def resolve(python: str, platform: str, extras: tuple[str, ...]) -> tuple[str, set[str], dict[str, str]]:
    """Whether there is a set of versions, in words; the packages taken as source; and the versions."""
    sources: list[str] = []
    for _ in range(TRIES):
        options = [option for name in sources for option in ("--no-binary", name)]
        found = subprocess.run(
            ["uv", "pip", "compile", str(PROJECT), *extras, "--python-version", python, "--python-platform", platform,
             "--only-binary", ":all:", *options, "--no-header", "--no-annotate", "--color", "never"],
            capture_output=True, text=True, check=False, encoding="utf-8",
            env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": MACOS},
        )  # fmt: skip
        if found.returncode == 0:
            versions = dict(re.findall(r"^([\w.-]+)==(\S+)", found.stdout, re.MULTILINE))
            return f"resolved, {len(versions)} packages", set(sources), versions
        bare = re.search(
            r"\b([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)(?:[=<>!]\S*)? has no (?:usable )?wheels", found.stderr
        )
        if bare is None or bare[1] in sources:
            print(f"{python} {platform}: {found.stderr}", file=sys.stderr)
            return f"no: {bare[1] if bare else 'see above'}", set(sources), {}
        sources.append(bare[1])
    return f"no: {', '.join(sources)}", set(sources), {}


if __name__ == "__main__":
    main()
