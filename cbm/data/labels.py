"""Labels as they are found: what cells say, what becomes of those that are unsure, which are taken."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cbm.data.dataset import ImageDataset
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form

YES = {"1", "1.0", "true", "t", "yes", "y", "on", "present", "positive"}
NO = {"0", "0.0", "false", "f", "no", "n", "off", "absent", "negative"}
UNKNOWN = {"", "nan", "na", "n/a", "null", "none", "unknown", "?"}

POLICIES = ("ignore", "absent", "present", "soft")
"""What a label that is not known can be taken for."""
SOFT = (0.55, 0.85)
"""Between what an unknown label's target is drawn (``soft``)."""
UNSURE, BLANK = -1.0, -2.0
"""What stands, before ``settle``, for a label that somebody was unsure of, and for one of which nothing is said."""
MOST_LABELS = 500


def settle(values: np.ndarray, unknown: str = "ignore", blank: str = "ignore", seed: int = 0) -> np.ndarray:
    """Labels ``[N, L]`` float32 without ``UNSURE`` and ``BLANK``: 1, 0, NaN, and between them if that is wanted.

    Args:
        values: labels ``[N, L]``: 1, 0, ``UNSURE`` or ``BLANK``.
        unknown: what an unsure label is taken for, one of ``POLICIES``: ``ignore`` (it is not known), ``absent``,
            ``present``, or ``soft`` (a target is drawn once, between the numbers of ``SOFT``).
        blank: the same for one of which nothing is said.
        seed: random seed of the targets that are drawn.

    Raises:
        UserError: there is no such policy.

    Example:
        >>> settle(np.array([[1, UNSURE, BLANK]]), "present", "absent").tolist()
        [[1.0, 1.0, 0.0]]
    """
    for setting, policy in (("unknown", unknown), ("blank", blank)):
        if policy not in POLICIES:
            raise UserError(f"dataset.args.{setting}={policy}: {did_you_mean(policy, POLICIES)}")
    drawn = np.random.default_rng(seed).uniform(*SOFT, size=values.shape)
    found = values.astype(np.float32)
    plain = {"ignore": np.nan, "absent": 0.0, "present": 1.0}
    for code, policy in ((UNSURE, unknown), (BLANK, blank)):
        at = values == code
        found[at] = drawn[at] if policy == "soft" else plain[policy]
    return found


def choose_labels(
    dataset: ImageDataset, keep: Sequence[str] | None = None, drop: Sequence[str] | None = None
) -> ImageDataset:
    """The data set with some of its labels (``dataset.args.keep``), or without some (``dataset.args.drop``).

    Raises:
        UserError: there is no such label, or none is left.
    """
    for setting, names in (("keep", keep), ("drop", drop)):
        for name in names or ():
            if one_form(name) not in dataset.classes:
                near = did_you_mean(name, dataset.classes)
                raise UserError(f"dataset.args.{setting}=[{name}]: '{dataset.name}' has no such label; {near}")
    wanted = set(dataset.classes) if keep is None else set(map(one_form, keep))
    wanted -= set(map(one_form, drop or ()))
    columns = [column for column, name in enumerate(dataset.classes) if name in wanted]
    if len(columns) == len(dataset.classes):
        return dataset
    if not columns:
        raise UserError(f"data set '{dataset.name}': dataset.args.keep and dataset.args.drop leave no label")
    splits = {name: replace(split, labels=split.labels[:, columns]) for name, split in dataset.splits.items()}
    return replace(dataset, classes=[dataset.classes[column] for column in columns], splits=splits)


def listed(cells: Sequence[str], separator: str, none: str | None, labels: Sequence[str]) -> np.ndarray:
    """Labels ``[N, L]`` of cells that name them (``Edema|Effusion``): 1, 0, or ``BLANK`` of an empty cell.

    Args:
        cells: what is said of every image, in one form.
        separator: what stands between two names.
        none: what is said where there is none (``No Finding``).
        labels: all names.
    """
    index = {name: column for column, name in enumerate(labels)}
    values = np.zeros((len(cells), len(labels)))
    for row, cell in enumerate(cells):
        if not cell:
            values[row] = BLANK
        elif cell != none:
            values[row, [index[part] for part in parts_of(cell, separator)]] = 1
    return values


def parts_of(cell: str, separator: str) -> list[str]:
    """The names in a cell.

    Example:
        >>> parts_of("Edema | Effusion|", "|")
        ['Edema', 'Effusion']
    """
    return [name for part in cell.split(separator) if (name := one_form(part))]


def as_number(word: str) -> float | None:
    """The finite number that a cell is, with a point or a comma; None if it is none.

    Example:
        >>> as_number("1,5"), as_number("nan"), as_number("big")
        (1.5, None, None)
    """
    plain = word.strip().replace(",", ".")
    return float(plain) if re.fullmatch(r"[+-]?(\d{1,300}\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", plain) else None
