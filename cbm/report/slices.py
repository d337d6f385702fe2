"""The table of error slices on a report: what pictures have in common that are decided wrongly more often."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit
from cbm.files.run_directory import seed_of
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.metrics.slices import ENOUGH, Decided, error_slices
from cbm.report.result import RunResult
from cbm.report.thumbnails import Thumbnail, thumbnail
from cbm.report.wording import clip

CONCEPTS = 100
"""Concepts that can name a slice: those with the largest weights."""
IMAGES = 5000
"""Pictures of a split that are looked at, at even distances."""
PICTURES = 4
"""Mistakes of a slice that are shown."""
SIDE = 144
"""Longest side in pixels of such a picture."""


@dataclass(frozen=True)
class ShownSlice:
    """A slice as the page shows it.

    Attributes:
        said: its name, in words.
        count: test pictures inside.
        inside: their error rate.
        outside: the error rate of the other test pictures.
        found: error rate of the validation pictures inside.
        found_count: their number.
        confirmed: whether the test pictures confirm it.
        p: p value there, Holm over the slices.
        pictures: some mistakes inside.
    """

    said: str
    count: int
    inside: float
    outside: float
    found: float
    found_count: int
    confirmed: bool
    p: float
    pictures: Sequence[Thumbnail]


@dataclass(frozen=True)
class SliceSection:
    """What the page says about slices.

    Attributes:
        slices: those that were found, the most striking first.
        confirmed: how many of them the test pictures confirm.
        concepts: concepts that could name one.
        enough: pictures that a slice needs.
    """

    slices: Sequence[ShownSlice]
    confirmed: int
    concepts: int
    enough: int


@torch.no_grad()
def describe_slices(result: RunResult) -> SliceSection | None:
    """The slices of a run; None without concepts, without validation pictures, or with too few mistakes among them."""
    model, bank, data = result.bottleneck, result.bank, result.data
    if model is None or bank is None or "val" not in data.splits:
        return None
    if not (columns := used_concepts(model)):
        return None
    labels = labelled_concepts(bank, columns, data)
    parts = [decided(model, split, columns, labels) for split in (data.val, data.test)]
    (val, _), (test, rows) = parts
    if val.wrong.sum() < ENOUGH:
        return None
    texts = [clip(bank.texts[k]) for k in columns]
    images, shown = result.dataset.splits["test"].images, []
    for each in error_slices(val, test, seed=seed_of(result.cfg.seed)):
        wrong = np.flatnonzero(each.holds(test) & test.wrong)[:PICTURES]
        pictures = [thumbnail(images, int(rows[place]), SIDE) for place in wrong.tolist()]
        tested, found = each.tested, each.found
        shown.append(
            ShownSlice(
                each.said(texts),
                tested.count,
                tested.inside,
                tested.outside,
                found.inside,
                found.count,
                each.confirmed,
                each.test_p,
                pictures,
            )
        )
    return SliceSection(shown, sum(each.confirmed for each in shown), len(columns), ENOUGH)


def used_concepts(model: ConceptBottleneck) -> list[int]:
    """Columns of the concepts that some class uses, at most ``CONCEPTS``: those with the largest importance."""
    largest = model.importance().abs().amax(dim=0)
    order = largest.argsort(descending=True, stable=True)[:CONCEPTS]
    return sorted(order[largest[order] > 0].tolist())


def labelled_concepts(bank: ConceptBank, columns: list[int], data: FeatureData) -> list[tuple[int, int]]:
    """Which of some concepts the data set labels: place in ``columns``, and column of the labels."""
    return match_concepts([bank.phrases[k] for k in columns], data.concept_names)


def decided(
    model: ConceptBottleneck, split: FeatureSplit, columns: list[int], labels: list[tuple[int, int]]
) -> tuple[Decided, np.ndarray]:
    """Some pictures of a split, and their rows in it.

    Args:
        model: the bottleneck.
        split: the pictures.
        columns: concepts that can name a slice.
        labels: which of them the data set labels (``labelled_concepts``).
    """
    rows: Tensor = torch.arange(min(len(split), IMAGES)) * len(split) // max(min(len(split), IMAGES), 1)
    x, y = split.x[rows], split.y[rows]
    truth = np.full((len(rows), len(columns)), np.nan)
    if split.concepts is not None:
        for place, column in labels:
            truth[:, place] = split.concepts[rows, column].numpy()
    scores = model.scores(x, columns).numpy()
    wrong = (predict_logits(model, x).argmax(dim=1) != y).numpy()
    return Decided(scores, wrong, truth), rows.numpy()
