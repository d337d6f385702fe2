"""What is asked of the machine: ``doctor`` (is this installation all right?) and ``cache`` (what is stored?)."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cbm.commands.shared import Cache, Json, out, show
from cbm.errors import UserError

NAMED = (
    "torch", "torchvision", "open_clip_torch", "lightning", "transformers", "timm", "triton", "numpy", "scikit-learn",
    "safetensors", "hydra-core",
)  # fmt: skip
"""Packages whose versions are said."""

stored = typer.Typer(help="Say what is in the feature store, or remove some of it.", invoke_without_command=True)


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``python -m cbm``."""
    app.command()(doctor)
    app.add_typer(stored, name="cache")


# ------------------------------------------------------------------------------------------------------------ doctor


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
            out.print(f"to do: {escape(problem)}", highlight=False, soft_wrap=True)
        if not problems:
            out.print("all right", highlight=False)
    if problems:
        raise typer.Exit(1)


def _print_facts(title: str, found: dict[str, Any]) -> None:
    for name, value in found.items():
        words = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        out.print(f"{title:<9} {escape(name)}: {escape(words)}", highlight=False, soft_wrap=True)
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
    from cbm import __version__
    from cbm.files.installation import version_of

    return {
        "cbm": __version__,
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
    from cbm.files.cache import read_cache

    facts, wrong = {}, []
    for name, folder in {"runs": runs, "cache": cache}.items():
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            wrong.append(f"'{place}' cannot be written to: choose another folder for {name}")
        facts[name] = f"{folder.absolute()} ({_size(shutil.disk_usage(place).free)} free)"
    try:
        entries = read_cache(cache)
        facts["in the cache"] = f"{_size(sum(entry.size for entry in entries))} in {_entries(entries)}"
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
        "memory": _size(memory_bytes()) if memory_bytes() else "unknown",
    }
    try:
        from cbm.kernels.device import describe_devices

        found = describe_devices()
    except Exception as error:  # whatever a broken library raises when it is loaded
        why = " ".join(str(error).split())[:200]
        return facts, [f"torch cannot be imported ({type(error).__name__}: {why}): install it again"]
    facts["threads of torch"] = found["threads"]
    facts["cuda"] = [
        f"{each['name']}, capability {each['capability']}, {_size(each['memory'])}, "
        f"driver for CUDA {each['driver'] or 'unknown'}, torch for CUDA {each['runtime']}"
        for each in found["cuda"]
    ] or f"no: {found['no_cuda']}"
    facts["mps (Apple)"] = "yes" if found["mps"] else "no"
    facts["device=auto is"] = found["auto"]
    return facts, []


# ------------------------------------------------------------------------------------------------------------- cache


@stored.callback()
def list_cache(context: typer.Context, cache: Cache = Path("cache"), as_json: Json = False) -> None:
    """Say what is in the feature store: encoded images and phrases, drawn splits, answers of language models."""
    context.obj = cache
    if context.invoked_subcommand is not None:
        return
    from cbm.files.cache import links_in, read_cache

    entries = read_cache(cache)
    if as_json:
        said = [
            {"name": each.name, "kind": each.kind, "what": each.what, "count": each.count, "unit": each.unit,
             "bytes": each.size,
             "used": datetime.fromtimestamp(each.used).astimezone().isoformat(timespec="seconds"),
             "kept": each.lasting}
            for each in entries
        ]  # fmt: skip
        return show(None, said, as_json)
    table = Table("name", "what", "holds", "size", "last used")
    for each in entries:
        day = datetime.fromtimestamp(each.used).strftime("%Y-%m-%d")
        count = f"{'?' if each.count is None else format(each.count, ',')} {each.unit}"
        table.add_row(escape(_short(each.name)), escape(each.what), count, _size(each.size), day)
    if entries:
        out.print(table)
    for link in links_in(cache):
        out.print(f"note: '{escape(str(link))}' is a link: look there with --cache", highlight=False, soft_wrap=True)
    total = f"{_entries(entries)}, {_size(sum(each.size for each in entries))}" if entries else "nothing of cbm"
    out.print(f"{escape(str(cache))}: {total}", highlight=False, soft_wrap=True)


@stored.command()
def remove(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Entries, or how their names begin.")] = None,
    older_than: Annotated[float | None, typer.Option(min=0, help="Those that were not used for so many days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that can be made again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of the feature store.")] = None,
    as_json: Json = False,
) -> None:
    """Remove entries of the feature store, each as a whole, or not at all while another process writes to it.

    What is not of cbm is left alone, and so are drawn splits and answers of language models unless they are named.
    """
    from cbm.files.cache import remove as removed

    cache = cache or context.obj
    chosen = _chosen(cache, names or [], older_than, everything)
    size = sum(entry.size for entry in chosen)
    if chosen and not yes:
        for entry in chosen:
            why = f": {entry.lasting}" if entry.lasting else ""
            typer.echo(f"{entry.name} ({entry.what}, {_size(entry.size)}){why}", err=True)
        if not sys.stdin.isatty():
            raise UserError(f"{_entries(chosen)} would be removed: say --yes (there is no terminal to ask at)")
        if not typer.confirm(f"Remove {_entries(chosen)}, {_size(size)}?", err=True):
            raise UserError("nothing was removed")
    gone, kept = [], []
    for entry in chosen:
        try:
            removed(cache, entry)
            gone.append(entry)
        except UserError as error:
            kept.append(str(error))
    freed = sum(entry.size for entry in gone)
    if as_json:
        show(None, {"removed": [entry.name for entry in gone], "bytes": freed, "kept": kept}, as_json)
    else:
        out.print(f"{_entries(gone)} removed, {_size(freed)} freed", highlight=False)
    if kept:
        more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
        raise UserError(f"{kept[0]}{more}")


def _chosen(cache: Path, names: list[str], older_than: float | None, everything: bool) -> list[Any]:
    """The entries that are meant, and a line on those that were not taken with the others.

    Raises:
        UserError: none or several ways to choose were said, or a name is unknown.
    """
    from cbm.files.cache import choose, read_cache

    if sum((bool(names), older_than is not None, everything)) != 1:
        raise UserError("say what to remove: NAME ..., --older-than DAYS or --all (one of them)")
    entries = read_cache(cache)
    if names:
        return choose(entries, names)
    before = float("inf") if older_than is None else time.time() - 86400 * older_than
    meant = [entry for entry in entries if entry.used <= before]
    if lasting := [entry for entry in meant if entry.lasting]:
        typer.echo(f"note: not removed unless named: {_entries(lasting)} such as {lasting[0].name}: "
                   f"{lasting[0].lasting}", err=True)  # fmt: skip
    return [entry for entry in meant if not entry.lasting]


def _short(name: str) -> str:
    """A name with its fingerprints cut: enough of it to name it."""
    return "/".join(part if len(part) < 40 else f"{part[:12]}..." for part in name.split("/"))


def _entries(found: list[Any]) -> str:
    return "1 entry" if len(found) == 1 else f"{len(found)} entries"


def _size(count: float) -> str:
    """Bytes as a readable size."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"
