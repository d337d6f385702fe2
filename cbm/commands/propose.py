"""``python -m cbm propose``: what training added to each class, in words."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cbm.commands.shared import Cache, Json, Run, not_there, out, show


def add_to(app: typer.Typer) -> None:
    """Make the command of this file part of ``python -m cbm``."""
    app.command()(propose)


def propose(
    run: Run,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="A bank or one phrase a line. Default: the run's concepts and the shipped general phrases."),
    ] = None,
    wordnet: Annotated[
        Path | None, typer.Option(help="Folder of WordNet: also leave out what a class is, and kinds of it.")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of phrases.")] = 20,
    destination: Annotated[
        Path | None, typer.Option("--out", help="audit.yaml to write: every phrase neutral, for you to say more.")
    ] = None,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """What training added to each class, in words, with pictures: phrases that the model says of a class and the class
    text does not. Whether they belong to the class is for you to say (--out, then cbm audit)."""
    from rich.text import Text

    from cbm.files.names import quoted
    from cbm.run.propose import propose as proposals_of
    from cbm.run.propose import write_proposals

    if destination is not None:
        not_there(destination)
    found = proposals_of(run, cache, vocabulary=vocabulary, wordnet=wordnet, count=count)
    table = Table("phrase", "added to", "in the bank", "pictures",
                  caption="added: how much more the class vector says it than the class text does, in standard "
                          "deviations over the vocabulary; pictures: the nearest of the first class")  # fmt: skip
    for each in found:
        said = ", ".join(f"{name} ({amount:.1f})" for name, amount in each.classes.items())
        also = f" (and {quoted(each.alike, 3)})" if each.alike else ""
        table.add_row(
            Text(each.phrase + also), Text(said), "yes" if each.in_bank else "no", Text("\n".join(each.pictures))
        )
    if destination is not None:
        write_proposals(destination, found)
    show(table, [asdict(each) for each in found], as_json)
    if destination is not None and not as_json:
        out.print(f"every phrase is neutral in {destination}: say which are unwanted, then python -m cbm audit")
