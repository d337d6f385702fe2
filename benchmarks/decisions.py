"""Decisions about test images, kept row by row, so that the intervals of the results pages are over images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


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
        lines = file.read_text().splitlines() if file.is_file() else []
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
