"""``concepts.csv``: every concept of a run in a line, for a spreadsheet."""

from pathlib import Path

import torch

from cbm.concepts.readers import match_concepts
from cbm.files.tables import write_table
from cbm.metrics.multilabel import auroc
from cbm.report.result import RunResult


def concept_rows(result: RunResult) -> list[dict[str, str | float]]:
    """What is known of every concept on the test images: ``concept``, ``owners`` (classes that it was written for, none
    if for all), ``weight`` and ``class`` (how much one standard deviation of its score adds, and to which class it adds
    most or takes most from), ``known`` (test images with a label of it), ``auroc`` of its score for that label, and
    ``leak`` and ``leak_p`` (what the score says of the class beyond the concept). NaN where that is not known.

    Args:
        result: a run with a linear head on concepts; there are no rows for others.
    """
    model, bank, data = result.bottleneck, result.bank, result.data
    if model is None or bank is None:
        return []
    importance, owners = model.importance(), bank.owners(data.classes)
    strongest = importance.abs().argmax(dim=0).tolist()
    known, told = [0] * len(bank), [float("nan")] * len(bank)
    matches = match_concepts(bank.phrases, data.concept_names)
    if matches and data.test.concepts is not None:
        columns, truth = ([pair[i] for pair in matches] for i in (0, 1))
        labels = data.test.concepts[:, truth]
        areas = auroc(model.scores(data.test.x, columns), (labels > 0.5).float().where(~labels.isnan(), torch.nan))
        for column, count, area in zip(columns, (~labels.isnan()).sum(dim=0).tolist(), areas.tolist()):
            known[column], told[column] = count, area
    leaks: dict[str, tuple[float, float]] = {}
    if result.leakage is not None and (own := result.leakage.own) is not None:
        leaks = dict(zip(result.leakage.names, zip(own.share.tolist(), own.p_any.tolist())))
    rows: list[dict[str, str | float]] = []
    for k, text in enumerate(bank.texts):
        own_classes = [data.classes[c] for c in owners[:, k].nonzero().flatten().tolist()]
        leak, p = leaks.get(text, (float("nan"), float("nan")))
        rows.append({
            "concept": text, "owners": "; ".join(own_classes), "class": data.classes[strongest[k]],
            "weight": float(importance[strongest[k], k]), "known": known[k], "auroc": told[k], "leak": leak,
            "leak_p": p,
        })  # fmt: skip
    return rows


def write_concept_table(path: Path, result: RunResult) -> None:
    """Write ``concepts.csv``; nothing without a linear head on concepts."""
    write_table(path, concept_rows(result))
