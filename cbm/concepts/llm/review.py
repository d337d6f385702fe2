"""The table for the person who reads a generated bank before using it."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cbm.files import write_atomically
from cbm.files.inert import for_csv, for_html


class Row(NamedTuple):
    """A phrase of the model and what became of it."""

    kept: bool
    text: str
    note: str
    class_name: str
    family: str
    facet: str
    group: str


COLUMNS = ("kept", "phrase", "why or how", "class", "family", "facet", "group")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Review of {title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em auto; max-width: 80em; color: #222; background: #fff }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .2em .6em; border-bottom: 1px solid #ddd; vertical-align: top }}
tr.dropped td {{ color: #8a1c1c; background: #fdf3f3 }}
</style>
<h1>Review of {title}</h1>
<p>{summary}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></html>
"""


def write_review(folder: Path, title: str, rows: list[Row]) -> None:
    """Write ``review.csv`` and ``review.html`` into ``folder``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([for_csv(value) for value in _cells(row)] for row in rows)
    write_atomically(folder / "review.csv", table.getvalue().encode())
    lines = []
    for row in rows:
        cells = "".join(f"<td>{for_html(value)}</td>" for value in _cells(row))
        lines.append(f'<tr class="{"kept" if row.kept else "dropped"}">{cells}</tr>')
    reasons = Counter(row.note.split(" '")[0] for row in rows if not row.kept)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing"
    page = PAGE.format(
        title=for_html(title),
        summary=for_html(f"{sum(row.kept for row in rows)} of {len(rows)} phrases kept. Left out: {left_out}."),
        head="".join(f"<th>{column}</th>" for column in COLUMNS),
        body="\n".join(lines),
    )
    write_atomically(folder / "review.html", page.encode())


def _cells(row: Row) -> list[str]:
    return ["kept" if row.kept else "dropped", *row[1:]]
