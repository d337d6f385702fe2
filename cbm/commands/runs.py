"""What is asked of finished runs: report, leak, compare, intervene, adapt, spurious, rebalance, export, app."""

import importlib.util
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cbm.commands.asking import AllowHttp, BaseUrl, Concurrency, MaxCostTokens, MaxRequests, vision_endpoint
from cbm.commands.shared import Cache, Json, Root, Run, names_in, not_there, out, show
from cbm.errors import UserError, did_you_mean
from cbm.files.console import say
from cbm.files.shipped import install_command

if TYPE_CHECKING:
    from cbm.run.adapt import Adaptation

log = logging.getLogger("cbm")


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``python -m cbm``."""
    for command in (report, leak, spurious, rebalance, intervene, adapt, compare, export):
        app.command()(command)
    app.command(name="app")(explore)


def report(
    run: Run,
    cache: Cache = Path("cache"),
) -> None:
    """Write report.html of a finished run again."""
    from cbm.run.rewrite_report import rewrite_report

    out.print(str(rewrite_report(run, cache)))


def leak(
    run: Annotated[Path, typer.Argument(help="A finished run on a data set that labels concepts.")],
    split: Annotated[str, typer.Option(help="Pictures on which it is measured: test or val.")] = "test",
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Whether the scores of concepts say only what their names say: what they tell about the class beyond the true
    concepts, and the worst of them."""
    from rich.text import Text

    from cbm.report.leakage import worst_concepts
    from cbm.run.leak import measure_run

    if split not in ("test", "val"):
        raise UserError(f"--split={split}: {did_you_mean(split, ['test', 'val'])}")
    found, numbers, classes = measure_run(run, cache, split)
    if not as_json:
        say(f"{found.sentence} ({found.count:,} pictures)")
    if found.own is None:
        return show(None, numbers, as_json)
    table = Table("concept", "own leak", "among pictures with the same answer")
    for concept in worst_concepts(found, classes):
        pointed = ", ".join(f"{'higher' if higher else 'lower'} on {name}" for name, higher in concept.classes)
        share = f"{concept.share:.1%}" + " (chance)" * (not concept.significant)
        table.add_row(Text(concept.name), share, Text(pointed))
    return show(table, numbers, as_json)


def spurious(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs on a data set that names spurious concepts.")],
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Edit spurious concepts out of trained models: test accuracy before and after, and that of the worst group; mean
    and standard error over the runs."""
    from cbm.run.spurious import edit_spurious, mean_and_error

    found = [edit_spurious(run, cache) for run in runs]
    table = Table("", "test accuracy", "change", "worst group", title=f"{len(runs)} run(s)", title_justify="left")
    for name in found[0]:
        rows = [row[name] for row in found if name in row]
        change = [row[name].accuracy - row["unedited"].accuracy for row in found if name in row]
        worst = [row.worst for row in rows if row.worst is not None]
        told = f"{mean_and_error(worst)}{in_percent(rows[0].worst_interval) * (len(runs) == 1)}" if worst else "–"
        table.add_row(name, mean_and_error([row.accuracy for row in rows]), mean_and_error(change, signed=True), told)
    known = [
        {
            "run": run,
            **{name: row.accuracy for name, row in rows.items()},
            "worst_group": {name: row.worst for name, row in rows.items() if row.worst is not None},
        }
        for run, rows in zip(runs, found)
    ]
    show(table, known, as_json)


def rebalance(
    run: Run,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="Concept to remove; repeat the option. Default: those that the data set names as spurious."),
    ] = None,
    with_alike: Annotated[
        bool, typer.Option("--with-alike", help="Also remove concepts whose scores go with these within classes.")
    ] = False,
    group: Annotated[
        str | None, typer.Option(help="Column of groups to balance, in place of the removed concepts' scores.")
    ] = None,
    split: Annotated[str, typer.Option(help="Pictures on which the rows are measured: test or val.")] = "test",
    destination: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rebalanced model and edits.yaml, the removals alone.")
    ] = None,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Remove concepts and fit the head again on the run's own training pictures, which count as if these concepts had
    nothing to do with the class: accuracy and worst group after every step."""
    from cbm.run.rebalance import rebalance_run

    if split not in ("test", "val"):
        raise UserError(f"--split={split}: {did_you_mean(split, ['test', 'val'])}")
    if destination is not None:
        not_there(destination)
    made = rebalance_run(run, cache, concepts=concept or (), with_alike=with_alike, column=group, split=split)
    table = Table("", f"{split} accuracy", "worst group", "against remove", "which", title_justify="left")
    for name, row in made.rows.items():
        cells = [f"{100 * row.accuracy:.1f}{in_percent(row.interval)}", "–", "", ""]
        if row.worst is not None:
            cells[1:] = [f"{100 * row.worst:.1f}{in_percent(row.worst_interval)}", "", row.worst_name or ""]
        if row.change is not None:
            cells[2] = f"{100 * row.change.value:+.1f}{in_percent((row.change.low, row.change.high))}"
        table.add_row(name, *cells)
    found = made.found
    certificates = {
        name: {"gap": fit.point.gap, "kkt": fit.point.kkt, "nec": fit.point.nec, "rows": fit.rows}
        for name, fit in (("remove + refit", found.refit), ("rebalance", found.rebalanced))
    }
    known = {
        "rows": {name: asdict(row) for name, row in made.rows.items()},
        "removed": [edit.concept for edit in made.edits.edits],
        "auroc": found.auroc,
        "cap": found.cap,
        "certificates": certificates,
    }
    show(table, known, as_json)
    point = found.rebalanced.point
    if not as_json:
        out.print(
            f"{len(made.edits.edits)} concepts removed; the class is told from what is balanced with AUROC "
            f"{found.auroc:.2f}; the pictures count as {found.rebalanced.rows:.0f} equal ones; "
            f"{point.nec:.1f} concepts per class, duality gap {max(point.gap, 0):.0e}"
        )
    if destination is not None:
        made.save(destination)
        say(f"rebalanced model and edits.yaml in {destination}", beside=True)


def in_percent(interval: tuple[float, float] | None) -> str:
    """The ends of an interval after a number: `` [80.1, 85.9]``; empty if there is none."""
    return "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def intervene(
    run: Annotated[Path, typer.Argument(help="A finished run on a data set that knows concepts.")],
    policies: Annotated[
        str | None,
        typer.Option(
            help="Which to compare, separated by commas; default: random, ucp, cctp, ectp, eudtp, coop, oracle, "
            "and learned if the model has learned to ask."
        ),
    ] = None,
    questions: Annotated[int | None, typer.Option(help="Questions per image; default: all.")] = None,
    noise: Annotated[float, typer.Option(help="Share of the answers that are wrong.")] = 0.0,
    answers: Annotated[
        Path | None, typer.Option(help="File of an expert's answers (CSV: picture, concepts), instead of the truth.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="Vision-language model to ask instead, behind an OpenAI-compatible server.")
    ] = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 8,
    max_requests: MaxRequests = None,
    max_cost_tokens: MaxCostTokens = None,
    allow_http: AllowHttp = False,
    propagate: Annotated[bool, typer.Option(help="Also update concepts correlated with the answer.")] = False,
    cost: Annotated[list[str] | None, typer.Option(help="Cost of asking about a concept or group: NAME=COST.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the noise and the random order.")] = 0,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Ask about one concept after the other, by several policies: accuracy (of labels AUROC) after each question."""
    from cbm.run.intervene import question_curves

    costs = {}
    for entry in cost or []:
        name, _, value = entry.rpartition("=")
        try:
            costs[name] = float(value)
        except ValueError as error:
            raise UserError(f"--cost {entry}: expected NAME=COST, such as 'wing colour=2'") from error
    names = None if policies is None else names_in(policies)
    if expert is not None and answers is not None:
        raise UserError("--answers and --expert: say one of them")
    endpoint = vision_endpoint(
        expert, "--expert MODEL", base_url, concurrency, max_requests, max_cost_tokens, allow_http
    )
    curves = question_curves(
        run,
        cache,
        policies=names,
        questions=questions,
        noise=noise,
        answers=answers,
        expert=endpoint,
        propagate=propagate,
        costs=costs,
        seed=seed,
    )
    last = len(next(iter(curves.values())).accuracy) - 1
    shown = sorted({round(last * share) for share in (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)})
    labels = next(iter(curves.values())).measure != "accuracy"
    table = Table("AUROC after questions" if labels else "questions", *map(str, shown), "area", "cost at the end")
    for name, curve in curves.items():
        values = [f"{curve.accuracy[step]:.3f}" for step in shown]
        table.add_row(name, *values, f"{curve.area:.3f}", f"{curve.cost[-1]:.1f}")
    found = {
        name: {curve.measure: curve.accuracy.tolist(), "cost": curve.cost.tolist(), "area": curve.area}
        for name, curve in curves.items()
    }
    show(table, found, as_json)


def adapt(
    run: Run,
    dataset: Annotated[str, typer.Argument(help="Card of the other domain, with the same classes.")],
    root: Root = None,
    editors: Annotated[str, typer.Option(help="Which to compare, separated by commas.")] = (
        "combined,test_time,prune,recentre,conda,refit"
    ),
    shots: Annotated[int, typer.Option(help="Labelled images per class.")] = 4,
    draws: Annotated[int, typer.Option(help="Number of times the labelled images are drawn.")] = 1,
    guard: Annotated[str, typer.Option(help="How much must hold for images left out: lenient, default or strict.")] = (
        "default"
    ),
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Make every correction, also one that may be chance."),
    ] = False,
    protect: Annotated[
        list[str] | None, typer.Option(help="Concept that test_time may not mask; repeat the option for several.")
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--out", help="File for the edits of the first editor in the first draw (eval.py edits=FILE)."),
    ] = None,
    cache: Cache = Path("cache"),
    as_json: Json = False,
) -> None:
    """Correct a model for another domain with a few labelled images: editors side by side."""
    from cbm.editing.domains.guard import LEVEL
    from cbm.run.adapt import adapt as adapted

    names = names_in(editors)
    found = adapted(
        run,
        dataset,
        cache,
        editors=names,
        root=root,
        shots=shots,
        draws=draws,
        guard=guard,
        level=None if unchecked else LEVEL,
        protect=tuple(protect or ()),
    )
    table = adaptation_table(found, f"{shots} labelled images per class, {draws} draw(s)")
    known = [
        {"target": each.target, "balanced": each.balanced, "intervals": each.intervals, "source": each.source}
        for each in found
    ]
    show(table, known, as_json)
    edits = found[0].proposals[names[0]].edits
    for edit in edits.edits if edits and not as_json else ():
        out.print(f"  {edit}")
    if destination is not None:
        if edits is None:
            raise UserError(f"--out: what {names[0]} does cannot be said as edits; name an editor that edits first")
        edits.save(destination)
        log.info("%d edits in %s", len(edits), destination)


OVER_DRAWS = (
    "in brackets: 95% interval over the tested images; ±: standard error over draws, which share most of their tested "
    "images: it says how much the labelled images matter, not how sure a number is"
)


def adaptation_table(found: "list[Adaptation]", title: str) -> Table:
    """The editors side by side: means over the draws, plain and balanced, with intervals over the tested images."""
    from cbm.run.adapt import mean_interval, overlap
    from cbm.run.spurious import mean_and_error

    table = Table(
        "",
        "accuracy",
        "change",
        "worse",
        "balanced",
        "change",
        "source domain",
        "corrected",
        "concepts",
        "overlap",
        title=title,
        caption=f"accuracy in percent; balanced: mean of the classes; {OVER_DRAWS}; worse, corrected: draws; "
        "source domain: accuracy if applied there too",
    )
    for name in found[0].target:
        there = [each.target[name] for each in found]
        change = [each.target[name] - each.target["unedited"] for each in found]
        balanced = [each.balanced[name] - each.balanced["unedited"] for each in found]
        proposals = [each.proposals[name] for each in found if name in each.proposals]
        corrected = sum(p.changes for p in proposals)
        counts = [len({edit.concept for edit in p.edits.edits}) for p in proposals if p.edits]
        table.add_row(
            name,
            f"{mean_and_error(there)} {mean_interval(found, name, 'accuracy')}",
            mean_and_error(change, signed=True),
            str(sum(c < 0 for c in change)),
            f"{mean_and_error([each.balanced[name] for each in found])} {mean_interval(found, name, 'accuracy_macro')}",
            mean_and_error(balanced, signed=True),
            mean_and_error([each.source[name] for each in found]),
            *((str(corrected),) if proposals else ()),
            *((f"{sum(counts) / len(counts):.1f}", f"{overlap(proposals):.2f}") if counts else ()),
        )
    return table


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    style: Annotated[str, typer.Option(help="rich, markdown, latex or csv.")] = "rich",
    destination: Annotated[
        Path | None, typer.Option("--out", help="File for a page with the table and curves.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One table of several runs: mean and standard deviation over seeds, compared on the test images they share."""
    from cbm.report.compare import compare_runs, format_table

    rows = compare_runs(runs)
    if as_json:
        known = [
            {
                **row.labels,
                "seeds": row.seeds,
                "runs": row.paths,
                "values": row.values,
                "intervals": row.intervals,
                "best": sorted(row.best),
                "equal": sorted(row.equal),
                "family": row.judged.family,
                "not_compared": row.judged.unpaired,
            }
            for row in rows
        ]
        show(None, known, as_json)
    else:
        print(format_table(rows, style))
    if destination is not None:
        from cbm.report.comparison import write_comparison

        write_comparison(destination, rows)
        say(f"written to {destination}", beside=True)


def export(
    run: Annotated[str, typer.Argument(help="A finished run, or hf-hub:ORG/NAME.")],
    destination: Annotated[Path, typer.Option("--out", help="The file to write: model.onnx, or model.pt2.")],
    kind: Annotated[str | None, typer.Option("--format", help="onnx | pt2; default: by the name of the file.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Number of concepts to return for every image as well.")] = None,
) -> None:
    """Write a model for places without cbm: features in, logits (and concepts) out (docs/portable.md)."""
    from cbm.trained import load

    not_there(destination)
    model = load(run)
    path = model.export(destination, top_k=top_k, format=kind)
    count = 0 if model.bank is None else len(model.bank)
    size = path.stat().st_size / 1e6
    out.print(f"{path}: {len(model.classes)} classes, {count} concepts, {size:.1f} MB")


def explore(
    run: Annotated[str, typer.Argument(help="A finished run (RUN, or run=RUN).")],
    port: Annotated[int | None, typer.Option(help="Port; default: the first free one from 7860 on.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Show the images of this card instead; it must have the same classes.")
    ] = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="Split to show: train, val or test.")] = "test",
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Also open a public address, through Gradio's server; nothing is written into the run."
        ),
    ] = False,
    static: Annotated[
        Path | None, typer.Option("--static", help="Write a page that opens from disk to this file (.html) instead.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures on that page, at most: mistakes first.")] = 200,
    cache: Cache = Path("cache"),
) -> None:
    """Open a run in the browser: see why, change it, and see what follows. On this computer only; Ctrl-C ends it."""
    if static is not None:
        if share or port is not None:
            raise UserError("--static writes a page and serves none: say it without --port and --share")
        if pictures < 1:
            raise UserError(f"--pictures {pictures}: expected 1 or more")
        not_there(static)
    elif importlib.util.find_spec("gradio") is None:
        raise UserError(f"the explorer needs Gradio: {install_command('app')}")
    from cbm.app import Explorer

    explorer = Explorer(run.removeprefix("run="), cache, dataset=dataset, root=root, name=split)
    if static is not None:
        from cbm.app.static import write_page

        count = write_page(explorer, static, pictures)
        out.print(f"{count} pictures of {run} in {static} ({static.stat().st_size / 1e6:.1f} MB)")
        return
    from cbm.app.page import launch

    launch(explorer, port, share=share, opened=lambda at: out.print(f"{run} is open at {at}"))
