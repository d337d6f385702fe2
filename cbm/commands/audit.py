"""``python -m cbm audit``: a person's list of wanted and unwanted concepts against a finished run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cbm.commands.shared import Cache, Json, Run, show
from cbm.errors import UserError, did_you_mean


def add_to(app: typer.Typer) -> None:
    """Make the command of this file part of ``python -m cbm``."""
    app.command()(audit)


def audit(
    run: Run,
    listed: Annotated[Path, typer.Argument(metavar="LIST", help="audit.yaml: - {concept: ..., expect: unwanted}")],
    split: Annotated[str, typer.Option(help="Pictures whose decisions count: test or val.")] = "test",
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Which wanted and unwanted concepts a model uses; exit status 1 if an unwanted one is in use or a wanted one is
    not."""
    from rich.text import Text

    from cbm.run.audit import audit_run

    if split not in ("test", "val"):
        raise UserError(f"--split={split}: {did_you_mean(split, ['test', 'val'])}")
    found = audit_run(run, listed, cache, split)
    table = Table(
        "concept",
        "expect",
        "verdict",
        "decisions that change",
        "at its ends",
        "by chance",
        "rank",
        "AUROC",
        "most in",
        caption="held at its mean (with what the encoder cannot tell from it); by chance: the 95% point of random "
        "directions; rank by importance; AUROC of its score where the data set labels it",
    )
    for each in found:
        cells = ["–"] * 3
        if (use := each.use) is not None:
            cells = [
                f"{use.flips:.1%} ({use.alike:.1%})",
                f"{use.ends[0]:.1%}, {use.ends[1]:.1%}",
                f"{use.chance:.1%}",
            ]
        rank = "not in the bank" if each.rank is None else str(each.rank)
        auroc = "–" if each.auroc is None else f"{each.auroc:.2f}"
        group = "" if each.group is None else f"{each.group[0]} ({each.group[1]:.0%})"
        named = Text(each.entry.concept), each.entry.expect, each.verdict
        table.add_row(*named, *cells, rank, auroc, Text(group))
    known = [
        {
            "concept": each.entry.concept,
            "expect": each.entry.expect,
            "classes": each.entry.classes,
            "verdict": each.verdict,
            "in_bank": each.in_bank,
            "rank": each.rank,
            "auroc": each.auroc,
            "flips": use and use.flips,
            "flips_alike": use and use.alike,
            "flips_ends": use and use.ends,
            "chance": use and use.chance,
            "group": each.group,
            "fails": each.fails,
        }
        for each in found
        for use in [each.use]
    ]
    show(table, known, as_json)
    raise typer.Exit(1 if any(each.fails for each in found) else 0)
