"""A concept on the split: which pictures show it, which classes use it, whether it agrees with the labels."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.gallery import Tile, tile
from cbm.concepts import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.editing import alike
from cbm.errors import nearest
from cbm.report.wording import deviations
from cbm.trained.heat_map import concept_score

PICTURES, CLASSES = 8, 10


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
        alike: concepts that the encoder cannot tell from this one.
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


def find_concepts(bank: ConceptBank, words: str) -> list[int]:
    """Columns of the concepts with words that begin so, or else of those whose text is nearest; all without words."""
    wanted = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in words.split()]
    texts = bank.texts
    found = [k for k, text in enumerate(texts) if all(word.search(text) for word in wanted)]
    return found or [texts.index(text) for text in nearest(words, texts, CLASSES)]


@torch.no_grad()
def describe_concept(explorer: Explorer, column: int) -> ConceptFacts:
    """Everything about one concept; of N pictures and K concepts one column of N scores is computed.

    Raises:
        UserError: a model without concepts.
    """
    bank, split = explorer.bank, explorer.split
    concept, model = bank.concepts[column], explorer.bottleneck
    speaking = model or explorer.energies
    assert speaking is not None
    scores = concept_score(speaking, column, split.x)
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
        near = alike(model, this).nonzero()[:, 0].tolist()
        same = [bank.texts[k] for k in near if k != column][:CLASSES]
    return ConceptFacts(
        column,
        concept.text,
        concept.classes,
        concept.group,
        str(concept.provenance.get("source", bank.source)),
        top,
        bottom,
        used,
        _agreement(explorer, column, scores),
        _owners(explorer, column, scores),
        same,
    )


def _agreement(explorer: Explorer, column: int, scores: Tensor) -> float | None:
    truth = explorer.split.concepts
    if truth is None:
        return None
    known = dict(match_concepts(explorer.bank.texts, explorer.data.concept_names))
    if column not in known:
        return None
    labels = truth[:, known[column]]
    there = ~labels.isnan()
    return _auroc(scores[there], labels[there] == 1)


def _owners(explorer: Explorer, column: int, scores: Tensor) -> float | None:
    owners = [
        explorer.classes.index(name) for name in explorer.bank.concepts[column].classes if name in explorer.classes
    ]
    return _auroc(scores, torch.isin(explorer.split.y, torch.tensor(owners))) if owners else None


def _auroc(scores: Tensor, shown: Tensor) -> float | None:
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(scores.sigmoid(), shown.int())) if bool(shown.any()) and not bool(shown.all()) else None
