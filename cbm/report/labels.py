"""The labels of a model that says any number of them: a table as a file, and the page."""

import csv
import io
from pathlib import Path
from typing import Any

import torch

from cbm.files import write_atomically
from cbm.files.inert import for_csv
from cbm.layers import predict_logits
from cbm.metrics.evaluate import thresholds_of
from cbm.metrics.multilabel import label_table
from cbm.report.result import RunResult


@torch.no_grad()
def label_rows(result: RunResult) -> list[dict[str, Any]]:
    """A row of ``cbm.metrics.multilabel.label_table`` for every label, on the test images, with its five concepts."""
    test, classes = result.data.test, result.data.classes
    logits = predict_logits(result.model, test.x)
    rows = label_table(logits, test.y, thresholds_of(result.model, len(classes)), classes, test.subjects)
    concepts: list[list[str]] = [[] for _ in classes]
    if result.bottleneck is not None and result.bank is not None:
        importance = result.bottleneck.importance()
        order = importance.abs().topk(min(5, importance.shape[1]), dim=1).indices
        concepts = [
            [f"{'+' if importance[label, k] > 0 else '-'} {result.bank.texts[k]}" for k in row if importance[label, k]]
            for label, row in enumerate(order.tolist())
        ]
    return [{**row, "concepts": found} for row, found in zip(rows, concepts)]


def write_label_table(path: Path, result: RunResult) -> None:
    """Write ``label_metrics.csv``."""
    rows = label_rows(result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        values = {**row, "concepts": "; ".join(row["concepts"])}
        writer.writerow([for_csv(v) if isinstance(v, str) else "" if v != v else v for v in values.values()])
    write_atomically(path, text.getvalue().encode())
