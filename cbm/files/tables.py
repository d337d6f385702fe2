"""Write tables as CSV for spreadsheets."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cbm.files.atomic import write_atomically
from cbm.files.inert import for_csv


def write_table(path: Path, rows: Sequence[Mapping[str, str | float]]) -> None:
    """Write rows of the same columns, with a header; NaN is an empty cell, and no text is a formula (``for_csv``).

    Args:
        path: the CSV file.
        rows: name and value of every cell; without rows nothing is written.
    """
    if not rows:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([for_csv(v) if isinstance(v, str) else "" if v != v else v for v in row.values()])
    write_atomically(path, text.getvalue().encode())
