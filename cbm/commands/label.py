"""What people (or a vision-language model) say about a finished run: label."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cbm.commands.asking import AllowHttp, BaseUrl, Concurrency, MaxCostTokens, MaxRequests, vision_endpoint
from cbm.commands.shared import Cache, Json, Run, out, show
from cbm.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``python -m cbm``."""
    app.command()(label)


def label(
    run: Run,
    pairs: Annotated[int, typer.Option(help="Answers (yes or no) to have in the end, with those of before.")] = 100,
    split: Annotated[str, typer.Option(help="Images to ask about: val, test or train.")] = "val",
    classes: Annotated[str | None, typer.Option(help="Only images of these classes, separated by commas.")] = None,
    top: Annotated[int, typer.Option(help="One of so many concepts that an image used most is asked about.")] = 5,
    destination: Annotated[
        Path | None, typer.Option("--out", help="Table of the answers; default: labels.csv in the run.")
    ] = None,
    who: Annotated[str, typer.Option(help="Your name, to be kept with the answers.")] = "",
    open_images: Annotated[bool, typer.Option("--open", help="Open every image in the desktop's viewer.")] = False,
    by: Annotated[
        str | None, typer.Option(help="Vision-language model to ask instead, behind an OpenAI-compatible server.")
    ] = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 8,
    max_requests: MaxRequests = None,
    max_cost_tokens: MaxCostTokens = None,
    allow_http: AllowHttp = False,
    seed: Annotated[int, typer.Option(help="Random seed for the draw.")] = 0,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Say whether images show what the model used for them (y, n, s, u, q): how often it is true, with an interval."""
    if pairs < 1:
        raise UserError(f"--pairs {pairs}: expected 1 or more")
    endpoint = vision_endpoint(by, "--by MODEL", base_url, concurrency, max_requests, max_cost_tokens, allow_http)
    from cbm.run.label import ask_model, ask_people, open_picture, open_queue

    queue = open_queue(
        run, cache, split=split, table=destination, classes=classes, top=top, seed=seed, model=by, who=who
    )
    if endpoint is None:
        ask_people(queue, pairs, show=open_picture if open_images else None)
    else:
        ask_model(queue, endpoint, cache, pairs)
    found = queue.precision
    if as_json:
        show(None, {"by": queue.by, "split": split, "table": queue.table, **asdict(found)}, as_json)
        return
    said = found.spoken if not found.count else f"true for {found.spoken} of the concepts that {split} images used"
    counts = f"{found.count} answers about {found.classes} classes, {found.skipped} skipped"
    out.print(f"{queue.by}: {said}; {counts}")
    if found.count or found.skipped:
        out.print(f"answers in {queue.table}")
