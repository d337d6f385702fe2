"""``python -m cbm datasets``: the data set cards, and checks of a download."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cbm import config as schema
from cbm.commands.shared import Cache, Card, EncoderName, Json, Pretrained, Root, encoder_settings, out
from cbm.commands.shared import show as show_result
from cbm.errors import UserError
from cbm.files import resolve_path

if TYPE_CHECKING:
    from cbm.data import ImageDataset
    from cbm.data.verify import Findings

log = logging.getLogger("cbm")

app = typer.Typer(help="List the data set cards, or check a download.", invoke_without_command=True)


@app.callback()
def list_cards(context: typer.Context, as_json: Json = False) -> None:
    """List the data set cards (docs/datasets.md says more), or check a download."""
    if context.invoked_subcommand is not None:
        return
    table = Table("name", "data set", "classes", "train / val / test", "concepts", "licence")
    cards = {name: schema.about_card(name) for name in schema.card_names()}
    for name, about in cards.items():
        counts = {key: f"{count:,}" for key, count in about.counts.items()}
        pictures = " / ".join(counts.get(split, "-") for split in ("train", "val", "test")) if "train" in counts else ""
        table.add_row(name, about.title, counts.get("classes"), pictures, counts.get("concepts"), about.licence)
    show_result(table, [{"name": name, **asdict(about)} for name, about in cards.items()], as_json)


@app.command()
def show(name: Card, as_json: Json = False) -> None:
    """Say what a data set is, where to get it and how to cite it, and how its card is set."""
    from omegaconf import OmegaConf

    card: Any = OmegaConf.to_container(schema.load_card(name))
    table = Table(show_header=False, box=None)
    entries = {**asdict(schema.about_card(name)), **card}
    for key, value in entries.items():
        if isinstance(value, dict):
            value = ", ".join(f"{entry} {said}" for entry, said in value.items())
        if value not in (None, ""):
            table.add_row(key, str(value))
    show_result(table, entries, as_json)


@app.command()
def check(
    name: Card,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of the card: root=PATH, args.level=image, ...")
    ] = None,
    root: Root = None,
    every: Annotated[bool, typer.Option("--all", help="Open every image, not a sample of each split.")] = False,
    cache: Cache = Path("cache"),
    near: Annotated[
        bool, typer.Option("--near-duplicates", help="Encode all images and report those that look nearly the same.")
    ] = False,
    encoder: EncoderName = "tiny_clip",
    pretrained: Pretrained = None,
    similarity: Annotated[float, typer.Option(help="Smallest cosine of two images that look nearly the same.")] = 0.99,
    as_json: Json = False,
) -> None:
    """Check a download: the published numbers of classes and images, missing and broken files, copies in two splits or
    classes, small classes, checksums. Exit status 1 if something is wrong."""
    from cbm.data import read_dataset
    from cbm.data.verify import (
        Findings,
        label_counts,
        verify_checksums,
        verify_classes,
        verify_copies,
        verify_counts,
        verify_images,
    )

    about = schema.about_card(name)
    card = schema.change_card(schema.load_card(name), settings or [])
    card.root = card.root if root is None else str(root)
    published = {} if any(setting.startswith("args.") for setting in settings or []) else about.counts
    place, found = card.root and resolve_path(card.root), Findings()
    log.info(
        "%s: reading the lists%s", name, "" if place is None else f" in '{place}' and what they are checked against"
    )
    if place is not None:
        verify_checksums(place, about.md5, found)
    for problem in [] if as_json else found.problems:  # at once: what was not whole may not be readable
        out.print(f"wrong: {problem}")
    dataset = read_dataset(card.reader, card.name, place, dict(card.args or {}), cache)
    shown = len(found.problems)
    images = sum(map(len, dataset.splits.values()))
    log.info("%s: opening %s of %s images", name, "all" if every else "a sample", f"{images:,}")
    verify_counts(dataset, published, found)
    verify_classes(dataset, found)
    verify_images(dataset, found, every=every, progress=out.is_terminal)
    verify_copies(dataset, found, cache)
    if near:
        _look_alike(dataset, found, encoder, pretrained, similarity, cache)
    sizes = _sizes(dataset, published)
    labels = [row for split in dataset.splits for row in label_counts(dataset, split)] if dataset.task == "many" else []
    if as_json:
        said: dict[str, Any] = {"problems": found.problems, "doubts": found.doubts, "notes": found.notes}
        if labels:
            said["labels"] = labels
        show_result(None, {"name": name, "splits": sizes, **said}, as_json)
        raise typer.Exit(1 if found.problems else 0)
    _show_sizes(sizes, "label" if labels else "class")
    if labels:
        _show_labels(labels)
    for kind, sentences in (("note", found.notes), ("doubt", found.doubts), ("wrong", found.problems[shown:])):
        for sentence in sentences:
            out.print(f"{kind}: {sentence}")
    out.print(f"{name}: {found.summary()}")
    raise typer.Exit(1 if found.problems else 0)


def _sizes(dataset: "ImageDataset", published: dict[str, int]) -> list[dict[str, Any]]:
    """How many images every split has, beside the published number."""
    from cbm.data.verify import positives

    sizes = []
    for split, part in dataset.splits.items():
        counts = positives(dataset, part)
        sizes.append(
            {
                "split": split,
                "images": len(part),
                "published": published.get(split),
                "classes": int((counts > 0).sum()),
                "smallest_class": int(counts.min()),
                "largest_class": int(counts.max()),
                "concepts": len(dataset.concept_names),
            }
        )
    return sizes


def _show_sizes(sizes: list[dict[str, Any]], kind: str) -> None:
    kinds = "labels" if kind == "label" else "classes"
    table = Table("split", "images", "published", kinds, f"per {kind}", "concepts")
    for size in sizes:
        table.add_row(
            size["split"],
            f"{size['images']:,}",
            "-" if size["published"] is None else f"{size['published']:,}",
            str(size["classes"]),
            f"{size['smallest_class']:,} to {size['largest_class']:,}",
            str(size["concepts"]),
        )
    out.print(table)


def _show_labels(rows: list[dict[str, Any]]) -> None:
    """How often every label is there, and unknown."""
    table = Table("label", "split", "with it", "without it", "unknown", "prevalence")
    for row in rows:
        size = row["present"] + row["absent"] + row["unknown"]
        unknown = f"{row['unknown']:,} ({row['unknown'] / max(1, size):.0%})"
        shown = f"{row['prevalence']:.1%}"
        table.add_row(row["label"], row["split"], f"{row['present']:,}", f"{row['absent']:,}", unknown, shown)
    out.print(table)


def _look_alike(
    dataset: "ImageDataset", found: "Findings", encoder: str, pretrained: str | None, similarity: float, cache: Path
) -> None:
    """Encode all images, and compare each with all others."""
    from dataclasses import replace

    from cbm.data.encoded import encode_splits
    from cbm.data.verify import verify_likeness

    if not 0 < similarity <= 1:
        raise UserError(f"--similarity {similarity}: expected a cosine above 0, at most 1")
    tower, how = encoder_settings(encoder, pretrained, cache)
    settings = replace(how, progress=out.is_terminal)
    readable, data = encode_splits(dataset, tower, settings, tuple(dataset.splits))
    verify_likeness(readable, {split: part.x for split, part in data.splits.items()}, similarity, found)
