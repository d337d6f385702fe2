"""A page of predictions: the first images of a table, each with what its concepts add to the logit of its label."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbm.report.explanations import Breakdown
from cbm.report.templates import load_template
from cbm.report.thumbnails import Thumbnail


@dataclass(frozen=True)
class Shown:
    """One image.

    Attributes:
        name: what it is called.
        label: predicted class; empty if it could not be read.
        probability: that of the label.
        why: the logit of the label as a sum over concepts; None for a model without a linear head on concepts.
        picture: the image itself; None if there are only features of it.
        error: why it could not be read.
    """

    name: str
    label: str = ""
    probability: float = 0.0
    why: Breakdown | None = None
    picture: Thumbnail | None = None
    error: str = ""


def predictions_page(run: str, changes: Sequence[Any], shown: Sequence[Shown], total: int, failed: int) -> str:
    """One file without scripts and without requests; all names are escaped.

    Args:
        run: whose predictions they are.
        changes: changes made to the model after training.
        shown: the images of the page.
        total: number of images of the table.
        failed: number of images of the table that could not be read.
    """
    page = load_template(Path(__file__).parent / "predictions.html").render(
        run=run, changes=[str(change) for change in changes], shown=shown, total=total, failed=failed
    )
    return page.encode(errors="backslashreplace").decode()  # names that are no UTF-8
