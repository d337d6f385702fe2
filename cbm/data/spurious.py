"""Sets whose background goes with the class in training, but not in test: Waterbirds and MetaShift."""

import logging
import re
from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.images import ImageFiles, list_names
from cbm.data.lists import UNPACKED, check_classes, find_root, listed_split, read_rows
from cbm.data.readers import reader
from cbm.errors import UserError

log = logging.getLogger(__name__)

BIRDS, PLACES = ["landbird", "waterbird"], ["land background", "water background"]


@reader("waterbirds")
def read_waterbirds(name: str, root: Path) -> ImageDataset:
    """Waterbirds (Sagawa et al., ICLR 2020): birds of CUB pasted into Places; ``metadata.csv``.

    In training 95% of the birds are where they belong; in validation and test half of each kind are.
    """
    root = find_root(name, root, ["metadata.csv"], [".", "waterbird_complete95_forest2water2"])
    rows = read_rows(name, root / "metadata.csv", ["img_filename", "y", "split", "place"])
    for line, row in enumerate(rows, start=2):
        for key, allowed in (("y", "01"), ("place", "01"), ("split", "012")):
            if row[key] not in tuple(allowed):
                raise UserError(
                    f"'metadata.csv' line {line}: {key} is '{row[key]}', expected one of {', '.join(allowed)}"
                )
    splits = {}
    for number, split in enumerate(("train", "val", "test")):
        part = [row for row in rows if row["split"] == str(number)]
        places = np.array([int(row["place"]) for row in part], dtype=np.int64)
        splits[split] = listed_split(
            name,
            root,
            [row["img_filename"] for row in part],
            [int(row["y"]) for row in part],
            "metadata.csv",
            np.eye(2, dtype=np.float32)[places],
        )
        splits[split].groups = {"background": places}
    spurious = {bird: [place] for bird, place in zip(BIRDS, PLACES)}
    groups = {"background": list(PLACES)}
    return ImageDataset(name, BIRDS, splits, PLACES, {"background": PLACES}, spurious, group_names=groups)


@reader("metashift")
def read_metashift(name: str, root: Path) -> ImageDataset:
    """MetaShift (Liang & Zou, ICLR 2022) as its script writes a shift: ``{train,test}/CLASS/CLASS(CONTEXT)/*.jpg``.

    A context is a concept: 1 where an image lies in its folder, 0 elsewhere. It is spurious for a class that it goes
    with in training more than with the others. An image's file name is its number in Visual Genome: one that lies in
    several folders of a class is taken once (in the group of the first by name), one that tests does not train.
    """
    found = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(f"data set '{name}': no folder '{root / split}' {UNPACKED}")
        found[split] = _contexts(name, root, split)
    tested = {file for _, file in found["test"]}
    if shared := [key for key in found["train"] if key[1] in tested]:
        log.warning("%s: %d training picture(s) are in test too: they do not train", name, len(shared))
        found["train"] = {key: value for key, value in found["train"].items() if key[1] not in tested}
    classes = sorted({label for label, _ in found["train"]})
    concepts = sorted({context for pictures in found.values() for _, shown in pictures.values() for context in shown})
    splits = {}
    for split, pictures in found.items():
        check_classes(name, split, {label for label, _ in pictures}, classes)
        shown = [[float(concept in contexts) for concept in concepts] for _, contexts in pictures.values()]
        splits[split] = Split(
            ImageFiles(root, [path for path, _ in pictures.values()]),
            class_index([label for label, _ in pictures], classes),
            np.array(shown, dtype=np.float32).reshape(len(pictures), len(concepts)),
        )
        first = [concepts.index(min(contexts)) for _, contexts in pictures.values()]
        splits[split].groups = {"context": np.array(first, dtype=np.int64)}
    spurious = _spurious(splits["train"], classes, concepts)
    return ImageDataset(name, classes, splits, concepts, spurious=spurious, group_names={"context": list(concepts)})


def _contexts(name: str, root: Path, split: str) -> dict[tuple[str, str], tuple[str, set[str]]]:
    """(class, file name) to the image's path and its contexts."""
    pictures: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for label in sorted(path.name for path in (root / split).iterdir() if path.is_dir()):
        for path in list_names(root / split / label):
            folder, _, file = path.rpartition("/")
            match = re.fullmatch(re.escape(label) + r"\((.+)\)", folder)
            if match is None:
                raise UserError(
                    f"data set '{name}': '{root / split / label / path}' does not lie in a context: expected "
                    f"{split}/{label}/{label}(CONTEXT)/*.jpg"
                )
            pictures.setdefault((label, file), (f"{split}/{label}/{path}", set()))[1].add(match[1])
    if not pictures:
        raise UserError(f"data set '{name}': no pictures in '{root / split}'; expected CLASS/CLASS(CONTEXT)/*.jpg")
    return pictures


def _spurious(train: Split, classes: list[str], concepts: list[str]) -> dict[str, list[str]]:
    """Contexts that are more frequent within a class than among all training images."""
    assert train.concepts is not None
    overall = train.concepts.mean(axis=0)
    found = {}
    for label, each in enumerate(classes):
        of_class = train.concepts[train.labels == label].mean(axis=0)
        found[each] = [concepts[k] for k in np.flatnonzero(of_class > overall)]
    return found
