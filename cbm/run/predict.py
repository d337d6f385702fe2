"""``python -m cbm predict``: what a model says of any number of images, as one table that an interruption cannot spoil.

A ``Source`` hands out batches of features; rows of them are appended to ``OUT.partial``, batch by batch, and the file
gets its name when it is whole. What the rows were made from stands beside it in ``OUT.partial.json``: run again, the
command goes on behind the last whole batch, and refuses if the model, an option or the list of images is another. As
batches are the same as without an interruption, so is every digit of the table.
"""

import csv
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cbm.data.encoding import Unreadable, collate, preprocessed
from cbm.data.images import ImageFiles, Images, walk_names
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import cannot_write, open_regular, place_new, write_atomically
from cbm.files.pictures import VERSION, open_picture
from cbm.layers.require import linear_or_none
from cbm.report.explanations import explain
from cbm.report.predictions import Shown, predictions_page
from cbm.report.thumbnails import thumbnail
from cbm.run.planning import in_time
from cbm.trained import TrainedModel

log = logging.getLogger("cbm")

ON_THE_PAGE = 200
"""Images on a page, at most: the first ones."""
SPARSE = 30.0
"""Seconds between two lines about the progress, where there is no terminal."""
SAFE = 10.0
"""Seconds between two moments at which the rows are certain to be on the disk, whatever happens to the power."""
FACTS = {
    "version": "version of this command",
    "model": "model (or other edits)",
    "encoder": "encoder",
    "device": "--device",
    "batch_size": "--batch-size",
    "columns": "--top",
    "place": "place of the images",
    "images": "number of images",
    "names": "list of images",
}
"""What is kept beside the rows, and how it is called where it is another."""


@dataclass(frozen=True)
class Batch:
    """Some images in a row.

    Attributes:
        names: n names.
        features: features ``[m, D]``, of any norm, of those that could be read, in their order.
        errors: why the others could not, by their place among the n.
    """

    names: list[str]
    features: Tensor
    errors: dict[int, str] = field(default_factory=dict)


class Source(Protocol):
    """N things to classify, in an order that stays: images, or features that are ready.

    Attributes:
        place: where they are; things of the same names elsewhere are others.
        names: their names.
        encoder: fingerprint of what made, or will make, the features.
        device: kind of device that makes them.
    """

    place: str
    names: "NameList"
    encoder: str
    device: str

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """The things from ``start`` to before ``stop``, so many at a time; the last batch may be smaller."""
        ...

    def pictures(self, names: list[str]) -> Images | None:
        """The images of some names, for a page; None if there are only features."""
        ...


class NameList:
    """Names in a file without a name, so that a million of them take no memory; what was listed once stays.

    Attributes:
        digest: hash of the names in their order.
    """

    def __init__(self, names: Iterable[str], folder: Path):
        """List the names.

        Args:
            names: the names, which are asked for once.
            folder: folder of the file, which is gone when the process ends.

        Raises:
            UserError: the disk is full.
        """
        digest, self._count = hashlib.sha256(), 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for name in names:
                raw = os.fsencode(name) + b"\0"
                digest.update(raw)
                self._file.write(raw)
                self._count += 1
            self._file.flush()
        except OSError as error:
            raise cannot_write(folder / "list of images", error) from error
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The names from ``start`` to before ``stop``."""
        row, offset, rest = 0, 0, b""
        stop = self._count if stop is None else stop
        while row < stop and (block := os.pread(self._file.fileno(), 1 << 14, offset)):
            offset += len(block)
            *whole, rest = (rest + block).split(b"\0")
            yield from (os.fsdecode(raw) for raw in whole[max(0, start - row) : max(0, stop - row)])
            row += len(whole)


class ImageSource:
    """Image files, read by processes of their own while the encoder computes.

    Attributes:
        place: the folder that the names start from.
        names: paths of the images.
        encoder: fingerprint of the encoder.
        device: kind of its device.
    """

    def __init__(self, encoder: Encoder, root: Path, names: NameList, workers: int):
        """Take the images of a folder.

        Args:
            encoder: the encoder of the model.
            root: folder that the names start from.
            names: paths of the images.
            workers: processes that decode images; 0 decodes them in this one.
        """
        self.place = os.path.abspath(root)  # noqa: PTH100 - where links lead is not looked at
        self.names, self.encoder, self.device = names, encoder.fingerprint, encoder.device.type
        self._tower, self._root, self._workers = encoder, root, workers

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """Read and encode the images from ``start`` to before ``stop``; names are asked for as they are needed.

        Raises:
            UserError: a process that decodes images died.
        """
        loader = DataLoader(
            _Files(self._root, self._tower),
            batch_sampler=_grouped(self.names.read(start, stop), size),
            num_workers=min(self._workers, -(-(stop - start) // size)),
            collate_fn=collate,
            pin_memory=self._tower.device.type == "cuda",
        )
        try:
            for names, good, pictures, why in loader:
                features = self._tower.encode_images(pictures) if len(pictures) else torch.empty(0, self._tower.dim)
                errors = {i: why[name].reason for i, name in enumerate(names) if not good[i]}
                yield Batch(names, features, errors)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that decodes images died (out of memory?): run the same command again, it goes on there, "
                "perhaps with --workers 0"
            ) from error

    def pictures(self, names: list[str]) -> Images:
        """The images of some names."""
        return ImageFiles(self._root, names)


class _Files(Dataset):
    """Name to (name, preprocessed picture, or why there is none)."""

    def __init__(self, root: Path, encoder: Encoder):
        self.root, self.preprocess, self.least = root, encoder.preprocess, encoder.least

    def __getitem__(self, name: str) -> tuple[str, Tensor | Unreadable]:
        read = partial(open_picture, self.root / name, self.least, name)
        return name, preprocessed(read, self.preprocess, name)


def _grouped(names: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        group.append(name)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def find_images(paths: list[Path]) -> tuple[Path, Iterator[str]]:
    """The folder that names start from, and the names of the images.

    Args:
        paths: one folder, whose images are called as seen from it, at any depth; or files and folders, whose images
            are called as they were given.

    Raises:
        UserError: a path that does not exist, or is neither file nor folder.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder '{path}'")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"'{path}' is neither a file nor a folder")
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0], walk_names(paths[0])
    return Path(), (name for path in paths for name in _below(path))


def _below(path: Path) -> Iterator[str]:
    yield from (str(path / name) for name in walk_names(path)) if path.is_dir() else (str(path),)


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

    Args:
        model: the model.
        source: the images, or their features.
        destination: the file to write; what an interrupted call left beside it is taken up.
        top: number of concepts per image; none are written for a model without a linear head on concepts.
        batch_size: images per forward pass.
        page: file for a page with the first ``ON_THE_PAGE`` images.

    Raises:
        UserError: there are no images, another process writes the same file, an interrupted call had another model,
            options or images, or the disk is full.
    """
    count = len(source.names)
    columns = _columns(model, top)
    facts = {
        "version": 1,
        "model": _digest(model),
        "encoder": f"{source.encoder} pixels {VERSION}",
        "device": source.device,
        "batch_size": batch_size,
        "columns": columns,
        "place": source.place,
        "images": count,
        "names": source.names.digest,
    }
    with _unfinished(destination) as unfinished:
        kept = _take_up(unfinished, facts, source.names)
        if kept.rows:
            log.info("%s of %s images were predicted before: going on", f"{kept.rows:,}", f"{count:,}")
        failed, first = kept.failed, kept.first
        with _progress(count, kept.rows) as advance:
            for batch in source.batches(kept.rows, count, batch_size):
                made = table_rows(model, batch, top)
                unfinished.add(made)
                failures = [_failure(row) for row in made if row[-1]]
                failed, first = failed + len(failures), first or next(iter(failures), "")
                advance(len(made))
        if page is not None:
            shown = shown_images(model, source, batch_size)
            write_atomically(page, predictions_page(str(model.path), model.changes, shown, count, failed).encode())
        unfinished.finish(destination)
    return Summary(count, failed, first)


def _columns(model: TrainedModel, top: int) -> list[str]:
    many = 0 if model.bank is None or linear_or_none(model.model, model.bank) is None else min(top, len(model.bank))
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
    chances = found.probabilities.max(dim=1).values.tolist()
    for place, label, chance in zip(good, found.labels, chances):
        rows[place][1:3] = label, f"{chance:.6f}"
    if many := (width - 4) // 2:
        values = found.contributions()
        largest = values.abs().topk(many, dim=1).indices
        adds = values.gather(1, largest).tolist()
        for place, concepts, numbers in zip(good, largest.tolist(), adds):
            pairs = [(model.bank.texts[k], f"{v:.6g}") if v else ("", "") for k, v in zip(concepts, numbers)]  # type: ignore[union-attr]
            rows[place][3:-1] = [cell for pair in pairs for cell in pair]
    return rows


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
                why = explain(linear, model.bank.texts, found.features, found.logits.argmax(dim=1))
        taken = 0
        for place, name in enumerate(batch.names):
            if found is None or place in batch.errors:
                shown.append(Shown(name, error=batch.errors[place]))
                continue
            picture = None if images is None else thumbnail(images, place)
            chance = float(found.probabilities[taken].max())
            shown.append(Shown(name, found.labels[taken], chance, why[taken] if why else None, picture))
            taken += 1
    return shown


def _digest(model: TrainedModel) -> str:
    """What tells the decisions of a model from those of any other."""
    with (model.path / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    texts = [] if model.bank is None else model.bank.texts
    digest.update(repr((model.classes, texts, model.changes)).encode(errors="backslashreplace"))
    return digest.hexdigest()


class _Unfinished:
    """The rows of a table that has no name yet, and beside them what they are made from."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self.file = path, file
        self.beside = path.with_name(f"{path.name}.json")
        self._safe = time.monotonic()

    def add(self, rows: list[list[str]]) -> None:
        """Append rows, all or, in a process that is killed, some of them."""
        try:
            self.file.write("".join(map(_line, rows)).encode(errors="backslashreplace"))
            self.file.flush()
            if time.monotonic() - self._safe > SAFE:
                os.fsync(self.file.fileno())
                self._safe = time.monotonic()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def cut(self, end: int) -> None:
        """Forget what stands from a byte on."""
        try:
            self.file.seek(end)
            self.file.truncate()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def finish(self, destination: Path) -> None:
        """Give the file its name."""
        try:
            os.fsync(self.file.fileno())
            new = place_new(self.path, destination)
        except OSError as error:
            raise cannot_write(destination, error) from error
        if not new:
            raise UserError(f"'{destination}' is there by now: remove it and run the same command again")
        self.path.unlink(missing_ok=True)
        self.beside.unlink(missing_ok=True)


@contextmanager
def _unfinished(destination: Path) -> Iterator[_Unfinished]:
    """The rows so far, which no other process can write to.

    Raises:
        UserError: another process writes the same file, or it cannot be written to.
    """
    path = destination.with_name(f"{destination.name}.partial")
    busy = f"another process is writing '{destination}': wait for it, or choose another --out"
    try:
        file = open(path, "r+b", opener=lambda name, flags: open_regular(name, flags | os.O_CREAT))  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            # of this process alone: one by flock would live on in the processes that decode images for a killed one
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(busy) from error
        except OSError:  # a file system without locks
            log.debug("no lock for '%s'", path)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise UserError(busy)  # it gave the file its name in this moment
        if destination.exists():
            if not path.stat().st_size:
                path.unlink()
            raise UserError(f"'{destination}' is there by now: remove it or choose another --out")
        yield _Unfinished(path, file)


class _Kept(NamedTuple):
    """What an interrupted call left: rows, how many of them have an error, and the first of those."""

    rows: int
    failed: int
    first: str


def _take_up(unfinished: _Unfinished, facts: dict[str, Any], names: NameList) -> _Kept:
    """Begin the table, or find the end of its last whole batch.

    Args:
        unfinished: the rows so far.
        facts: what the rows are made from (``FACTS``).
        names: the list of images.

    Raises:
        UserError: the rows are made from something else, or damaged.
    """
    file, again = unfinished.file, f"remove '{unfinished.path}' to begin again"
    if os.fstat(file.fileno()).st_size:
        _compare(unfinished.beside, facts, again)
    else:
        write_atomically(unfinished.beside, json.dumps(facts, indent=1).encode())
    size, end, rows = facts["batch_size"], 0, 0
    offset = quotes = found = 0
    file.seek(0)
    for line in file:  # a row has several lines if a name has
        offset += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            found += 1
            if (found - 1) % size == 0 or found - 1 == len(names):
                end, rows = offset, found - 1
    unfinished.cut(end)
    file.seek(0)
    failed, first, seen = 0, "", -1
    wanted = names.read(0, rows)
    try:
        for seen, row in enumerate(csv.reader(line.decode() for line in file), -1):
            right = facts["columns"] if seen < 0 else [_shown(next(wanted)), *row[1:]]
            if row != right or len(row) != len(facts["columns"]):
                raise UserError(f"row {seen + 1} of '{unfinished.path}' is damaged: {again}")
            if seen >= 0 and row[-1]:
                failed, first = failed + 1, first or _failure(row)
    except (csv.Error, UnicodeDecodeError, StopIteration) as error:
        raise UserError(f"'{unfinished.path}' is damaged behind row {seen + 1}: {again}") from error
    file.seek(end)
    if not end:
        unfinished.add([facts["columns"]])
    return _Kept(rows, failed, first)


def _compare(beside: Path, facts: dict[str, Any], again: str) -> None:
    """Whether the rows so far are made from the same.

    Args:
        beside: file of what they are made from.
        facts: what this call makes them from.
        again: what to do otherwise, in words.

    Raises:
        UserError: they are not, or nobody knows.
    """
    try:
        before = json.loads(beside.read_text())
        if not isinstance(before, dict):
            raise TypeError
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"what the rows so far are made from cannot be read from '{beside}': {again}") from error
    for key, what in FACTS.items():
        if (then := before.get(key)) != (now := facts[key]):
            which = f" ({then:,} then, {now:,} now)" if isinstance(then, int) and isinstance(now, int) else ""
            raise UserError(f"the interrupted command had another {what}{which}: run it as it was, or {again}")


def _failure(row: list[str]) -> str:
    return f"'{_shown(row[0])}': {row[-1]}"


def _shown(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as ``\\udcNN``."""
    return name.encode(errors="backslashreplace").decode()


def _line(row: list[str]) -> str:
    return ",".join(map(_cell, row)) + "\n"


def _cell(text: str) -> str:
    """One cell; ``csv.writer`` leaves a carriage return without quotes, which readers take for the end of a row."""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """How far it is, with rate and time left: a bar on a terminal, else now and then a line of the log.

    Args:
        total: number of images.
        done: how many of them were there before.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
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
