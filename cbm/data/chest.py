"""Chest radiographs with several findings each: CheXpert and ChestX-ray14."""

import logging
import re
from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split
from cbm.data.images import list_names
from cbm.data.labels import BLANK, UNSURE, as_number, choose_labels, listed, parts_of, settle
from cbm.data.lists import UNPACKED, find_root, listed_split, read_lines, read_rows, spoken
from cbm.data.readers import reader
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form

log = logging.getLogger(__name__)

CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
NIH = [
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
]  # fmt: skip
CELLS: dict[float | None, float] = {1.0: 1.0, 0.0: 0.0, -1.0: UNSURE}
"""What a number in CheXpert means."""
WRITTEN = {"1.0": 1.0, "0.0": 0.0, "-1.0": UNSURE, "": BLANK}
"""The same as it is written there, three million times."""
WITHOUT = "a chest radiograph without {}."
MINED = (
    "labels were mined from the text of radiology reports by a program, not read off the images: some are wrong, and "
    "what a report does not mention is taken for absent"
)


@reader("chexpert")
def read_chexpert(
    name: str,
    root: Path,
    view: str = "frontal",
    unknown: str = "ignore",
    blank: str = "ignore",
    keep: list[str] | None = None,
    drop: list[str] | None = None,
    seed: int = 0,
) -> ImageDataset:
    """CheXpert (Irvin et al., AAAI 2019), unpacked: ``train.csv``, ``valid.csv`` (or ``CheXpert-v1.0-small/...``).

    A finding is 1, 0, -1 (the report is unsure) or blank (the report does not mention it). The labels of the published
    test set came later: without a ``test.csv`` the images of ``valid.csv``, which three radiologists labelled, are the
    split ``test``, as in most papers, and a validation split is held out of the training patients.

    Args:
        name: name of the data set.
        root: folder of the tables.
        view: ``frontal`` or ``lateral`` images, or ``all``.
        unknown: what -1 is taken for: ``ignore``, ``absent`` (U-Zeros), ``present`` (U-Ones), or ``soft``.
        blank: what a blank is taken for; ``absent`` in the published baselines.
        keep: the findings that are taken; by default all 14.
        drop: findings that are left out.
        seed: random seed of the targets that ``soft`` draws.

    Raises:
        UserError: files are missing or damaged, or a setting is out of range.
    """
    if view not in ("frontal", "lateral", "all"):
        raise UserError(f"dataset.args.view={view}: {did_you_mean(view, ('frontal', 'lateral', 'all'))}")
    root = find_root(name, root, ["train.csv", "valid.csv"], [".", "CheXpert-v1.0-small", "CheXpert-v1.0"])
    tables = {"train": "train.csv", "test": "valid.csv"}
    if (root / "test.csv").is_file():
        tables = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
    groups = {"sex": ["Female", "Male"], "view": ["AP", "PA", "lateral"]}
    splits = {
        split: _of_table(name, root / table, view, groups, (unknown, blank, seed)) for split, table in tables.items()
    }
    dataset = ImageDataset(
        name,
        list(CHEXPERT),
        splits,
        subject="patient",
        group_names=groups,
        doubts=[MINED],
        task="many",
        negative_template=WITHOUT,
    )
    return choose_labels(dataset, keep, drop)


def _of_table(name: str, table: Path, view: str, groups: dict[str, list[str]], policies: tuple[str, str, int]) -> Split:
    """The images of one table of CheXpert."""
    rows = read_rows(name, table, ["Path", *CHEXPERT])
    files, patients, values = [], [], []
    said: dict[str, list[int]] = {group: [] for group in groups}
    for line, row in enumerate(rows, start=2):
        # CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg
        found = re.search(r"(?:^|/)((?:train|valid|test)/(patient\d+)/.+)$", row["Path"].strip())
        if found is None:
            raise UserError(
                f"'{table}' line {line}: Path is '{row['Path']}', expected "
                ".../train/patient00001/study1/view1_frontal.jpg"
            )
        lateral = (row.get("Frontal/Lateral") or _view_of(found[1])).strip().casefold() == "lateral"
        if view != "all" and lateral != (view == "lateral"):
            continue
        files.append(found[1])
        patients.append(found[2])
        values.append([_finding(table, line, finding, row[finding]) for finding in CHEXPERT])
        shown = "lateral" if lateral else (row.get("AP/PA") or "").strip()
        for group, value in (("sex", (row.get("Sex") or "").strip()), ("view", shown)):
            said[group].append(groups[group].index(value) if value in groups[group] else -1)
    if not files:
        raise UserError(f"'{table}' has no {view} images")
    labels = settle(np.array(values), *policies)
    split = listed_split(name, table.parent, files, np.zeros(len(files)), table.name, subjects=np.array(patients))
    split.labels = labels
    split.groups = {group: np.array(found, dtype=np.int64) for group, found in said.items()}
    return split


def _view_of(file: str) -> str:
    return "lateral" if "lateral" in file.rpartition("/")[2] else "frontal"


def _finding(table: Path, line: int, finding: str, cell: str) -> float:
    """What a cell of CheXpert means."""
    if cell in WRITTEN:
        return WRITTEN[cell]
    value = CELLS.get(as_number(cell)) if cell.strip() else BLANK
    if value is None:
        raise UserError(f"'{table}' line {line}: {finding} is '{cell.strip()}', expected 1.0, 0.0, -1.0 or nothing")
    return value


@reader("nih14")
def read_nih14(name: str, root: Path, keep: list[str] | None = None, drop: list[str] | None = None) -> ImageDataset:
    """ChestX-ray14 (Wang et al., CVPR 2017): ``Data_Entry_2017.csv``, ``train_val_list.txt``, ``test_list.txt`` and
    ``images_001/images/*.png``, ... (or ``images/*.png``).

    ``Finding Labels`` names the findings of an image (``Mass|Nodule``); ``No Finding`` means that all are absent. The
    published lists divide by patient, and a validation split is held out of the training patients.

    Args:
        name: name of the data set.
        root: folder of the tables.
        keep: the findings that are taken; by default all 14.
        drop: findings that are left out.

    Raises:
        UserError: files are missing or damaged.
    """
    tables = ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"]
    table = next((root / each for each in tables if (root / each).is_file()), root / tables[0])
    rows = read_rows(name, table, ["Image Index", "Finding Labels", "Patient ID"])
    place: dict[str, str] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name.startswith("images")):
        for file in list_names(folder):
            place.setdefault(file.rpartition("/")[2], f"{folder.name}/{file}")
    if not place:
        raise UserError(f"data set '{name}': no folder images_001 or images with pictures in '{root}' {UNPACKED}")
    at, cells = dict[str, int](), []
    for line, row in enumerate(rows, start=2):
        cells.append(cell := one_form(row["Finding Labels"]))
        if not cell or (cell != "No Finding" and (odd := [each for each in parts_of(cell, "|") if each not in NIH])):
            found = odd[0] if cell else ""
            raise UserError(f"'{table}' line {line}: the finding '{found}' is unknown, {did_you_mean(found, NIH)}")
        if at.setdefault(row["Image Index"], line - 2) != line - 2:
            raise UserError(f"'{table}' line {line}: '{row['Image Index']}' stands twice")
    labels = listed(cells, "|", "No Finding", NIH).astype(np.float32)
    patients = np.array([row["Patient ID"].strip() for row in rows])
    groups = {"sex": ["F", "M"], "view": ["AP", "PA"]}
    columns = {"sex": "Patient Gender", "view": "View Position"}
    splits: dict[str, Split] = {}
    seen: set[str] = set()
    for split, source in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
        names = [words[0] for _, words in read_lines(name, root / source)]
        if unlisted := [each for each in names if each not in at]:
            raise UserError(f"data set '{name}': '{source}' names '{unlisted[0]}', which '{table.name}' does not know")
        if both := sorted(seen & set(names)):
            raise UserError(f"data set '{name}': '{both[0]}' is in train_val_list.txt and in test_list.txt")
        seen |= set(names)
        index = np.array([at[each] for each in names], dtype=np.int64)
        files = [place.get(each, each) for each in names]
        part = listed_split(name, root, files, np.zeros(len(files)), source, subjects=patients[index])
        part.labels = labels[index]
        said = {group: [(rows[i].get(column) or "").strip() for i in index] for group, column in columns.items()}
        part.groups = {
            group: np.array([groups[group].index(v) if v in groups[group] else -1 for v in values], dtype=np.int64)
            for group, values in said.items()
        }
        splits[split] = part
    if lost := len(rows) - len(seen):
        log.info("%s: %d image(s) of '%s' are in neither list", name, lost, table.name)
    dataset = ImageDataset(
        name,
        [spoken(finding) for finding in NIH],
        splits,
        subject="patient",
        group_names=groups,
        doubts=[MINED],
        task="many",
        negative_template=WITHOUT,
    )
    return choose_labels(dataset, keep, drop)
