"""``cbm cache``: what the feature store holds, and how some of it is removed."""

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cbm.commands.shared import Cache, Json, out, readable_size, show
from cbm.errors import UserError
from cbm.files.cache import Entry, choose, count_entries, links_in, read_cache
from cbm.files.cache import remove as remove_entry
from cbm.files.console import say

app = typer.Typer(help="Say what is in the feature store, or remove some of it.", invoke_without_command=True)


@app.callback()
def list_cache(context: typer.Context, cache: Cache = Path("cache"), as_json: Json = False) -> None:
    """Say what is in the feature store: encoded images and phrases, drawn splits, answers of language models."""
    context.obj = cache
    if context.invoked_subcommand is not None:
        return
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
        table.add_row(_short(each.name), each.what, count, readable_size(each.size), day)
    if entries:
        out.print(table)
    for link in links_in(cache):
        out.print(f"note: '{link!s}' is a link: look there with --cache", soft_wrap=True)
    size = readable_size(sum(each.size for each in entries))
    total = f"{count_entries(entries)}, {size}" if entries else "nothing of cbm"
    out.print(f"{cache!s}: {total}", soft_wrap=True)


@app.command()
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
    cache = cache or context.obj
    chosen = _chosen(cache, names or [], older_than, everything)
    size = sum(entry.size for entry in chosen)
    if chosen and not yes:
        for entry in chosen:
            why = f": {entry.lasting}" if entry.lasting else ""
            say(f"{entry.name} ({entry.what}, {readable_size(entry.size)}){why}", beside=True)
        if not sys.stdin.isatty():
            raise UserError(f"{count_entries(chosen)} would be removed: say --yes (there is no terminal to ask at)")
        if not typer.confirm(f"Remove {count_entries(chosen)}, {readable_size(size)}?", err=True):
            raise UserError("nothing was removed")
    gone, kept = [], []
    for entry in chosen:
        try:
            remove_entry(cache, entry)
            gone.append(entry)
        except UserError as error:
            kept.append(str(error))
    freed = sum(entry.size for entry in gone)
    if as_json:
        show(None, {"removed": [entry.name for entry in gone], "bytes": freed, "kept": kept}, as_json)
    else:
        out.print(f"{count_entries(gone)} removed, {readable_size(freed)} freed")
    if kept:
        more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
        raise UserError(f"{kept[0]}{more}")


def _chosen(cache: Path, names: list[str], older_than: float | None, everything: bool) -> list[Entry]:
    """The entries that are meant, and a line on those that were not taken with the others.

    Raises:
        UserError: none or several ways to choose were said, or a name is unknown.
    """
    if sum((bool(names), older_than is not None, everything)) != 1:
        raise UserError("say what to remove: NAME ..., --older-than DAYS or --all (one of them)")
    entries = read_cache(cache)
    if names:
        return choose(entries, names)
    before = float("inf") if older_than is None else time.time() - 86400 * older_than
    meant = [entry for entry in entries if entry.used <= before]
    if lasting := [entry for entry in meant if entry.lasting]:
        first = lasting[0]
        say(
            f"note: not removed unless named: {count_entries(lasting)} such as {first.name}: {first.lasting}",
            beside=True,
        )
    return [entry for entry in meant if not entry.lasting]


def _short(name: str) -> str:
    """A name with its fingerprints cut: enough of it to name it."""
    return "/".join(part if len(part) < 40 else f"{part[:12]}..." for part in name.split("/"))
