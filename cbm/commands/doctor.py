"""``cbm doctor``: is this installation all right, and what machine is this?"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cbm.commands.shared import Cache, Json, out, readable_size, show
from cbm.errors import UserError
from cbm.files.cache import count_entries, read_cache

NAMED = (
    "torch", "torchvision", "open_clip_torch", "lightning", "transformers", "timm", "triton", "numpy", "scikit-learn",
    "safetensors", "hydra-core",
)  # fmt: skip
"""Packages whose versions are said."""


def add_to(app: typer.Typer) -> None:
    """Make the command of this file part of ``cbm``."""
    app.command()(doctor)


def doctor(
    cache: Cache = Path("cache"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Look at this installation and this machine: versions, devices, extras, disk, hub. Exit status 1: not fit to
    train."""
    facts: dict[str, Any] = {}
    problems: list[str] = []
    for title, found, wrong in _examined(cache, runs):
        facts[title] = found
        problems += wrong
        if not as_json:
            _print_facts(title, found)
    facts["problems"] = problems
    if as_json:
        show(None, facts, as_json)
    else:
        for problem in problems:
            out.print(f"to do: {problem}", soft_wrap=True)
        if not problems:
            out.print("all right")
    if problems:
        raise typer.Exit(1)


def _print_facts(title: str, found: dict[str, Any]) -> None:
    for name, value in found.items():
        words = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        out.print(f"{title:<9} {name}: {words}", soft_wrap=True)
        title = ""


def _examined(cache: Path, runs: Path) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Parts of the answer: a title, facts by name, and what has to be done; what takes longest comes last."""
    yield "versions", *_versions()
    yield "packages", *_packages()
    yield "content", *_content()
    yield "disk", *_disk(cache, runs)
    yield "hub", *_hub()
    yield "device", *_device()


def _versions() -> tuple[dict[str, Any], list[str]]:
    from cbm.files.installation import version_of
    from cbm.files.shipped import VERSION

    return {
        "cbm": VERSION,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "packages": [f"{name} {version_of(name) or 'not installed'}" for name in NAMED],
    }, []


def _packages() -> tuple[dict[str, Any], list[str]]:
    """What is missing, for the package itself and for each extra; other packages of its name."""
    from cbm.files.installation import ROOT, differing, others_of_this_name, own_distributions, read_needs, unmet

    names = own_distributions()
    try:
        needs = read_needs(names)
    except UserError as error:
        return {"installed": "no"}, [str(error)]
    wrong = [f"pip install '{line.partition(' (')[0]}': {line}" for line in unmet(needs.always, needs)]
    if len(names) > 1:
        wrong.append(f"several installed packages have a module cbm ({', '.join(names)}): uninstall all but this one")
    facts: dict[str, Any] = {"read from": needs.said_in}
    missing = {extra: unmet(lines, needs) for extra, lines in sorted(needs.extras.items())}
    facts["extras that are complete"] = [extra for extra, lines in missing.items() if not lines] or ["none"]
    facts |= {f"extra {extra} lacks": lines for extra, lines in missing.items() if lines}
    if (file := ROOT / "constraints.txt").is_file():
        other, count = differing(file)
        facts["constraints.txt"] = f"{count - len(other)} of {count} packages have the version that cbm is tested with"
        facts |= {"others (tested version)": other} if other else {}
    if others := others_of_this_name():
        facts["other packages cbm"] = [f"{file} (this one is imported: {ROOT})" for file in others]
    return facts, wrong


def _content() -> tuple[dict[str, Any], list[str]]:
    from cbm import config

    facts = {
        "configs": f"{config.CONFIGS} ({len(config.choices('method'))} methods)",
        "cards": f"{config.CARDS} ({len(config.card_names())})",
        "banks": f"{config.BANKS} ({len(config.bank_files())})",
    }
    there = config.CONFIGS.is_dir() and config.card_names()
    return facts, [] if there else [f"'{config.CONFIGS.parent}' lacks configs or cards: install cbm again"]


def _disk(cache: Path, runs: Path) -> tuple[dict[str, Any], list[str]]:
    """Free disk where things are written, and what the cache takes."""
    facts, wrong = {}, []
    for name, folder in {"runs": runs, "cache": cache}.items():
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            wrong.append(f"'{place}' cannot be written to: choose another folder for {name}")
        facts[name] = f"{folder.absolute()} ({readable_size(shutil.disk_usage(place).free)} free)"
    try:
        entries = read_cache(cache)
        facts["in the cache"] = f"{readable_size(sum(entry.size for entry in entries))} in {count_entries(entries)}"
    except UserError as error:
        wrong.append(str(error))
    return facts, wrong


def _hub() -> tuple[dict[str, Any], list[str]]:
    from cbm.files.network import hub_state

    return {"hub of models answers": hub_state()}, []


def _device() -> tuple[dict[str, Any], list[str]]:
    """Processor, memory and GPUs."""
    from cbm.files.memory import memory_bytes

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "cores": f"{os.cpu_count()} ({usable} for this process)",
        "memory": readable_size(memory_bytes()) if memory_bytes() else "unknown",
    }
    try:
        from cbm.kernels.device import describe_devices

        found = describe_devices()
    except Exception as error:  # whatever a broken library raises when it is loaded
        why = " ".join(str(error).split())[:200]
        return facts, [f"torch cannot be imported ({type(error).__name__}: {why}): install it again"]
    facts["threads of torch"] = found["threads"]
    facts["cuda"] = [
        f"{each['name']}, capability {each['capability']}, {readable_size(each['memory'])}, "
        f"driver for CUDA {each['driver'] or 'unknown'}, torch for CUDA {each['runtime']}"
        for each in found["cuda"]
    ] or f"no: {found['no_cuda']}"
    facts["mps (Apple)"] = "yes" if found["mps"] else "no"
    facts["device=auto is"] = found["auto"]
    return facts, []
