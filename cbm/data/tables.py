"""Images that a table names, as tables are found: any separator, the usual column names, yes and no in words."""

import logging
import os
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbm.data.columns import FILE, Columns, read_columns
from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.images import ImageFiles, lead_outside
from cbm.data.labels import NO, UNKNOWN, YES, choose_labels, settle
from cbm.data.lists import is_there, missing_files
from cbm.data.readers import SPLIT_ALIASES, SPLITS, reader
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form, quoted
from cbm.files.parsing import read_json, read_table

log = logging.getLogger(__name__)

PATHS = ["path", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path",
         "image_name", "img", "img_name", "picture"]  # fmt: skip
LABELS = ["label", "class", "class_name", "classname", "label_name", "category", "target"]
SPLIT_NAMES = ["split"]


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are.

    Attributes:
        path: the image.
        label: its class; None if other columns say which labels it has.
        split: its split, or None.
        subject: what it shows (a patient), or None.
        groups: groups it belongs to (site, sex).
        concepts: concepts it shows: all other columns.
    """

    path: str
    label: str | None
    split: str | None = None
    subject: str | None = None
    groups: list[str] = field(default_factory=list)
    concepts: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One image of a table.

    Attributes:
        line: where it stands (first).
        path: as it is written.
        label: its class; empty if other columns say which labels it has.
        split: its split.
        cells: all its cells, by column.
    """

    line: int
    path: str
    label: str
    split: str
    cells: dict[str, str]


@reader("csv")
def read_csv(
    name: str,
    root: Path,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    subject: str | None = None,
    groups: list[str] | None = None,
    ignore: list[str] | None = None,
    threshold: float | None = None,
    unknown: str | None = None,
    blank: str | None = None,
    keep: list[str] | None = None,
    drop: list[str] | None = None,
    seed: int = 0,
) -> ImageDataset:
    """A table ``path,label[,split][,spurious][,one column per concept]``; paths are relative to the table.

    Cells are separated by commas, semicolons or tabs. Concept cells are 1, yes, true or 0, no, false; an empty cell is
    unknown. A ``spurious`` cell names concepts (``a; b``) that go with the image's class without belonging to it
    (``python -m cbm spurious``). A file ``groups.json`` beside the table may map a group's name to the concepts that
    exclude each other. An image that stands in several rows is taken once.

    A file ``columns.yaml`` beside the table (``cbm.data.columns``) says more: which columns are labels, so that an
    image has any number of them, and which concepts are words, levels or numbers.

    Args:
        name: name of the data set.
        root: the table, or the folder of ``images.csv``.
        path_column: column of the images; by default ``path``, or another usual name.
        label_column: column of the classes; by default ``label``, or another usual name.
        split_column: column of the splits; by default ``split``, if there is one.
        subject: column that says what belongs together (a patient, a film): its images stay in one split.
        groups: columns with groups (site, sex), which are no concepts.
        ignore: columns that are left out.
        threshold: concept cells are probabilities then, and 1 from this value on.
        unknown: what an unknown label is taken for: ``ignore``, ``absent``, ``present`` or ``soft``.
        blank: the same for an empty cell.
        keep: the labels that are taken; by default all.
        drop: labels that are left out.
        seed: random seed of the targets that ``soft`` draws.

    Raises:
        UserError: the table cannot be read, lacks a column, or has a wrong entry.
    """
    table = root / "images.csv" if root.is_dir() else root
    if not table.is_file():
        raise UserError(f"data set '{name}': no table '{table}' (a CSV file with columns path,label)")
    columns, records = _read(table)
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"dataset.args.threshold={threshold:g}: expected a probability above 0, up to 1")
    sidecar = table.parent / FILE
    described = read_columns(sidecar, columns, table) if sidecar.exists() else None
    subject = described.subject if described is not None and subject is None else subject
    groups = described.groups if described is not None and groups is None else groups
    settings = {"path": path_column, "label": label_column, "split": split_column, "subject": subject}
    roles = _roles(table, columns, settings, _listed(groups), _listed(ignore), described)
    many = roles.label is None
    given = {"unknown": unknown, "blank": blank, "keep": keep, "drop": drop}
    for setting, value in given.items() if not many else ():
        if value is not None:
            raise UserError(f"dataset.args.{setting} is for labels: say in '{sidecar}' which columns they are")
    if described is not None and threshold is not None:
        raise UserError(f"dataset.args.threshold={threshold:g}: '{sidecar}' says what the cells mean")
    if not (rows := _rows(table, records, roles)):
        raise UserError(f"'{table}' has no rows")
    concepts = list(roles.concepts) if described is None else described.concept_names()
    dataset = ImageDataset(name, sorted({row.label for row in rows}), {}, concepts)
    rows = _merged(table, rows, roles, dataset)
    _find_files(table, rows)
    place, named = os.fspath(table.parent), [row.path for row in rows]
    odd = [name for name in named if ".." in name or os.path.isabs(name) or os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH117, PTH118
    if said := lead_outside(table.parent, odd):
        dataset.doubts.append(said)
    cells = [row.cells for row in rows]
    shown = described.concept_values(table, cells) if described is not None and concepts else None
    if described is not None and many:
        dataset.task = "many"
        dataset.template, dataset.negative_template = described.template, described.negative_template
        dataset.classes, found = described.label_values(table, cells)
        labels = settle(found, unknown or "ignore", blank or described.blank, seed)
    else:
        labels = class_index([row.label for row in rows], dataset.classes)
    for split in SPLITS:
        at = np.array([number for number, row in enumerate(rows) if row.split == split], dtype=np.int64)
        if part := [rows[number] for number in at]:
            values = None if shown is None else shown[at]
            if described is None and roles.concepts:
                values = _concept_values(part, roles.concepts, table, threshold)
            images = ImageFiles(table.parent, [row.path for row in part])
            dataset.splits[split] = Split(images, labels[at], values)
            _add_columns(dataset, split, [row.cells for row in part], roles.subject, roles.groups, table)
    groups_file = table.parent / "groups.json"
    dataset.concept_groups = _groups(groups_file, concepts) if groups_file.is_file() else {}
    if described is not None:
        dataset.concept_groups |= described.concept_groups()
        dataset.specs = described.specs()
    if many:
        return choose_labels(dataset, keep, drop)
    for row in rows:
        for concept in filter(None, map(one_form, (row.cells.get("spurious") or "").split(";"))):
            if concept not in dataset.spurious.setdefault(row.label, []):
                dataset.spurious[row.label].append(concept)
    return dataset


def columns_beside(
    dataset: ImageDataset, root: Path, table: Path, subject: str | None, groups: Sequence[str] | None
) -> None:
    """Fill the subjects and groups of a data set from a table that names its images.

    Args:
        dataset: the data set, whose images are files.
        root: their folder; the table's paths are seen from there.
        table: CSV file with a column for the images.
        subject: column of the subjects, or None.
        groups: columns of the groups.

    Raises:
        UserError: no such table or column, or an image without a row.
    """
    if not table.is_file():
        raise UserError(
            f"data set '{dataset.name}': no table '{table}', which should say the "
            f"{'subject' if subject else 'groups'} of each image (columns path,{subject or 'site'}); "
            "dataset.args.table=FILE says where it is, dataset.args.subject_pattern=REGEX reads subjects from paths"
        )
    columns, records = _read(table)
    path = _column(table, columns, "path", None, PATHS)
    groups = _listed(groups)
    for column in [*([subject] if subject else []), *groups]:
        _check_column(table, columns, "subject" if column == subject else "groups", column)
    by_path = {_key(root, record[path]): record for record in records}
    for split, part in dataset.splits.items():
        cells = [by_path.get(_key(root, file)) for file in part.images.names]
        if lost := [file for file, found in zip(part.images.names, cells) if found is None]:
            raise UserError(f"'{table}' has no row for {len(lost):,} image(s), first '{lost[0]}'")
        _add_columns(dataset, split, [found for found in cells if found is not None], subject, groups, table)


def _read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """``read_table`` with the columns' names in one form.

    Raises:
        UserError: as there, or two columns have the same name then.
    """
    columns, records = read_table(table)
    clean = [one_form(column) for column in columns]
    if clean == columns:
        return columns, records
    if twice := [name for number, name in enumerate(clean) if name and name in clean[:number]]:
        raise UserError(f"'{table}' has two columns '{twice[0]}'")
    return clean, [{new: record[old] for new, old in zip(clean, columns)} for record in records]


def _listed(value: Any) -> list[str]:
    """A setting that is a name or several."""
    return [] if value is None else [one_form(value)] if isinstance(value, str) else [one_form(str(v)) for v in value]


def _roles(
    table: Path,
    columns: list[str],
    settings: dict[str, str | None],
    groups: list[str],
    ignore: list[str],
    said: Columns | None = None,
) -> Roles:
    """What every column is, by settings, by the usual names, and by ``columns.yaml`` if there is one."""
    path = _column(table, columns, "path", settings["path"], PATHS)
    label = None
    if said is None or not said.many:
        label = _column(table, columns, "label", settings["label"], LABELS)
    elif settings["label"] is not None:
        raise UserError(f"dataset.args.label_column={settings['label']}: '{said.file}' says which columns are labels")
    split = _usual(columns, SPLIT_NAMES)
    for setting, named in (("split_column", settings["split"]), ("subject", settings["subject"])):
        if named is not None:
            _check_column(table, columns, setting, named)
    for setting, several in (("groups", groups), ("ignore", ignore)):
        for column in several:
            _check_column(table, columns, setting, column)
    subject, split = settings["subject"], settings["split"] or split
    if said is not None:
        return Roles(path, label, split, subject, groups, said.used)
    taken = {path, label, split, subject, "spurious", *groups, *ignore}
    concepts = [column for column in columns if column and column not in taken and not column.startswith("Unnamed:")]
    return Roles(path, label, split, subject, groups, concepts)


def _column(table: Path, columns: list[str], role: str, named: str | None, usual: list[str]) -> str:
    """The column of the images or the classes."""
    if named is not None:
        _check_column(table, columns, f"{role}_column", named)
        return named
    if (found := _usual(columns, usual)) is None:
        near = did_you_mean(role, columns)
        raise UserError(
            f"'{table}' has no column '{role}' (columns: {', '.join(columns) or 'none'}): say "
            f"dataset.args.{role}_column=COLUMN; {near}".rstrip("; ")
        )
    return found


def _usual(columns: list[str], usual: list[str]) -> str | None:
    """The first of the usual names that is a column, in whatever case."""
    here = {one_form(column).casefold(): column for column in reversed(columns)}
    return next((here[name] for name in usual if name in here), None)


def _check_column(table: Path, columns: list[str], setting: str, column: str) -> None:
    if column not in columns:
        near = did_you_mean(column, columns)
        raise UserError(f"dataset.args.{setting}={column}: '{table}' has no such column; {near}".rstrip("; "))


def _rows(table: Path, records: list[dict[str, str]], roles: Roles) -> list[Row]:
    rows = []
    for line, record in enumerate(records, start=2):
        if not any(cell.strip() for cell in record.values()):  # Excel's ",,,"
            continue
        path, label = record[roles.path].strip(), one_form(record[roles.label]) if roles.label else ""
        if not path or (roles.label and not label):
            named = f"{roles.path} and {roles.label}" if roles.label else roles.path
            raise UserError(f"'{table}' line {line}: {named} must not be empty")
        said = (record.get(roles.split) or "train") if roles.split else "train"
        split = SPLIT_ALIASES.get(one_form(said).lower(), one_form(said).lower())
        if split not in SPLITS:
            raise UserError(f"'{table}' line {line}: unknown split '{said}', choose one of {', '.join(SPLITS)}")
        rows.append(Row(line, path, label, split, record))
    return rows


def _key(root: Path, path: str) -> str:
    """A file's path from the root in one spelling, to be compared."""
    path = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    if path.startswith("/") or Path(path).is_absolute():
        with suppress(ValueError):  # Windows: it is on another drive
            path = os.path.relpath(path, root.absolute()).replace(os.sep, "/")
    return posixpath.normpath(path)


def _merged(table: Path, rows: list[Row], roles: Roles, dataset: ImageDataset) -> list[Row]:
    """Every image once in every split; what several rows say about one is put together.

    Raises:
        UserError: an image has two classes, or two values of a concept, subject or group.
    """
    by_key: dict[str, list[Row]] = {}
    for row in rows:
        by_key.setdefault(_key(table.parent, row.path), []).append(row)
    several = [found for found in by_key.values() if len(found) > 1]
    if not several:
        return rows
    if torn := [found for found in several if len({row.label for row in found}) > 1]:
        first, other = torn[0][0], next(row for row in torn[0] if row.label != torn[0][0].label)
        raise UserError(
            f"'{table}': {len(torn):,} image(s) have more than one class, first '{first.path}': '{first.label}' in "
            f"line {first.line}, '{other.label}' in line {other.line}"
        )
    kept: list[Row] = []
    for found in by_key.values():
        by_split = {row.split: row for row in reversed(found)}  # of each the first
        for row in found:
            _fill(table, by_split[row.split], row, roles)
        kept += by_split.values()
    if shared := [found for found in several if len({row.split for row in found}) > 1]:
        first, other = shared[0][0], next(row for row in shared[0] if row.split != shared[0][0].split)
        later, sooner = sorted((first.split, other.split), key=SPLITS.index, reverse=True)
        dataset.faults.append(
            f"{len(shared):,} picture(s) of {later} are in {sooner} too: '{first.path}' (lines {first.line} and "
            f"{other.line} of '{table}'){', ...' if len(shared) > 1 else ''}"
        )
    again = len(rows) - len(kept)
    if again:
        first = next(found[0] for found in several if len({row.split for row in found}) < len(found))
        dataset.doubts.append(f"{again:,} row(s) name an image once more, first '{first.path}': it is taken once")
    return sorted(kept, key=lambda row: row.line)


def _fill(table: Path, row: Row, again: Row, roles: Roles) -> None:
    """Add what another row says about the same image.

    Raises:
        UserError: it says something else.
    """
    for column in [*roles.concepts, *roles.groups, *([roles.subject] if roles.subject else []), "spurious"]:
        old, new = (one_form(each.cells.get(column) or "") for each in (row, again))
        if old and new and _meaning(old) != _meaning(new):
            raise UserError(
                f"'{table}': '{row.path}' stands twice, and column '{column}' is '{old}' in line {row.line}, '{new}' "
                f"in line {again.line}"
            )
        if new and not old:
            row.cells[column] = new


def _meaning(cell: str) -> str:
    cell = cell.casefold()
    return "1" if cell in YES else "0" if cell in NO else cell


def _find_files(table: Path, rows: list[Row]) -> None:
    """See that all images are there, also where Windows or macOS wrote their paths.

    Raises:
        UserError: some are not.
    """
    absent = set(missing_files(table.parent, [row.path for row in rows]))
    lost = []
    for row in rows if absent else ():
        if row.path not in absent or is_there(table.parent / row.path):
            continue
        slashed = row.path.replace("\\", "/")
        forms = [slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
        if found := next((form for form in forms if is_there(table.parent / form)), None):
            row.path = found
        else:
            lost.append(row.path)
    if lost:
        raise UserError(f"'{table}' names {len(lost)} file(s) that are not there, first: '{lost[0]}'")


def _add_columns(
    dataset: ImageDataset, split: str, cells: list[dict[str, str]], subject: str | None, groups: list[str], table: Path
) -> None:
    """Fill the subjects and groups of a split; an image without a subject is its own."""
    part = dataset.splits[split]
    if subject is not None:
        said = [one_form(cell[subject]) for cell in cells]
        if len(empty := [name for name, each in zip(part.images.names, said) if not each]) == len(said):
            raise UserError(f"'{table}': column '{subject}' (dataset.args.subject) is empty")
        if empty:
            dataset.doubts.append(
                f"{split}: {len(empty):,} image(s) have no {subject}: each is taken for a subject of its own, first "
                f"'{empty[0]}'"
            )
        dataset.subject = subject
        part.subjects = np.array([each or f"\0{name}" for each, name in zip(said, part.images.names)])
    for group in groups:
        values = [one_form(cell[group]) for cell in cells]
        known = dataset.group_names.setdefault(group, [])
        known += sorted(set(values) - set(known) - {""})
        index = {value: i for i, value in enumerate(known)}
        part.groups[group] = np.array([index.get(value, -1) for value in values], dtype=np.int64)


def _groups(file: Path, concepts: list[str]) -> dict[str, list[str]]:
    """Group name to the concepts that exclude each other, all of them columns of the table beside the file."""
    groups = read_json(file)
    if not isinstance(groups, dict) or not all(isinstance(names, list) for names in groups.values()):
        raise UserError(f"'{file}': expected {{group: [concepts]}}")
    for name in (name for names in groups.values() for name in names):
        if name not in concepts:
            raise UserError(f"'{file}' names a concept '{name}' without a column; {did_you_mean(str(name), concepts)}")
    return groups


def _concept_values(rows: list[Row], concepts: list[str], table: Path, threshold: float | None) -> np.ndarray:
    """Cells to ``[N, A]`` float32: 0, 1, NaN for unknown."""
    meaning = {**dict.fromkeys(YES, 1.0), **dict.fromkeys(NO, 0.0), **dict.fromkeys(UNKNOWN, np.nan)}

    def read(cell: str) -> float | None:
        cell = cell.strip().lower()
        return meaning.get(cell) if threshold is None or cell in UNKNOWN else _above(cell, threshold, meaning)

    cells = [[read(row.cells[concept] or "") for concept in concepts] for row in rows]
    wrong = [k for k in range(len(concepts)) if any(found[k] is None for found in cells)]
    if wrong:
        row = rows[next(i for i, found in enumerate(cells) if found[wrong[0]] is None)]
        told = _no_concept(table, row, concepts[wrong[0]], [each.cells[concepts[wrong[0]]] for each in rows], threshold)
        others = f"; the same is true of {quoted(concepts[k] for k in wrong[1:])}" if wrong[1:] else ""
        raise UserError(told + others)
    return np.array(cells, dtype=np.float32)


def _above(cell: str, threshold: float, meaning: dict[str, float]) -> float | None:
    share = _share(cell)
    return meaning.get(cell) if share is None else float(share >= threshold)


def _share(cell: str) -> float | None:
    """A number from 0 to 1, with a point or a comma; None if it is none."""
    try:
        value = float(cell.strip().replace(",", "."))
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _no_concept(table: Path, row: Row, concept: str, cells: list[str], threshold: float | None) -> str:
    """Why a cell is no concept, and what could be said about its column."""
    told = f"'{table}': column '{concept}' of '{row.path}' is '{row.cells[concept].strip()}'; "
    if threshold is not None:
        return f"{told}with dataset.args.threshold={threshold} a concept is a probability from 0 to 1, or empty"
    if all(_share(cell) is not None or cell.strip().lower() in UNKNOWN for cell in cells):
        return f"{told}a concept is 1, 0 or empty: dataset.args.threshold=0.5 makes 1 of what is 0.5 or more"
    said = {cell.strip().lower() for cell in cells}
    if {SPLIT_ALIASES.get(each, each) for each in said} <= set(SPLITS):
        return f"{told}a concept is 1, 0 or empty; dataset.args.split_column={concept} makes splits of '{concept}'"
    return (
        f"{told}a concept is 1, 0 or empty (or yes, no). If '{concept}' is no concept: dataset.args.subject={concept} "
        f"(what belongs together), dataset.args.groups=[{concept}] or dataset.args.ignore=[{concept}]"
    )


def drawn_folder(root: Path, made_of: Mapping[str, Any]) -> Path:
    """Where paper birds of these settings (those of ``read_birds``) lie or would be drawn."""
    defaults = {"variant": "birds", "seed": 0, "n_train": 100, "n_val": 20, "n_test": 40, "size": 64}
    return root / "-".join(str(made_of.get(key, value)) for key, value in defaults.items())


@reader("birds")
def read_birds(
    name: str,
    root: Path,
    variant: str = "birds",
    seed: int = 0,
    n_train: int = 100,
    n_val: int = 20,
    n_test: int = 40,
    size: int = 64,
    task: str = "species",
    keep: list[str] | None = None,
    drop: list[str] | None = None,
) -> ImageDataset:
    """Paper birds, drawn into ``root`` on first use.

    Args:
        name: name of the data set.
        root: folder of the images.
        variant: ``birds``, ``birds_spurious`` or ``birds_shift``.
        seed: random seed for the birds.
        n_train: number of training images per species.
        n_val: number of validation images per species.
        n_test: number of test images per species.
        size: width and height of an image in pixels.
        task: ``species`` for 20 classes, ``attributes`` for six labels that are rules over the concepts of a bird
            (``cbm.data.birds.LABEL_RULES``), any number an image.
        keep: the labels that are taken; by default all.
        drop: labels that are left out.

    Raises:
        UserError: an argument is out of range, or ``root`` holds something else.
    """
    from cbm.data.birds import LABEL_RULES, home_habitats, labels_of, write_birds

    if task not in ("species", "attributes"):
        raise UserError(f"dataset.args.task={task}: {did_you_mean(task, ('species', 'attributes'))}")
    if task == "species" and (keep is not None or drop is not None):
        raise UserError("dataset.args.keep and dataset.args.drop choose labels: say dataset.args.task=attributes")
    made_of: dict[str, Any] = dict(variant=variant, seed=seed, n_train=n_train, n_val=n_val, n_test=n_test, size=size)
    root = drawn_folder(root, made_of)
    if not (root / "images.csv").is_file():
        log.info("drawing %s into %s", variant, root)
        write_birds(root, **made_of)
    birds = read_csv(name, root)
    if variant == "birds_spurious":  # the habitat goes with the species in training, whichever it is
        habitats = birds.concept_groups["habitat"]
        birds.spurious = dict.fromkeys(birds.classes, habitats)
        birds.group_names |= {"habitat": list(habitats), "place": ["at home", "away"]}
        at = [birds.concept_names.index(habitat) for habitat in habitats]
        homes = home_habitats()
        home = np.array([habitats.index(homes[species]) for species in birds.classes])
        for split in birds.splits.values():
            assert split.concepts is not None
            split.groups["habitat"] = split.concepts[:, at].argmax(axis=1)
            split.groups["place"] = (split.groups["habitat"] != home[split.labels]).astype(np.int64)
    if task == "species":
        return birds
    for split in birds.splits.values():
        assert split.concepts is not None
        split.labels = labels_of(split.concepts, birds.concept_names)
    birds.task, birds.classes, birds.spurious = "many", list(LABEL_RULES), {}
    birds.template, birds.negative_template = "a picture of a bird with {}.", "a picture of a bird without {}."
    return choose_labels(birds, keep, drop)
