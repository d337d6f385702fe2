"""Skin lesions and diseases: HAM10000, and two sets with the concepts dermatologists use."""

import logging
from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.images import ImageFiles, list_names
from cbm.data.lists import UNPACKED, find_root, listed_split, missing_files, read_rows, spoken, whole_number
from cbm.data.readers import reader
from cbm.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

DIAGNOSES = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}


@reader("ham10000")
def read_ham10000(name: str, root: Path) -> ImageDataset:
    """HAM10000 (Tschandl et al., 2018): ``HAM10000_metadata.csv``, ``HAM10000_images_part_{1,2}/*.jpg``.

    10,015 images of 7,470 lesions: images of one lesion stay in one split.
    """
    bare = root / "HAM10000_metadata"  # as Harvard's archive names it
    table = bare if bare.is_file() else root / "HAM10000_metadata.csv"
    rows = read_rows(name, table, ["lesion_id", "image_id", "dx"])
    folder_of: dict[str, str] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and "images" in path.name.lower()):
        for file in list_names(folder):
            folder_of.setdefault(file, folder.name)  # Kaggle's archive holds every picture twice
    if not folder_of:
        raise UserError(f"data set '{name}': no folder HAM10000_images_part_1 in '{root}' {UNPACKED}")
    for line, row in enumerate(rows, start=2):
        if row["dx"] not in DIAGNOSES:
            raise UserError(f"'{table}' line {line}: dx is '{row['dx']}', {did_you_mean(row['dx'], DIAGNOSES)}")
    files = [f"{row['image_id']}.jpg" for row in rows]
    files = [f"{folder_of[file]}/{file}" if file in folder_of else file for file in files]
    labels = class_index([row["dx"] for row in rows], list(DIAGNOSES))
    lesions = np.array([row["lesion_id"] for row in rows])
    train = listed_split(name, root, files, labels, table.name, subjects=lesions)
    return ImageDataset(name, list(DIAGNOSES.values()), {"train": train})


NOT_CONCEPTS = {"", "ImageID", "Do not consider this image"}


@reader("skincon")
def read_skincon(name: str, root: Path, label: str = "three_partition_label", min_pictures: int = 50) -> ImageDataset:
    """SkinCon (Daneshjou et al., NeurIPS 2022): 48 clinical concepts in images of Fitzpatrick17k (Groh et al., 2021).

    ``annotations_fitzpatrick17k.csv`` beside ``fitzpatrick17k.csv`` and a folder of images ``MD5HASH.jpg``. Only
    concepts of ``min_pictures`` images or more are kept (the paper keeps 22 of them). Many of the images have
    vanished from the web: those that are not there are left out, and said.
    """
    levels = ("three_partition_label", "nine_partition_label", "label")
    if label not in levels:
        raise UserError(f"dataset.args.label={label}: {did_you_mean(label, levels)}")
    rows = read_rows(name, root / "annotations_fitzpatrick17k.csv", ["ImageID"])
    concepts = [column for column in rows[0] if column not in NOT_CONCEPTS]
    diagnosis = {row["md5hash"]: row[label] for row in read_rows(name, root / "fitzpatrick17k.csv", ["md5hash", label])}
    rows = [row for row in rows if row.get("Do not consider this image") not in ("1", "1.0")]
    if unknown := [row["ImageID"] for row in rows if row["ImageID"].removesuffix(".jpg") not in diagnosis]:
        raise UserError(f"data set '{name}': fitzpatrick17k.csv does not know the picture '{unknown[0]}'")
    folders = ["images", "finalfitz17k", "data/finalfitz17k", "fitzpatrick17k_images"]
    folder = next((each for each in folders if (root / each).is_dir()), None)
    if folder is None:
        raise UserError(f"data set '{name}': no folder of pictures in '{root}': expected {' or '.join(folders)}")
    shown = np.array([[_mark(row, concept) for concept in concepts] for row in rows], dtype=np.float32)
    shown = shown.reshape(len(rows), len(concepts))
    kept = np.flatnonzero(np.nansum(shown, axis=0) >= min_pictures)  # whatever has vanished, the same concepts
    if not len(kept):
        raise UserError(f"dataset.args.min_pictures={min_pictures}: no concept of '{name}' is in so many pictures")
    lost = set(missing_files(root / folder, [row["ImageID"] for row in rows]))
    if lost:
        log.warning("%s: %d of %d annotated pictures are not there and are left out", name, len(lost), len(rows))
    here = np.array([i for i, row in enumerate(rows) if row["ImageID"] not in lost], dtype=np.int64)
    files = [rows[i]["ImageID"] for i in here]
    said = [diagnosis[file.removesuffix(".jpg")] for file in files]
    classes = sorted(set(said))
    images = ImageFiles(root, [f"{folder}/{file}" for file in files])
    train = Split(images, class_index(said, classes), shown[np.ix_(here, kept)])
    names = [concepts[k].replace("(", " (").lower() for k in kept]
    return ImageDataset(name, classes, {"train": train}, names)


def _mark(row: dict[str, str], concept: str) -> float:
    try:
        return float(row[concept]) if row[concept] else np.nan
    except ValueError as error:
        raise UserError(
            f"annotations_fitzpatrick17k.csv: '{concept}' of '{row['ImageID']}' is '{row[concept]}', expected 0 or 1"
        ) from error


CRITERIA = {
    "pigment_network": ("absent", "typical", "atypical"),
    "blue_whitish_veil": ("absent", "present"),
    "vascular_structures": (
        "absent", "arborizing", "comma", "hairpin", "within regression", "wreath", "dotted", "linear irregular",
    ),
    "pigmentation": (
        "absent", "diffuse regular", "localized regular", "diffuse irregular", "localized irregular",
    ),
    "streaks": ("absent", "regular", "irregular"),
    "dots_and_globules": ("absent", "regular", "irregular"),
    "regression_structures": ("absent", "blue areas", "white areas", "combinations"),
}  # fmt: skip
"""The seven points of the checklist and what each may be."""
MISCELLANEOUS = ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion")


@reader("derm7pt")
def read_derm7pt(name: str, root: Path, task: str = "diagnosis", image: str = "derm") -> ImageDataset:
    """Seven-point checklist (Kawahara et al., 2018): ``images/``, ``meta/meta.csv``, ``meta/train_indexes.csv``, ...

    A concept is the value of a criterion; those of a criterion exclude each other. ``task=diagnosis``: the paper's five
    groups of diagnoses; ``task=melanoma``: nevi and melanomas alone. ``image=derm`` is the dermoscopic image of a
    case, ``image=clinic`` the other one.
    """
    for setting, value, allowed in (
        ("task", task, ("diagnosis", "melanoma")),
        ("image", image, ("derm", "clinic")),
    ):
        if value not in allowed:
            raise UserError(f"dataset.args.{setting}={value}: {did_you_mean(value, allowed)}")
    root = find_root(name, root, ["images", "meta"], [".", "release_v0"])
    rows = read_rows(name, root / "meta/meta.csv", ["diagnosis", image, *CRITERIA])
    groups = {spoken(key): [f"{spoken(key)}: {value}" for value in values] for key, values in CRITERIA.items()}
    for line, row in enumerate(rows, start=2):
        for key, values in CRITERIA.items():
            if row[key] not in values:
                raise UserError(f"'meta.csv' line {line}: {key} is '{row[key]}', {did_you_mean(row[key], values)}")
    shown = np.array(
        [[row[key] == value for key, values in CRITERIA.items() for value in values] for row in rows], np.float32
    )
    said = [_group(row["diagnosis"]) for row in rows]
    classes = sorted(set(said) if task == "diagnosis" else {"melanoma", "nevus"})
    splits = {}
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        source = f"meta/{part}_indexes.csv"
        index = _case_rows(name, root / source, len(rows))
        index = index[[said[i] in classes for i in index]]
        files = [f"images/{rows[i][image]}" for i in index]
        labels = class_index([said[i] for i in index], classes)
        splits[split] = listed_split(name, root, files, labels, "meta/meta.csv", concepts=shown[index])
    return ImageDataset(name, classes, splits, [text for group in groups.values() for text in group], groups)


def _case_rows(name: str, file: Path, count: int) -> np.ndarray:
    """Rows of ``meta.csv``, counted from 0."""
    numbers = [row["indexes"] for row in read_rows(name, file, ["indexes"])]
    if bad := [number for number in numbers if not 0 <= whole_number(number) < count]:
        raise UserError(f"'{file}': '{bad[0]}' is no row of meta.csv (0 to {count - 1})")
    return np.array(numbers, dtype=np.int64)


def _group(diagnosis: str) -> str:
    for group in ("nevus", "melanoma"):
        if group in diagnosis:
            return group
    return "miscellaneous lesion" if diagnosis in MISCELLANEOUS else diagnosis
