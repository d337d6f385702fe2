"""``python -m cbm predict``: what a model says of any number of images, as one table that an interruption cannot spoil.

A ``Source`` hands out batches of features; rows of them are appended to ``OUT.partial``, batch by batch, and the file
gets its name when it is whole. What the rows were made from stands beside it in ``OUT.partial.json``: run again, the
command goes on behind the last whole batch, and refuses if the model, an option or the list of images is another. As
batches are the same as without an interruption, so is every digit of the table.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cbm.files import write_atomically
from cbm.files.names import as_text
from cbm.files.pictures import VERSION
from cbm.layers import is_many, thresholds_of
from cbm.layers.require import linear_or_none
from cbm.methods.planning import in_time
from cbm.report.explanations import explain
from cbm.report.predictions import Shown, predictions_page
from cbm.report.thumbnails import thumbnail
from cbm.run.sources import Batch, Source
from cbm.run.unfinished import PAGE, failure, take_up, unfinished_table
from cbm.trained import TrainedModel
from cbm.trained.model import Prediction

log = logging.getLogger("cbm")

ON_THE_PAGE = 200
"""Images on a page, at most: the first ones."""
SPARSE = 30.0
"""Seconds between two lines about the progress, where there is no terminal."""


@dataclass(frozen=True)
class Summary:
    """How a table of predictions came out.

    Attributes:
        images: number of rows.
        failed: number of images that could not be read.
        first: the first of them and why, in words; empty if there are none.
    """

    images: int
    failed: int
    first: str


def predict(
    model: TrainedModel,
    source: Source,
    destination: Path,
    *,
    top: int = 3,
    batch_size: int = 256,
    page: Path | None = None,
) -> Summary:
    """Write one row for every image: name, label, probability, the concepts that moved the logit most, error.

    Where an image has any number of labels, ``labels`` is a JSON list of those it is said to have, ``concepts`` a JSON
    object of the concepts behind each of them with what they add to its logit, and every label has a probability.

    Args:
        model: the model.
        source: the images, or their features.
        destination: the file to write; what an interrupted call left beside it is taken up.
        top: number of concepts per image, or for every label that is said; none are written for a model without a
            linear head on concepts.
        batch_size: images per forward pass.
        page: file for a page with the first ``ON_THE_PAGE`` images.

    Raises:
        UserError: there are no images, another process writes the same file, an interrupted call had another model,
            options or images, or the disk is full.
    """
    count = len(source.names)
    columns = _columns(model, top)
    facts = {
        "version": 2 if is_many(model.model) else 1,
        "model": _digest(model),
        "encoder": f"{source.encoder} pixels {VERSION}",
        "device": source.device,
        "batch_size": batch_size,
        "columns": columns,
        "place": source.place,
        "images": count,
        "names": source.names.digest,
        PAGE: None if page is None else as_text(str(page.absolute())),
    }
    with unfinished_table(destination) as unfinished:
        kept = take_up(unfinished, facts, source.names)
        if kept.rows:
            log.info("%s of %s images were predicted before: going on", f"{kept.rows:,}", f"{count:,}")
        failed, first = kept.failed, kept.first
        with _progress(count, kept.rows) as advance:
            for batch in source.batches(kept.rows, count, batch_size):
                made = table_rows(model, batch, top)
                unfinished.add(made)
                failures = [failure(row) for row in made if row[-1]]
                failed, first = failed + len(failures), first or next(iter(failures), "")
                advance(len(made))
        if page is not None:
            shown = shown_images(model, source, batch_size)
            write_atomically(page, predictions_page(str(model.path), model.changes, shown, count, failed).encode())
        unfinished.finish(destination)
    return Summary(count, failed, first)


def _columns(model: TrainedModel, top: int) -> list[str]:
    many = 0 if model.bank is None or linear_or_none(model.model, model.bank) is None else min(top, len(model.bank))
    if is_many(model.model):
        concepts = ["concepts"] if many else []
        return ["name", "labels", *concepts, *(f"probability: {name}" for name in model.classes), "error"]
    pairs = [f"{what}_{place}" for place in range(1, many + 1) for what in ("concept", "contribution")]
    return ["name", "label", "probability", *pairs, "error"]


def table_rows(model: TrainedModel, batch: Batch, top: int) -> list[list[str]]:
    """The cells of every image of a batch, in the order of the columns.

    Args:
        model: the model.
        batch: the images.
        top: number of concepts per image.
    """
    width = len(_columns(model, top))
    batch = _finite(batch)
    rows = [[name, *[""] * (width - 1)] for name in batch.names]
    for place, why in batch.errors.items():
        rows[place][-1] = why
    good = [place for place in range(len(rows)) if place not in batch.errors]
    if not good:
        return rows
    found = model.predict_features(batch.features)
    if found.many:
        with_concepts = width > len(model.classes) + 3
        behind = said_concepts(found, top) if with_concepts else [{} for _ in good]
        for place, said, by_label, chances in zip(good, found.labels, behind, found.probabilities.tolist()):
            lists = [said, by_label] if with_concepts else [said]
            cells = [json.dumps(each, ensure_ascii=False) for each in lists]
            rows[place][1:-1] = *cells, *(f"{chance:.6f}" for chance in chances)
        return rows
    chances = found.probabilities.max(dim=1).values.tolist()
    for place, label, chance in zip(good, found.labels, chances):
        rows[place][1:3] = label, f"{chance:.6f}"
    if many := (width - 4) // 2:
        values = found.contributions()
        largest = values.abs().topk(many, dim=1).indices
        adds = values.gather(1, largest).tolist()
        texts = [] if model.bank is None else model.bank.texts  # made anew whenever it is asked for
        for place, concepts, numbers in zip(good, largest.tolist(), adds):
            pairs = [(texts[k], f"{v:.6g}") if v else ("", "") for k, v in zip(concepts, numbers)]
            rows[place][3:-1] = [cell for pair in pairs for cell in pair]
    return rows


def said_concepts(found: Prediction, top: int) -> list[dict[str, dict[str, float]]]:
    """For every image, by label that it is said to have, the concepts that moved the label's logit most and what each
    adds to it, the largest first; those that add nothing are left out.

    Args:
        found: what a model of labels with a linear head on concepts says.
        top: number of concepts for every label.
    """
    texts = [] if found.bank is None else found.bank.texts
    why: list[dict[str, dict[str, float]]] = [{} for _ in found.labels]
    for number, label in enumerate(found.classes):
        said = [place for place, names in enumerate(found.labels) if label in names]
        if not said:
            continue
        values = found.contributions(torch.full((len(found.labels),), number))[said]
        largest = values.abs().topk(min(top, len(texts)), dim=1).indices
        for place, concepts, numbers in zip(said, largest.tolist(), values.gather(1, largest).tolist()):
            why[place][label] = {texts[k]: float(f"{value:.6g}") for k, value in zip(concepts, numbers) if value}
    return why


def _finite(batch: Batch) -> Batch:
    """The batch with an error for every image whose features are no direction, instead of an end of everything."""
    norms = batch.features.norm(dim=1)
    usable = norms.isfinite() & (norms > 0)
    if usable.all():
        return batch
    good = [place for place in range(len(batch.names)) if place not in batch.errors]
    bad = {good[i]: "its features are NaN, infinite or zero" for i in (~usable).nonzero().flatten().tolist()}
    return Batch(batch.names, batch.features[usable], batch.errors | bad)


@torch.no_grad()
def shown_images(model: TrainedModel, source: Source, batch_size: int) -> list[Shown]:
    """What a page says of the first ``ON_THE_PAGE`` images.

    Args:
        model: the model.
        source: the images, or their features.
        batch_size: images per forward pass.
    """
    shown: list[Shown] = []
    linear = linear_or_none(model.model, model.bank)
    for batch in source.batches(0, min(ON_THE_PAGE, len(source.names)), batch_size):
        batch = _finite(batch)
        images = source.pictures(batch.names)
        found, why = None, []
        if len(batch.features):
            found = model.predict_features(batch.features)
            if linear is not None and model.bank is not None:
                surest = (found.logits - cuts_of(model)).argmax(dim=1)  # of labels, the one said with most room
                why = explain(linear, model.bank.texts, found.features, surest)
        taken = 0
        for place, name in enumerate(batch.names):
            if found is None or place in batch.errors:
                shown.append(Shown(name, error=batch.errors[place]))
                continue
            picture = None if images is None else thumbnail(images, place)
            chance, said = float(found.probabilities[taken].max()), found.labels[taken]
            said = said if isinstance(said, str) else "; ".join(said) or "none of the labels"
            shown.append(Shown(name, said, chance, why[taken] if why else None, picture))
            taken += 1
    return shown


def cuts_of(model: TrainedModel) -> torch.Tensor | float:
    """Logits above which a label is said to be there; 0 for classes."""
    return thresholds_of(model.model, len(model.classes)) if is_many(model.model) else 0.0


def _digest(model: TrainedModel) -> str:
    """What tells the decisions of a model from those of any other."""
    with (model.path / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    texts = [] if model.bank is None else model.bank.texts
    digest.update(repr((model.classes, texts, model.changes)).encode(errors="backslashreplace"))
    return digest.hexdigest()


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """How far it is, with rate and time left: a bar on a terminal, else now and then a line of the log.

    Args:
        total: number of images.
        done: how many of them were there before.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cbm.files.terminal import errors

    console = errors()
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    began = said = time.monotonic()
    now = done
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal now, said
            now += count
            rate = (now - done) / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=now, rate=f"{rate:,.0f} images/s")
            if not console.is_terminal and time.monotonic() - said > SPARSE:
                said = time.monotonic()
                left = in_time((total - now) / rate)
                log.info("%s of %s images, %.0f images/s, %s left", f"{now:,}", f"{total:,}", rate, left)

        yield advance
    log.info("%s images at %.0f images/s", f"{now - done:,}", (now - done) / max(time.monotonic() - began, 1e-9))
