"""Decisions about test images, kept row by row, so that the intervals of the results pages are over images."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

NORMAL = 1.959964
"""97.5 % of the standard normal distribution lie below it."""


def pack(right: Tensor) -> str:
    """Zeros and ones as hexadecimal digits, after their number."""
    return f"{len(right)}:{np.packbits(right.numpy()).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """What ``pack`` was given, as floats."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[: int(count)].astype(float)


class Rows:
    """Lines of JSON in a file that grows: what is there is not measured again.

    Attributes:
        file: the file.
        keys: names of the entries that tell one row from another.
    """

    def __init__(self, file: Path, keys: Sequence[str]):
        self.file, self.keys = file, tuple(keys)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def __contains__(self, key: tuple) -> bool:
        return any(tuple(row.get(name) for name in self.keys) == key for row in self.rows)

    def add(self, key: tuple, **values: Any) -> None:
        """Write one row to the disk."""
        row = dict(zip(self.keys, key)) | values
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]


def interval(right: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean when test images are drawn again.

    Args:
        right: decisions ``[draws, N]``, NaN where an image was not tested; all decisions about an image go together.
        seed: random seed.
    """
    seen = ~np.isnan(right)
    total, count = np.where(seen, right, 0).sum(axis=0), seen.sum(axis=0)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(total), (4000, len(total)))
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def shown(values: Sequence[Sequence[np.ndarray]]) -> str:
    """Mean ± deviation over draws [95 % over images], in per cent.

    Args:
        values: decisions by division and draw. Divisions have other test images: the width of their interval is that
            of one division, because divisions of one set share images.
    """
    means = [np.mean([np.nanmean(right) for right in draws]) for draws in values]
    each = [np.nanmean(right) for draws in values for right in draws]
    ends = [interval(np.stack(list(draws))) for draws in values]
    below = np.mean([mean - low for mean, (low, _) in zip(means, ends)])
    above = np.mean([high - mean for mean, (_, high) in zip(means, ends)])
    middle = float(np.mean(means))
    deviation = f" ± {100 * np.std(each, ddof=1):.1f}" if len(each) > 1 and np.std(each) > 1e-9 else ""
    return f"{100 * middle:.1f}{deviation} [{100 * (middle - below):.1f}, {100 * (middle + above):.1f}]"


def wilson(right: np.ndarray) -> tuple[float, float]:
    """95 % of the share of right decisions ``[N]`` about independent images (Wilson, 1927)."""
    n, p, z2 = len(right), float(right.mean()), NORMAL**2
    middle, half = (
        (p + z2 / (2 * n)) / (1 + z2 / n),
        NORMAL / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)),
    )
    return middle - half, middle + half


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted so that any false alarm has at most the stated probability (Holm, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p_values[i])))
        adjusted[i] = largest
    return adjusted


class Images:
    """The tested images, drawn again many times: intervals of means over images, and over classes.

    Attributes:
        labels: class indices ``[N]``.
    """

    def __init__(self, labels: Sequence[int], draws: int = 4000, seed: int = 0):
        self.labels = np.asarray(labels)
        count, generator = len(self.labels), np.random.default_rng(seed)
        self._plain = generator.multinomial(count, np.full(count, 1 / count), draws).astype(np.float32) / count
        self._macro = np.zeros((draws, count), np.float32)
        classes = np.unique(self.labels)
        for label in classes:
            rows = np.flatnonzero(self.labels == label)
            drawn = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), draws)
            self._macro[:, rows] = drawn / (len(rows) * len(classes))

    def mean(self, values: np.ndarray, macro: bool = False) -> float:
        """The mean over images of values ``[..., N]``, or the mean over classes of their means."""
        each = values.reshape(-1, len(self.labels)).mean(axis=0)
        if not macro:
            return float(each.mean())
        return float(np.mean([each[self.labels == label].mean() for label in np.unique(self.labels)]))

    def interval(self, values: np.ndarray, macro: bool = False) -> tuple[float, float]:
        """95 % of ``mean`` when the images are drawn again (of their classes, for the mean over classes).

        Args:
            values: ``[R, N]`` of R runs: all values of an image go together, so runs are taken as they are.
            macro: whether the mean over classes is meant.
        """
        each = values.reshape(-1, len(self.labels)).mean(axis=0)
        if (
            not macro
            and np.isin(values, (0, 1)).all()
            and (values.reshape(-1, len(each)) == values.reshape(-1, len(each))[0]).all()
        ):
            return wilson(each)
        low, high = np.quantile((self._macro if macro else self._plain) @ each.astype(np.float32), [0.025, 0.975])
        return float(low), float(high)

    def p_value(self, differences: np.ndarray) -> float:
        """Of no difference in the mean over images, from paired differences ``[R, N]`` (their normal approximation)."""
        each = differences.reshape(-1, len(self.labels)).mean(axis=0)
        error = each.std(ddof=1) / math.sqrt(len(each))
        return math.erfc(abs(each.mean()) / error / math.sqrt(2)) if error > 0 else 1.0
