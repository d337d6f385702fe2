"""Which rows of a table are not significantly worse than the best: paired on the test images that both decided.

A row is compared with the best one of its data set and number of shots (``cbm.metrics.paired``). The p values of all
rows of one data set in one column are one family, adjusted by Holm's method: among many rows some look worse by chance.
Nothing is said about columns whose values are not kept image by image (concept AUROC, grounding gap, ...).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cbm.errors import UserError

if TYPE_CHECKING:
    from cbm.files.predictions import Predictions
    from cbm.metrics.paired import Images, Judged

SIGNIFICANT = 0.05
"""Significance level after Holm's adjustment."""
RANKING = "test/auroc_macro"
"""The column of runs of several labels that can be."""
PAIRED = (
    "test/accuracy",
    "test/accuracy_macro",
    "test/accuracy_nec5",
    "test/accuracy_nec5_resolved",
    RANKING,
    "test/ece",
)
"""Columns that can be computed again from what is kept of every image; of the last one less is better."""


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        dataset: name of its data set.
        group: rows of the same data set and group are ranked together.
        runs: run directory by seed.
        means: mean by metric.
    """

    dataset: str
    group: str
    runs: dict[int, Path]
    means: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """What the images say about a row.

    Attributes:
        equal: metrics in which a better row is not significantly better.
        family: number of comparisons in the row's family, by metric, if the row was compared.
        images: number of test images on which it was compared; 0 if it was not.
        unpaired: why it was not compared; empty if it was, or if it has no rival.
    """

    equal: frozenset[str] = frozenset()
    family: dict[str, int] = field(default_factory=dict)
    images: int = 0
    unpaired: str = ""


@dataclass(frozen=True)
class Decided:
    """The decisions of a row, in the order of the images' names.

    Attributes:
        fingerprint: stands for the images.
        images: their classes and subjects.
        judged: by metric and seed, what was right; a metric that a run does not keep is missing.
    """

    fingerprint: str
    images: "Images"
    judged: "dict[str, dict[int, Judged]]"

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.images.labels)


@dataclass(frozen=True)
class Ranked:
    """What the runs of a row of several labels said, in the order of the names of images and labels.

    Attributes:
        fingerprint: stands for the images.
        y: their labels ``[N, L]``: 1, 0, or NaN if unknown.
        subjects: subject ``[N]`` of every image, or None.
        probabilities: by seed, ``[N, L]``.
    """

    fingerprint: str
    y: np.ndarray
    subjects: np.ndarray | None
    probabilities: dict[int, np.ndarray]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.y)


def judge(rows: Sequence[Contender]) -> list[Judgement]:
    """Compare every row with the best of its group, column by column.

    Args:
        rows: the rows of a table.

    Returns:
        What was found, for every row.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.dataset, row.group), []).append(number)
    rivals = [number for members in groups.values() if len(members) > 1 for number in members]
    decided = {number: _decided(rows[number]) for number in rivals}
    found: dict[tuple[str, str], dict[int, float]] = {}
    unpaired = {number: each for number, each in decided.items() if isinstance(each, str)}
    for (dataset, _), members in groups.items():
        for key in PAIRED:
            known = [number for number in members if key in rows[number].means]
            if len(known) < 2:
                continue
            sign = -1 if key == "test/ece" else 1
            top = max(known, key=lambda number: sign * rows[number].means[key])
            for number in known:
                p = None if number == top else _p(decided[number], decided[top], key)
                if isinstance(p, str):
                    unpaired.setdefault(number, p)
                elif p is not None:
                    found.setdefault((dataset, key), {})[number] = p
    return _adjusted(rows, found, decided, unpaired)


def _adjusted(
    rows: Sequence[Contender],
    found: dict[tuple[str, str], dict[int, float]],
    decided: dict[int, Any],
    unpaired: dict[int, Any],
) -> list[Judgement]:
    """The judgements from the p values of every family, by row."""
    equal: dict[int, set[str]] = {}
    sizes: dict[int, dict[str, int]] = {}
    for (_, key), family in found.items():
        from cbm.metrics.paired import holm

        for number, p in zip(family, holm(list(family.values()))):
            sizes.setdefault(number, {})[key] = len(family)
            if p >= SIGNIFICANT:
                equal.setdefault(number, set()).add(key)
    return [
        Judgement(
            frozenset(equal.get(number, ())),
            sizes.get(number, {}),
            decided[number].count if number in sizes else 0,
            "" if number in sizes else str(unpaired.get(number, "")),
        )
        for number in range(len(rows))
    ]


def _p(one: Decided | Ranked | str, best: Decided | Ranked | str, key: str) -> float | str | None:
    """The p value of a difference; why there is none; or None if a run does not keep this metric."""
    from cbm.metrics.paired import calibration_p, mean_p

    if isinstance(one, str):
        return one
    if isinstance(best, str):
        return f"the best of its table cannot be compared: {best}"
    if one.fingerprint != best.fingerprint:
        return "it was tested on other images than the best of its table"
    if isinstance(one, Ranked) or isinstance(best, Ranked):
        return _ranking_p(one, best) if isinstance(one, Ranked) and isinstance(best, Ranked) else None
    if key not in one.judged or key not in best.judged:
        return None
    test = calibration_p if key == "test/ece" else mean_p
    more = {"macro": True} if key == "test/accuracy_macro" else {}
    return test(one.judged[key], best.judged[key], one.images, **more)


def _ranking_p(one: Ranked, best: Ranked) -> float | None:
    """The p value of a difference in the mean AUROC of labels."""
    import torch

    from cbm.metrics.multilabel import auroc_macro_difference

    sides = [[torch.from_numpy(each) for each in row.probabilities.values()] for row in (one, best)]
    found = auroc_macro_difference(sides[0], sides[1], torch.from_numpy(one.y), one.subjects)
    return None if found is None else found.p


def _ranked(row: Contender) -> Ranked | str:
    """What the runs of a row of several labels said, or why it cannot be had."""
    from cbm.files.label_predictions import LabelPredictions, label_predictions_of

    kept: dict[int, LabelPredictions] = {}
    for seed, path in row.runs.items():
        try:
            kept[seed] = label_predictions_of(path)
        except UserError as error:
            return str(error)
    first = next(iter(kept.values()))
    if len({each.fingerprint for each in kept.values()}) > 1:
        return "its seeds were tested on different images"
    order = first.order()
    said = {seed: each.probabilities[each.order()][:, each.columns()] for seed, each in kept.items()}
    subjects = None if first.subjects is None else first.subjects[order]
    return Ranked(first.fingerprint, first.y[order][:, first.columns()], subjects, said)


def _decided(row: Contender) -> Decided | Ranked | str:
    """The decisions of a row's runs, or why they cannot be had."""
    if RANKING in row.means:
        return _ranked(row)
    from cbm.files.predictions import NoPredictionsError, read_predictions, same_images
    from cbm.metrics.paired import Images, Judged

    kept: dict[int, Predictions] = {}
    for seed, path in row.runs.items():
        try:
            kept[seed] = read_predictions(path)
        except NoPredictionsError:
            return "made before predictions were kept (python eval.py run=RUN adds them)"
        except UserError as error:
            return str(error)
    if not same_images(list(kept.values())):
        return "its seeds were tested on different images"
    first = next(iter(kept.values()))
    order = first.order()
    judged: dict[str, dict[int, Judged]] = {}
    for key in PAIRED:
        name = key.removeprefix("test/")
        runs = {}
        for seed, each in kept.items():
            decisions = each.decisions if name in ("accuracy", "accuracy_macro", "ece") else each.others.get(name)
            if decisions is not None:
                rows = each.order()
                runs[seed] = Judged((decisions == each.labels)[rows], each.confidence[rows].astype(np.float64))
        if len(runs) == len(kept):
            judged[key] = runs
    subjects = None if first.subjects is None else first.subjects[order]
    return Decided(first.fingerprint, Images(first.labels[order], subjects), judged)


def notes(rows: Sequence[tuple[str, str, Judgement]], equal: str) -> list[str]:
    """What the marks of a table rest on, in sentences.

    Args:
        rows: data set, method and judgement of every row.
        equal: the mark.
    """
    said = []
    for dataset in dict.fromkeys(dataset for dataset, _, _ in rows):
        members = [judgement for name, _, judgement in rows if name == dataset]
        images = max(each.images for each in members)
        if images:
            sizes = {size for each in members for size in each.family.values()}
            family = f"{min(sizes)} to {max(sizes)} comparisons" if len(sizes) > 1 else f"{max(sizes)} comparison(s)"
            said.append(
                f"{dataset}: {equal} not significantly worse than the best, paired on the same {images:,} test images "
                f"(p ≥ {SIGNIFICANT} after Holm over the {family} of a column)"
            )
        reasons: dict[str, list[str]] = {}
        for name, method, each in rows:
            if name == dataset and each.unpaired:
                reasons.setdefault(each.unpaired, []).append(method)
        for reason, methods in reasons.items():
            which = f" ({', '.join(dict.fromkeys(methods))})" if len({method for _, method, _ in rows}) > 1 else ""
            count = f"{len(methods)} row{'' if len(methods) == 1 else 's'}{which}"
            said.append(f"{dataset}: {count} not compared and not marked: {reason}")
    return said
