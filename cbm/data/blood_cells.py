"""White blood cells: two small sets from different microscopes, and the attributes of a large one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cbm.data.dataset import ConceptSpec, ImageDataset, Split, class_index
from cbm.data.fingerprints import derived
from cbm.data.images import ImageFiles
from cbm.data.lists import is_there, read_rows, whole_number
from cbm.data.readers import reader
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form
from cbm.files.pictures import ANY, open_picture

CELLS = ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"]
RARE = "basophil"  # one picture in the first set, three in the second
NUCLEUS, CELL = 192, 64  # grey values of a mask from which on; some masks are not clean
MARGIN = 0.1  # around a cell, of its size
RUN = 5  # neighbouring numbers are often of one slide: they stay in one split


@dataclass(frozen=True)
class Part:
    """One of the two sets.

    Attributes:
        label: the column of its class numbers.
        width: nominal width of an image.
        ratio: a nucleus takes a high share of a cell from this value on.
        size: a cell is big whose diameter is this share of the width.
        solidity: a nucleus is segmented if it fills less of its convex hull.
    """

    label: str
    width: int
    ratio: float
    size: float
    solidity: float


PARTS = {1: Part("class label", 120, 0.49, 0.555, 0.91), 2: Part("class", 300, 0.46, 0.546, 0.90)}
"""Cuts at which each measure tells the classes it should apart best, measured on the published masks."""
GROUPS = {
    "nuclear cytoplasmic ratio": ["nuclear cytoplasmic ratio: high", "nuclear cytoplasmic ratio: low"],
    "cell size": ["cell size: big", "cell size: small"],
    "nucleus shape": ["nucleus shape: segmented", "nucleus shape: unsegmented"],
}


RARER = {
    "cell size": "small", "cell shape": "irregular", "nuclear cytoplasmic ratio": "high",
    "chromatin density": "loosely", "cytoplasm vacuole": "yes", "cytoplasm texture": "frosted", "granularity": "no",
}  # fmt: skip
"""Of the attributes of WBCAtt with two values, the rarer one."""


class MaskedCells(ImageFiles):
    """Images cut to the cell that a mask (same name, ``.png``) shows, and made square with their background."""

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The cell as RGB; always from all pixels, as many as the mask has."""
        picture = super().open(row)
        cell = read_mask(self.root / self.names[row]) >= CELL
        if cell.shape != (picture.height, picture.width):
            raise OSError(f"the mask of '{self.names[row]}' has another size")
        pixels = np.asarray(picture)
        background = np.median(pixels[~cell], axis=0) if (~cell).any() else np.full(3, 255)
        rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
        if not len(rows):
            return picture
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        side = int(np.ceil(max(height, width) * (1 + 2 * MARGIN)))
        top, left = rows[0] - (side - height) // 2, columns[0] - (side - width) // 2
        square = Image.new("RGB", (side, side), tuple(background.astype(np.uint8).tolist()))
        square.paste(picture, (-int(left), -int(top)))
        return square

    def take(self, rows: Sequence[int]) -> "MaskedCells":
        """The images at ``rows``."""
        return MaskedCells(self.root, [self.names[row] for row in rows])

    def fingerprints(self, cache: Path) -> list[str]:
        """Fingerprints of image and mask together, since both decide what is encoded."""
        masks = ImageFiles(self.root, [str(Path(name).with_suffix(".png")) for name in self.names])
        pairs = zip(super().fingerprints(cache), masks.fingerprints(cache))
        return [derived(a, b, "cell") for a, b in pairs]

    def looks(self, cache: Path) -> np.ndarray:
        """How every image is read, always in full."""
        return super().looks(cache).clip(max=ANY)


def read_mask(picture: Path) -> np.ndarray:
    """Grey values ``[H, W]`` of the mask beside an image: 255 nucleus, 128 cytoplasm, 0 neither."""
    return np.asarray(open_picture(picture.with_suffix(".png")).convert("L"))


def measure(mask: np.ndarray, part: Part) -> list[float]:
    """What a mask says about the concepts of ``GROUPS``, in their order: 1, 0, or NaN where there is no nucleus."""
    nucleus, cell = mask >= NUCLEUS, mask >= CELL
    if not nucleus.any():
        return [np.nan] * 6
    diameter = 2 * np.sqrt(cell.sum() / np.pi)
    high = nucleus.sum() / cell.sum() >= part.ratio
    big = diameter / part.width >= part.size
    segmented = solidity(nucleus) < part.solidity
    return [float(value) for found in (high, big, segmented) for value in (found, not found)]


def solidity(shape: np.ndarray) -> float:
    """Area of a shape ``[H, W]`` bool as a share of its convex hull's."""
    from scipy.spatial import ConvexHull, QhullError

    y, x = np.nonzero(shape)
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    try:
        return float(len(x) / ConvexHull(corners).volume)
    except QhullError:
        return 1.0


@reader("wbc")
def read_wbc(name: str, root: Path, part: int = 1, role: str = "source", basophils: bool = False) -> ImageDataset:
    """The two sets of Zheng et al. (Micron 107, 2018), unpacked: ``Dataset 1/``, ``Dataset 2/`` and their class labels.

    Concepts are measured in the masks. ``role=source`` divides 60/20/20 by runs of five neighbouring numbers;
    ``role=target`` has no training images: all are for testing, and for a few labels.
    """
    if part not in PARTS:
        raise UserError(f"dataset.args.part={part}: choose 1 or 2")
    if role not in ("source", "target"):
        raise UserError(f"dataset.args.role={role}: {did_you_mean(role, ('source', 'target'))}")
    table = root / f"Class Labels of Dataset {part}.csv"
    rows = read_rows(name, table, ["image ID", PARTS[part].label])
    numbers, labels = [], []
    for line, row in enumerate(rows, start=2):
        number, label = (row[key].strip() for key in ("image ID", PARTS[part].label))
        if whole_number(number) < 0 or label not in ("1", "2", "3", "4", "5"):
            raise UserError(f"'{table}' line {line}: expected the number of an image and of a class (1 to 5)")
        if basophils or CELLS[int(label) - 1] != RARE:
            numbers.append(int(number))
            labels.append(CELLS[int(label) - 1])
    files = [f"Dataset {part}/{number:03d}.bmp" for number in numbers]
    for file in files:
        for needed in (root / file, (root / file).with_suffix(".png")):
            if not needed.is_file():
                raise UserError(
                    f"data set '{name}': '{table.name}' names '{needed.relative_to(root)}', which is not there"
                )
    classes = [cell for cell in CELLS if cell in set(labels)]
    concepts = np.array([_measured(name, root / file, PARTS[part]) for file in files], dtype=np.float32)
    whole = Split(MaskedCells(root, files), class_index(labels, classes), concepts)
    every = np.arange(len(whole))
    splits = {"val": whole.take(every), "test": whole.take(every)}
    if role == "source":
        part_of = divide_runs((np.array(numbers) - 1) // RUN, whole.labels)
        splits = {split: whole.take(np.flatnonzero(part_of == split)) for split in ("train", "val", "test")}
    return ImageDataset(name, classes, splits, [text for group in GROUPS.values() for text in group], GROUPS)


def _measured(name: str, picture: Path, part: Part) -> list[float]:
    try:
        return measure(read_mask(picture), part)
    except Exception as error:  # a broken file can make a decoder raise anything
        raise UserError(f"data set '{name}': the mask of '{picture}' cannot be read: {error}") from error


def divide_runs(run: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Names of splits ``[N]``, 60/20/20, the same for all images of a run; rare classes are divided first."""
    turns = np.array(["train", "val", "test", "train", "train"], dtype=object)
    generator, found = np.random.default_rng(0), np.full(len(run), "", dtype=object)
    for label in np.argsort(np.bincount(labels), kind="stable"):
        open_runs = generator.permutation(np.unique(run[(labels == label) & (found == "")]))
        for number, one in enumerate(open_runs):
            found[run == one] = turns[number % len(turns)]
    return found


@reader("wbcatt")
def read_wbcatt(
    name: str, root: Path, annotations: str = ".", task: str = "cells", labels: list[str] | None = None
) -> ImageDataset:
    """WBCAtt (Tsutsui et al., NeurIPS 2023): eleven attributes of the blood cells of Acevedo et al. (2020).

    ``annotations`` is the folder of ``pbc_attr_v1_{train,val,test}.csv``, seen from the root; their ``path`` column
    says where an image is under the root. A concept is an attribute's value; those of an attribute exclude each other.

    ``task=cells``: the classes are kinds of cells. ``task=attributes``: attributes are labels, any number an image:
    those of two values, or ``labels`` (an attribute of two values, or a value such as ``granule colour: pink``). What
    is a label is no concept, with all values of its attribute; the other attributes are categorical concepts.
    """
    if task not in ("cells", "attributes"):
        raise UserError(f"dataset.args.task={task}: {did_you_mean(task, ('cells', 'attributes'))}")
    parts = {split: root / annotations / f"pbc_attr_v1_{split}.csv" for split in ("train", "val", "test")}
    needed = ["img_name", "label", "path"]
    attributes = [key for key in read_rows(name, parts["train"], needed)[0] if key not in needed]
    tables = {split: read_rows(name, file, [*needed, *attributes]) for split, file in parts.items()}
    everything = [row for rows in tables.values() for row in rows]
    values = {key: sorted({row[key] for row in everything}) for key in attributes}
    groups = {_words(key): [f"{_words(key)}: {value}" for value in values[key]] for key in attributes}
    classes = sorted({row["label"] for row in everything})
    splits = {}
    for split, rows in tables.items():
        if absent := [row["path"] for row in rows if not is_there(root / row["path"])]:
            raise UserError(
                f"data set '{name}': '{parts[split].name}' names {len(absent)} picture(s) that are not there, first: "
                f"'{absent[0]}' (is dataset.root the folder that holds PBC_dataset_normal_DIB?)"
            )
        shown = [[float(row[key] == value) for key in attributes for value in values[key]] for row in rows]
        pictures = ImageFiles(root, [row["path"] for row in rows])
        numbers = class_index([row["label"] for row in rows], classes)
        splits[split] = Split(pictures, numbers, np.array(shown, dtype=np.float32))
    cells = ImageDataset(name, classes, splits, [text for group in groups.values() for text in group], groups)
    return cells if task == "cells" and labels is None else attributes_as_labels(cells, labels)


def attributes_as_labels(cells: ImageDataset, wanted: Sequence[str] | None = None) -> ImageDataset:
    """The data set with some of its attributes as labels, and the others as categorical concepts.

    Args:
        cells: a data set all of whose concepts stand in groups.
        wanted: attributes of two values, or single values; by default all attributes of two values.

    Raises:
        UserError: there is no such attribute or value, or all of them are labels.
    """
    groups, names = cells.concept_groups, cells.concept_names
    pairs = {group: _positive(group, members) for group, members in groups.items() if len(members) == 2}
    chosen: list[str] = []
    for label in pairs if wanted is None else wanted:
        text = pairs.get(one_form(label), one_form(label))
        if text not in names:
            more = f"name a value ({', '.join(groups[text])})" if text in groups else ""
            near = did_you_mean(text, [*pairs, *names])
            raise UserError(f"dataset.args.labels=[{label}]: '{cells.name}' has no such attribute; {more or near}")
        if text not in chosen:
            chosen.append(text)
    if not chosen:
        raise UserError(f"data set '{cells.name}' has no attribute of two values: say dataset.args.labels=[...]")
    rest = {group: members for group, members in groups.items() if not set(members) & set(chosen)}
    if not rest:
        raise UserError(f"data set '{cells.name}': all attributes are labels, and none is left as a concept")
    shown = [text for members in rest.values() for text in members]
    splits = {}
    for split, part in cells.splits.items():
        assert part.concepts is not None
        y, concepts = (part.concepts[:, [names.index(text) for text in each]] for each in (chosen, shown))
        splits[split] = replace(part, labels=y, concepts=concepts)
    specs = [
        ConceptSpec(group, "categorical", members, [text.removeprefix(f"{group}: ") for text in members])
        for group, members in rest.items()
    ]
    return replace(
        cells,
        classes=chosen,
        splits=splits,
        concept_names=shown,
        concept_groups=rest,
        task="many",
        specs=specs,
        template="a microscope picture of a white blood cell, {}.",
        negative_template="a microscope picture of a white blood cell, not {}.",
    )


def _positive(group: str, members: list[str]) -> str:
    """Which value of an attribute of two is the label: the rarer one of WBCAtt, or else the last."""
    return next((text for text in members if text == f"{group}: {RARER.get(group)}"), members[-1])


def _words(key: str) -> str:
    return key.replace("_", " ")
