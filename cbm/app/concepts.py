"""A concept on the split: which pictures show it, which classes use it, whether it agrees with the labels."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.filters import LITERALS, Filter, cuts_of, label_column, scores_of
from cbm.app.gallery import Tile, tile
from cbm.concepts import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.concepts.units import Unit, unit_of, units_of
from cbm.data.features import spaced
from cbm.editing import look_alikes
from cbm.errors import nearest
from cbm.files.without_paths import without_paths
from cbm.layers import ConceptBottleneck, Unnamed
from cbm.report.units import NEAREST_UNITS, firing, null_mark, strongest_middle_weakest
from cbm.report.wording import deviations

PICTURES, CLASSES, NEAR = 8, 10, 5
PAIRED = 5000
"""Pictures on which scores are compared with each other, at even distances."""
BINS, LIMIT, ALONG = 32, 4.0, 7  # of the histogram: bins, its ends in standard deviations; pictures along the scores
ALL, NAMED, UNNAMED = "all", "named", "unnamed"
"""Kinds of units that are looked for."""


@dataclass(frozen=True)
class ConceptFacts:
    """One concept on the split.

    Attributes:
        column: column of the concept in the bank.
        text: text of the concept.
        owners: classes that the concept was written for.
        group: name of its group of concepts that exclude each other, or None.
        source: origin of the concept.
        top: pictures with the highest scores.
        bottom: pictures with the lowest scores.
        used_by: classes with how much one standard deviation of it adds to their logit, largest first; linear heads
            only.
        label_auroc: AUROC of its score for pictures labelled with the concept; None without labels.
        owner_auroc: AUROC of its score for pictures of its owners; None without owners.
        alike: concepts whose scores go with this one's within classes, with the correlation: what "Remove with
            look-alikes" removes too.
        unit: what is known of the unit that it is; None for concepts that were written down. Of a unit, ``top`` and
            ``bottom`` are the pictures on which it fires most and least.
        middle: pictures around the median of those on which the unit fires.
        fires: number of pictures on which the unit fires.
        near: units whose atoms are nearest, with the cosine.
        mark: where the cosine of its word lies among those of random directions (``cbm.report.units.null_mark``).
        histogram: how its scores are spread.
        along: pictures at even places in the order of the scores, from low to high.
        hangs_on: number of pictures that are decided otherwise if the concept is held at its reference value.
        hanging: some of them, with what they would be.
        nearest: concepts whose directions are nearest, with the cosine.
        pictures: words for kinds of pictures by this concept, each with the address of their filter.
    """

    column: int
    text: str
    owners: tuple[str, ...]
    group: str | None
    source: str
    top: list[Tile]
    bottom: list[Tile]
    used_by: list[tuple[str, float]]
    label_auroc: float | None
    owner_auroc: float | None
    alike: list[str]
    unit: Unit | None = None
    middle: list[Tile] = field(default_factory=list)
    fires: int = 0
    near: list[tuple[str, float]] = field(default_factory=list)
    mark: tuple[float, float, float] | None = None
    histogram: "Histogram | None" = None
    along: list[Tile] = field(default_factory=list)
    hangs_on: int = 0
    hanging: list[Tile] = field(default_factory=list)
    nearest: list[tuple[str, float]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Histogram:
    """How the scores of a concept are spread over the split.

    Attributes:
        edges: the ends of the bins, in standard deviations from the mean.
        first: pictures in every bin that show the concept, or are of its owners; all, if nobody says which do.
        second: the others.
        names: what the two are called.
        cuts: where it is low, and where it is high, in the same unit.
    """

    edges: list[float]
    first: list[int]
    second: list[int]
    names: tuple[str, str]
    cuts: tuple[float, float]

    @property
    def largest(self) -> int:
        """Pictures in the fullest bin."""
        return max(max(a + b for a, b in zip(self.first, self.second)), 1)


def spread_of(explorer: Explorer, column: int) -> Histogram:
    """The histogram of a concept: pictures that the labels say show it, else those of its owners, apart from others."""
    scores = scores_of(explorer, column).double()
    mean, spread = scores.mean(), scores.std().clamp(min=1e-12)
    away = ((scores - mean) / spread).clamp(-LIMIT, LIMIT)
    shown, names = _shown(explorer, column)
    first, second = (torch.histc(away[rows], BINS, -LIMIT, LIMIT).long().tolist() for rows in (shown, ~shown))
    edges = torch.linspace(-LIMIT, LIMIT, BINS + 1).tolist()
    low, high = ((cut - float(mean)) / float(spread) for cut in cuts_of(explorer, column))
    return Histogram(edges, first, second, names, (low, high))


def _shown(explorer: Explorer, column: int) -> tuple[Tensor, tuple[str, str]]:
    """Which pictures show a concept ``[N]`` bool, by labels or owners, and what they and the others are called."""
    labels = label_column(explorer, explorer.bank.texts[column])
    if labels is not None and explorer.split.concepts is not None:
        return explorer.split.concepts[:, labels] == 1, ("labelled with it", "others")
    owners = [explorer.classes.index(c) for c in explorer.bank.concepts[column].classes if c in explorer.classes]
    y = explorer.split.y
    if owners and len(owners) < len(explorer.classes):
        own = (y[:, owners] == 1).any(dim=1) if explorer.many else torch.isin(y, torch.tensor(owners))
        return own, ("of its owners", "others")
    return torch.ones(len(y), dtype=torch.bool), ("all pictures", "")


@torch.no_grad()
def hanging_on(explorer: Explorer, column: int) -> tuple[Tensor, Tensor]:
    """Rows of the pictures that are decided otherwise if a concept is held at its reference, and their classes then;
    those that are most nearly decided so come last. Only for linear heads and one class per picture."""
    model = explorer.bottleneck
    if model is None or explorer.many:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    rows, then, by = [], [], []
    votes = model.weights()[:, column]
    reads = votes != 0
    reading = reads.nonzero()[:, 0]
    if not len(reading) and not isinstance(model.residual, Unnamed):
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    for part in torch.arange(len(explorer.split)).split(4096):
        x, before = explorer.split.x[part], explorer.logits[part]
        if model.activation is None:
            activation = model.scores(x, [column])[:, 0]
        else:
            activation = model.activations(x)[:, column]
        away, decided = (activation - model.reference[column])[:, None], explorer.predicted[part]
        if isinstance(model.residual, Unnamed):
            own = model.votes(x)[:, column]
            flips = ((before - away * own).argmax(dim=1) != decided).nonzero()[:, 0]
            after = before[flips] - away[flips] * own[flips]
        else:  # few classes read a concept: the others stay as they were
            others = _highest_but(explorer, part, reads)
            best = torch.maximum(others, (before[:, reading] - away * votes[reading]).amax(dim=1))
            kept = before.gather(1, decided[:, None]) - away * votes[decided, None]
            flips = (best > kept[:, 0]).nonzero()[:, 0]
            after = before[flips] - away[flips] * votes
        first = before[flips].topk(2, dim=1).values
        rows.append(part[flips])
        then.append(after.argmax(dim=1))
        by.append(first[:, 0] - first[:, 1])
    order = torch.cat(by).argsort(descending=True, stable=True)
    return torch.cat(rows)[order], torch.cat(then)[order]


def _highest_but(explorer: Explorer, rows: Tensor, left_out: Tensor) -> Tensor:
    """Highest logit ``[n]`` of some pictures among the classes that are not left out (``[C]`` bool)."""
    values, classes = (each[rows] for each in explorer.leading)
    found = values.masked_fill(left_out[classes], -torch.inf).amax(dim=1)
    unknown = (found == -torch.inf).nonzero()[:, 0]  # all that lead are left out
    found[unknown] = explorer.logits[rows[unknown]].masked_fill(left_out, -torch.inf).amax(dim=1)
    return found


def nearest_concepts(explorer: Explorer, column: int) -> list[tuple[str, float]]:
    """Concepts whose directions in the model are nearest, with the cosine; none for energies."""
    model = explorer.bottleneck
    if model is None:
        return []
    directions = torch.nn.functional.normalize(model.concepts.float(), dim=1)
    cosine = directions @ directions[column]
    cosine[column] = -2.0
    found = cosine.topk(min(NEAR, len(cosine) - 1))
    return [(explorer.bank.texts[k], float(c)) for c, k in zip(found.values, found.indices.tolist())]


def find_concepts(bank: ConceptBank, words: str, kind: str = ALL) -> list[int]:
    """Columns of the concepts with words that begin so, or else of those whose text is nearest; all without words.

    A unit is found by its name, then by the words that are nearest to it and by names that it had.

    Args:
        bank: the concepts.
        words: beginnings of words.
        kind: all units, the named or the unnamed ones.
    """
    wanted = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in words.split()]
    texts, units = bank.texts, units_of(bank)
    kept = [k for k in range(len(texts)) if units is None or kind == ALL or units[k].named == (kind == NAMED)]
    found = [k for k in kept if all(word.search(texts[k]) for word in wanted)]
    if units is not None and wanted:
        direct = set(found)
        for k in kept:
            others = [*(word for word, _ in units[k].words), *units[k].former]
            if k not in direct and any(all(word.search(text) for word in wanted) for text in others):
                found.append(k)
    near = {texts[k]: k for k in kept}
    return found or [near[text] for text in nearest(words, list(near), CLASSES)]


@torch.no_grad()
def describe_concept(explorer: Explorer, column: int) -> ConceptFacts:
    """Everything about one concept; of N pictures and K concepts one column of N scores is computed.

    Raises:
        UserError: a model without concepts.
    """
    bank = explorer.bank
    concept, model = bank.concepts[column], explorer.bottleneck
    scores = scores_of(explorer, column)
    order = scores.argsort(descending=True, stable=True)
    spread = scores.std().clamp(min=1e-12)
    notes = (scores - scores.mean()) / spread
    top, bottom = (
        [tile(explorer, row, f"{deviations(float(notes[row]))} sd") for row in rows.tolist()]
        for rows in (order[:PICTURES], order.flip(0)[:PICTURES])
    )
    used: list[tuple[str, float]] = []
    same: list[str] = []
    if model is not None:
        importance = model.weights()[:, column] * model.spread[column]
        best = importance.abs().topk(min(CLASSES, len(importance))).indices.tolist()
        used = [(explorer.classes[c], float(importance[c])) for c in best if importance[c] != 0]
        this = torch.zeros(len(bank), dtype=torch.bool)
        this[column] = True
        near = look_alikes(model, this, spaced(explorer.split.x, PAIRED), spaced(explorer.split.y, PAIRED))
        same = [f"{bank.texts[each.concept]} (r = {each.correlation:.2f})" for each in near[:CLASSES]]
    places = [round(place * (len(order) - 1) / (ALONG - 1)) for place in range(ALONG)]
    along = [int(order[place]) for place in dict.fromkeys(reversed(places))]
    hanging, then = hanging_on(explorer, column)
    unit = unit_of(concept)
    middle: list[Tile] = []
    fires, close = 0, []
    if unit is not None and model is not None:
        top, middle, bottom, fires = _fires_on(explorer, model, column)
        close = _near(explorer, column)
    return ConceptFacts(
        column,
        concept.text,
        concept.classes,
        concept.group,
        without_paths(str(concept.provenance.get("source", bank.source))),
        top,
        bottom,
        used,
        _agreement(explorer, column, scores),
        _owners(explorer, column, scores),
        same,
        unit,
        middle,
        fires,
        close,
        None if unit is None else null_mark(unit, explorer.metrics),
        spread_of(explorer, column),
        [tile(explorer, row, f"{deviations(float(notes[row]))} sd") for row in along],
        len(hanging),
        [tile(explorer, row, f"→ {explorer.classes[c]}") for row, c in zip(hanging[:PICTURES].tolist(), then.tolist())],
        nearest_concepts(explorer, column),
        pictures_by(explorer, concept.text),
    )


def pictures_by(explorer: Explorer, text: str) -> list[tuple[str, str]]:
    """Words for kinds of pictures by a concept, each with the address of their filter; ``present`` and ``absent`` only
    where the data set says so."""
    known = label_column(explorer, text) is not None
    kinds = {how: word for how, word in LITERALS.items() if known or how in ("high", "low")}
    return [(word, Filter().about(how, (text,)).address) for how, word in kinds.items()]


def _fires_on(
    explorer: Explorer, model: ConceptBottleneck, column: int
) -> tuple[list[Tile], list[Tile], list[Tile], int]:
    """Pictures on which a unit fires most, in the middle and least, and the number of all on which it does."""
    columns, values = firing(model, explorer.split.x, explorer.model.config.method.get("k") or NEAREST_UNITS)
    where, place = (columns == column).nonzero(as_tuple=True)
    strength = values[where, place]
    order = strength.argsort(descending=True, stable=True)
    level = dict(zip(where.tolist(), strength.tolist()))
    kinds = strongest_middle_weakest(where[order].tolist(), PICTURES)
    top, middle, bottom = ([tile(explorer, row, f"fires {level[row]:.2f}") for row in rows] for rows in kinds)
    return top, middle, bottom, len(where)


def _near(explorer: Explorer, column: int) -> list[tuple[str, float]]:
    """Units whose atoms are nearest to that of a column."""
    atoms = torch.nn.functional.normalize(explorer.bank.directions().float(), dim=1)
    cosine = atoms @ atoms[column]
    order = [k for k in cosine.argsort(descending=True, stable=True).tolist() if k != column][:NEAR]
    return [(explorer.bank.texts[k], float(cosine[k])) for k in order]


def _agreement(explorer: Explorer, column: int, scores: Tensor) -> float | None:
    truth = explorer.split.concepts
    if truth is None:
        return None
    known = dict(match_concepts(explorer.bank.phrases, explorer.data.concept_names))
    if column not in known:
        return None
    labels = truth[:, known[column]]
    there = ~labels.isnan()
    return _auroc(scores[there], labels[there] == 1)


def _owners(explorer: Explorer, column: int, scores: Tensor) -> float | None:
    owners = [
        explorer.classes.index(name) for name in explorer.bank.concepts[column].classes if name in explorer.classes
    ]
    if not owners:
        return None
    y = explorer.split.y
    if not explorer.many:
        return _auroc(scores, torch.isin(y, torch.tensor(owners)))
    own = y[:, owners]
    known = (own == 1).any(dim=1) | ~own.isnan().any(dim=1)  # that one of them is there says enough
    return _auroc(scores[known], (own[known] == 1).any(dim=1))


def _auroc(scores: Tensor, shown: Tensor) -> float | None:
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(scores.sigmoid(), shown.int())) if bool(shown.any()) and not bool(shown.all()) else None
