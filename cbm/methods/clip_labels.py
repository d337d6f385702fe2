"""CLIP in the place of a detector: which concepts the pictures of a class show, by their cosine with its text.

The pseudo-labels of PS-CBM (AAAI 2026, released code). A concept stays with a class if the four training pictures of
the class that are nearest to its text have a mean cosine of ``threshold`` or more, and a picture of the class shows it
where its own cosine is above ``threshold``. As published the cosines are raw. ``centred`` measures them from their
median over the training pictures, in standard deviations (``pseudo_logits``), so that one number means the same for
every concept and encoder.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.detections import Detections, owned_concepts
from cbm.concepts.sharing import score_likeness, share_concepts
from cbm.data.features import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.files.names import quoted
from cbm.kernels import concept_scores
from cbm.methods.concept_labels import asked_of_clip, pseudo_logits

log = logging.getLogger(__name__)

BEST = 4
"""Pictures of a class whose mean cosine says whether they show a concept."""


@dataclass(frozen=True)
class Sharing:
    """How concepts are shared by classes (``cbm.concepts.sharing``).

    Attributes:
        cutoff: likeness of scores from which on two concepts are one.
        own: concepts of its own that a class keeps.
    """

    cutoff: float
    own: int


def seen_by_clip(
    bank: ConceptBank, data: FeatureData, *, threshold: float, centred: bool, sharing: Sharing | None
) -> tuple[ConceptBank, Detections]:
    """The concepts that CLIP sees in the pictures of their classes, and its scores as a detector's that was asked about
    the concepts of each picture's class alone.

    Args:
        bank: the K concepts.
        data: encoded splits.
        threshold: score from which on pictures of a class show a concept.
        centred: whether cosines count from their median, in standard deviations, and not as they are; and likeness of
            scores is a correlation.
        sharing: how concepts are shared by classes; None to leave them as they are.

    Raises:
        UserError: the bank has no embeddings in the space of the features, or no class shows a concept.
    """
    scores = clip_scores(bank, data, centred=centred)
    shown = shown_by_class(scores["train"], data.train, len(data.classes))
    found = keep_shown(bank, data.classes, shown, threshold)
    if sharing is not None:
        columns = [bank.index(text) for text in found.texts]
        likeness = score_likeness(scores["train"][:, columns], centred=centred)
        found = share_concepts(found, data.classes, likeness, shown[:, columns], cutoff=sharing.cutoff,
                               own=sharing.own, keep_own=centred)  # fmt: skip
    columns = [bank.index(text) for text in found.texts]
    owners = found.owners(data.classes)
    if bool((owners != bank.owners(data.classes)[:, columns]).any()):
        found = found.owned_by(owners, data.classes, "grounded")
    return found, asked_by_class({name: each[:, columns] for name, each in scores.items()}, found, data)


def clip_scores(bank: ConceptBank, data: FeatureData, *, centred: bool) -> dict[str, Tensor]:
    """What CLIP says of all concepts in the training and validation pictures, ``[N, K]`` by name of the split.

    Args:
        bank: the K concepts.
        data: encoded splits.
        centred: whether cosines count from their median, in standard deviations, and not as they are.

    Raises:
        UserError: the bank has no embeddings in the space of the features.
    """
    directions = asked_of_clip(bank, data, "method.labels=pseudo asks CLIP what a picture shows")
    features = {name: data.splits[name].x for name in ("train", "val")}
    if centred:
        return pseudo_logits(features, directions)
    return {name: concept_scores(x, directions) for name, x in features.items()}


def shown_by_class(scores: Tensor, split: FeatureSplit, num_classes: int) -> Tensor:
    """Mean of a concept's ``BEST`` largest scores on the pictures of a class, ``[C, K]``; -inf of a class without any.

    Args:
        scores: scores ``[N, K]``.
        split: the N pictures; those of a label are all that have it.
        num_classes: number of classes or labels.

    Example:
        >>> split = FeatureSplit(torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 0, 1]), list("abcdef"))
        >>> shown_by_class(torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.0], [0.9]]), split, 2).tolist()
        [[0.25], [0.8999999761581421]]
    """
    shown = scores.new_full((num_classes, scores.shape[1]), -torch.inf)
    for c in range(num_classes):
        own = scores[split.y == c if split.y.ndim == 1 else split.y[:, c] == 1]
        if len(own):
            shown[c] = own.topk(min(BEST, len(own)), dim=0).values.mean(dim=0)
    return shown


def keep_shown(bank: ConceptBank, classes: list[str], shown: Tensor, threshold: float) -> ConceptBank:
    """The bank without what no class shows, and each concept with the owners that show it.

    Args:
        bank: the K concepts; one without owner stays if any class shows it.
        classes: C class names.
        shown: how well the pictures of a class show a concept ``[C, K]``.
        threshold: number from which on they do.

    Raises:
        UserError: nothing is left.
    """
    owners = bank.owners(classes)
    best = torch.where(owners | ~owners.any(dim=0), shown, -torch.inf).max(dim=0).values
    reasons = [
        None if value >= threshold else f"not seen: its classes' best pictures score {value:.2f}, wanted {threshold:g}"
        for value in best.tolist()
    ]
    if None not in reasons:
        raise UserError(
            f"method.threshold={threshold:g}: no concept of bank '{bank.name}' scores as much on the best pictures of "
            f"its classes, {float(best.max()):.2f} at most: a smaller number keeps more"
        )
    if gone := [text for text, reason in zip(bank.texts, reasons) if reason]:
        log.info("concepts: %d of %d left out, not seen in pictures of their classes: %s", len(gone), len(bank),
                 quoted(gone))  # fmt: skip
    kept = torch.tensor([reason is None for reason in reasons])
    return bank.keep(reasons, "seen").owned_by((owners & (shown >= threshold))[:, kept], classes)


def asked_by_class(scores: dict[str, Tensor], bank: ConceptBank, data: FeatureData) -> Detections:
    """The scores as a detector's that was asked about the concepts of each picture's class alone.

    Args:
        scores: scores ``[N, K]`` by name of the split.
        bank: the K concepts.
        data: encoded splits.
    """
    owners = bank.owners(data.classes)
    asked = {name: each.where(owned_concepts(data.splits[name], owners), torch.nan) for name, each in scores.items()}
    listed = {name: torch.ones(len(each), dtype=torch.bool) for name, each in scores.items()}
    return Detections(asked, listed, says_asked=True)
