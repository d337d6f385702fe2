"""What the units of a run are called: name."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cbm.commands.asking import AllowHttp, BaseUrl, Concurrency, MaxCostTokens, MaxRequests, vision_endpoint
from cbm.commands.shared import Cache, Json, Run, out, show
from cbm.errors import UserError

if TYPE_CHECKING:
    from cbm.concepts.llm.endpoint import Endpoint


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``python -m cbm``."""
    app.command()(name)


def name(
    run: Run,
    unit: Annotated[str | None, typer.Option(help="One unit, by the name that it has or had.")] = None,
    new: Annotated[str | None, typer.Option("--as", help="New name of the unit.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last new name back (of --unit, or of all).")] = False,
    model: Annotated[
        str | None, typer.Option(help="Vision-language model that proposes names, behind an OpenAI-compatible server.")
    ] = None,
    base_url: BaseUrl = None,
    units: Annotated[int, typer.Option(help="Units to list, or unnamed ones to ask the model about.")] = 20,
    concurrency: Concurrency = 8,
    max_requests: MaxRequests = None,
    max_cost_tokens: MaxCostTokens = None,
    allow_http: AllowHttp = False,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Name the units that method=discovered found: list them, name one by hand, or have a model propose names, of which
    only those are taken that tell on validation images where the unit fires."""
    if units < 1:
        raise UserError(f"--units {units}: expected 1 or more")
    if new is not None and unit is None:
        raise UserError("--as needs --unit NAME: which unit is called so")
    asked = [said for said, given in (("--as", new), ("--undo", undo), ("--model", model)) if given]
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]}: say one of them")
    endpoint = vision_endpoint(model, "--model NAME", base_url, concurrency, max_requests, max_cost_tokens, allow_http)
    if new is not None or undo:
        _rename(run, unit, new, as_json)
    elif endpoint is not None:
        _propose(run, cache, endpoint, units, unit, as_json)
    else:
        _list(run, unit, units, as_json)


def _rename(run: Path, unit: str | None, new: str | None, as_json: bool) -> None:
    """Name a unit by hand, or take a name back."""
    from cbm.trained.names import rename, undo_rename

    if new is None:
        _, was, now = undo_rename(run, unit)
    else:
        assert unit is not None
        _, was, now = rename(run, unit, new)
    if as_json:
        show(None, {"was": was, "is": now}, as_json)
        return
    said = f"'{was}' is called '{now}' now"
    said += "" if new is None else f"; edits that say '{was}' mean the same unit"
    out.print(said)
    out.print(f"report.html has the old name until: python -m cbm report {run}")


def _list(run: Path, unit: str | None, units: int, as_json: bool) -> None:
    """Say how units are called and why."""
    from cbm.concepts.units import find_unit
    from cbm.trained import load
    from cbm.trained.names import unit_states

    trained = load(run)
    found = unit_states(trained)
    if unit is not None:
        assert trained.bank is not None
        text = trained.bank.texts[find_unit(trained.bank, unit)]
        found = [state for state in found if state.text == text]
    if as_json:
        records: list[dict[str, Any]] = [
            {"text": each.text, "state": each.unit.state, "weight": each.weight, "classes": each.classes,
             **asdict(each.unit)} for each in found
        ]  # fmt: skip
        show(None, records, as_json)
        return
    table = Table("unit", "state", "AUROC", "fires on", "weight", "classes", "nearest words")
    for each in found[:units]:
        auroc = each.unit.name_auroc
        words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in each.unit.words[:3])
        table.add_row(
            each.text,
            each.unit.state,
            "–" if auroc is None else f"{auroc:.2f}",
            "–" if each.unit.firing is None else f"{100 * each.unit.firing:.1f}%",
            f"{each.weight:.2f}",
            str(each.classes),
            words or "–",
        )
    show(table, None, as_json)
    named = sum(each.unit.named for each in found)
    more = f"; the {units} of most weight are shown (--units)" if len(found) > units else ""
    out.print(f"{len(found)} unit{'' if len(found) == 1 else 's'}, {named} with a name{more}")


def _propose(run: Path, cache: Path, endpoint: "Endpoint", units: int, unit: str | None, as_json: bool) -> None:
    """Have a model propose names, and say what became of them."""
    from cbm.run.name import propose_names

    found = propose_names(run, cache, endpoint, units=units, only=unit)
    if as_json:
        show(None, [asdict(proposal) for proposal in found], as_json)
        return
    table = Table("unit", "proposal", "AUROC", "p", "")
    for each in found:
        table.add_row(
            each.unit,
            each.text,
            "–" if each.auroc is None else f"{each.auroc:.2f}",
            "–" if each.p is None else f"{each.p:.3f}",
            f"taken: {each.taken}" if each.taken else each.why,
        )
    show(table, None, as_json)
    taken = sum(each.taken is not None for each in found)
    asked = len({each.unit for each in found})
    said = f"{endpoint.model}: {len(found)} proposals; of {asked} units, {taken} got a new name"
    out.print(said)
    if taken:
        out.print(f"report.html has the old names until: python -m cbm report {run}")
