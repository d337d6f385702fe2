"""What an object detector says about pictures, from a table, and the concept labels that follow from it.

The table has one line per detection, ``path,concept,score`` and perhaps ``x0,y0,x1,y1`` (left, top, right and bottom as
shares of width and height) and ``asked``; or it is wide, ``path`` and a column of scores per concept. It should say
what the detector was asked, because a concept that nobody looked for is unknown, and not absent: an empty score says
that it was looked for and not found, an empty cell of a wide table that nobody looked, a line with a path alone that
nothing was found in that picture.

A table of detections alone leaves that open. Detectors that label concepts are usually prompted with the concepts of
the picture's own class only (Srivastava et al., "VLG-CBM", NeurIPS 2024). Whoever takes everything else as absent
teaches the concepts the class: ``unasked="absent"`` is that, ``unasked="unknown"`` learns from what was looked for.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import normalise_text
from cbm.data.features import FeatureData, FeatureSplit
from cbm.errors import UserError, did_you_mean
from cbm.files.inert import path_from_csv
from cbm.files.parsing import read_table

BOX = ("x0", "y0", "x1", "y1")
WORDS = {"1": True, "0": False}


@dataclass(frozen=True)
class Detections:
    """What a table says about the pictures of a run.

    Attributes:
        scores: best score ``[N, K]`` of every picture and concept, by name of the split: 0 if it was looked for and not
            found, NaN if the table says nothing.
        listed: which pictures ``[N]`` bool the table has a line for, by name of the split.
        says_asked: whether the table says what was looked for, so that nothing said means not looked for.
    """

    scores: dict[str, Tensor]
    listed: dict[str, Tensor]
    says_asked: bool


def read_detections(file: Path, bank: ConceptBank, data: FeatureData) -> Detections:
    """Read the detections in the pictures of a run.

    Args:
        file: CSV file: ``path,concept,score[,x0,y0,x1,y1][,asked]``, or ``path`` and a column per concept.
        bank: the K concepts.
        data: encoded splits, whose pictures are named by their path; lines about pictures that were not drawn
            (``shots=``) or could not be read are passed over.

    Raises:
        UserError: the file cannot be read or has other columns, a picture or concept is unknown, a score is outside
            [0, 1], a box outside its picture, or a concept both scored and not asked about.
    """
    columns, rows = read_table(file)
    if "path" not in columns or len(columns) < 2:
        raise UserError(
            f"'{file}' has no column 'path' beside others: expected path,concept,score or path and concepts"
        )
    places: dict[str, list[tuple[str, int]]] = {}
    for name, split in data.splits.items():
        for number, path in enumerate(split.names):
            places.setdefault(path, []).append((name, number))
    passed_over = data.undrawn | {path for names in data.skipped.values() for path in names}
    column_of = {normalise_text(text): k for k, text in enumerate(bank.phrases)}
    cells: dict[str, list[int]] = {name: [] for name in data.splits}
    values: dict[str, list[float]] = {name: [] for name in data.splits}
    listed: dict[str, set[int]] = {name: set() for name in data.splits}
    is_long = {"concept", "score"} <= set(columns)
    others = [name for name in columns if name not in ("path", "concept", "score", "asked", *BOX)] if is_long else []
    if others:
        raise UserError(f"'{file}' has a column '{others[0]}': expected path, concept, score, x0, y0, x1, y1 and asked")

    def concept(text: str, where: str) -> int:
        if (key := normalise_text(text)) not in column_of:
            raise UserError(f"{where}: no concept '{text}' in bank '{bank.name}': {did_you_mean(text, bank.texts)}")
        return column_of[key]

    said: dict[int, float | None]
    wide = {} if is_long else {name: concept(name, f"'{file}'") for name in columns if name != "path"}
    for line, row in enumerate(rows, start=2):
        where = f"'{file}' line {line}"
        if not any(cell.strip() for cell in row.values()):
            continue
        path = path_from_csv(row["path"].strip())
        if is_long:
            score = _line(row, where)
            said = {concept(row["concept"], where): score} if row["concept"].strip() else {}
        else:
            said = {
                k: _share(row[name], f"{where}: score of '{name}'") for name, k in wide.items() if row[name].strip()
            }
        if path not in places:
            if path in passed_over:
                continue
            nearest = did_you_mean(path, list(places))
            raise UserError(f"{where}: no picture '{path}' in this data set: {nearest}")
        for name, number in places[path]:
            listed[name].add(number)
            for k, known in said.items():
                if known is not None:
                    cells[name].append(number * len(bank) + k)
                    values[name].append(known)
    scores = {}
    for name, split in data.splits.items():
        best = torch.full((len(split) * len(bank),), -1.0)
        best.scatter_reduce_(0, torch.tensor(cells[name], dtype=torch.long), torch.tensor(values[name]), "amax")
        scores[name] = best.where(best >= 0, torch.nan).view(len(split), len(bank))
    seen = {
        name: torch.tensor([row in listed[name] for row in range(len(split))], dtype=torch.bool)
        for name, split in data.splits.items()
    }
    return Detections(scores, seen, says_asked=not is_long or "asked" in columns)


def _line(row: dict[str, str], where: str) -> float | None:
    """The score of one detection; 0 for a concept that was looked for and not found, None if nobody looked."""
    asked, cell = row.get("asked", "1").strip() or "1", row["score"].strip()
    if asked not in WORDS:
        raise UserError(f"{where}: asked is '{asked}'; expected 1 or 0")
    if not WORDS[asked]:
        if cell:
            raise UserError(f"{where}: asked is 0, and there is a score '{cell}': expected one of them")
        return None
    corners = [row[name].strip() for name in BOX if name in row]
    if any(corners):
        box = [_share(corner, f"{where}: {name} of the box") for name, corner in zip(BOX, corners)]
        if len(box) < 4 or box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(f"{where}: expected a box x0,y0,x1,y1 with x0 < x1 and y0 < y1, got {','.join(corners)}")
    if not cell:
        return 0.0
    if not row["concept"].strip():
        raise UserError(f"{where}: a score without a concept")
    return _share(cell, f"{where}: score")


def _share(cell: str, what: str) -> float:
    """A cell as a number from 0 to 1.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"{what} is '{cell.strip()}'; expected a number from 0 to 1")
    return number


def owned_concepts(split: FeatureSplit, owners: Tensor) -> Tensor:
    """Which concepts belong to the class of each picture, or to one of its labels, ``[N, K]`` bool.

    Args:
        split: the N pictures.
        owners: which class owns which concept ``[C, K]`` bool; a concept without owner belongs to all.
    """
    general = ~owners.any(dim=0)
    own = owners[split.y] if split.y.ndim == 1 else (split.y == 1).float() @ owners.float() > 0
    return own | general


def looked_for(found: Detections, name: str, owned: Tensor) -> Tensor:
    """Which concepts the detector looked for in which pictures of a split, ``[N, K]`` bool.

    Where the table does not say it: what it found, and in pictures with a line the concepts of the picture's class.

    Args:
        found: the detections.
        name: name of the split.
        owned: concepts of the class of each picture ``[N, K]`` (``owned_concepts``).
    """
    known = ~found.scores[name].isnan()
    return known if found.says_asked else known | (owned & found.listed[name][:, None])


def detected_labels(found: Detections, name: str, owned: Tensor, *, threshold: float, unasked: str) -> Tensor:
    """Concept labels ``[N, K]`` of a split: 1, 0, or NaN if unknown.

    Args:
        found: the detections.
        name: name of the split.
        owned: concepts of the class of each picture ``[N, K]`` (``owned_concepts``).
        threshold: score above which a concept is present.
        unasked: what a concept is that nobody looked for: ``unknown`` or ``absent``.

    Example:
        >>> scores = {"train": torch.tensor([[0.9, 0.1, float("nan")]])}
        >>> found = Detections(scores, {"train": torch.tensor([True])}, says_asked=True)
        >>> nothing = torch.zeros(1, 3, dtype=torch.bool)
        >>> detected_labels(found, "train", nothing, threshold=0.15, unasked="unknown").tolist()
        [[1.0, 0.0, nan]]
        >>> detected_labels(found, "train", nothing, threshold=0.15, unasked="absent").tolist()
        [[1.0, 0.0, 0.0]]
    """
    labels = (found.scores[name] > threshold).float()
    return labels if unasked == "absent" else labels.where(looked_for(found, name, owned), torch.nan)
