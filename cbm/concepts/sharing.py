"""Concepts that classes share: those whose scores go together on pictures become one, and some stay a class's own.

The "partially shared" concepts of PS-CBM (AAAI 2026, released code): concepts are visited by how many others their
scores cover, most first; what one covers is merged into it, with its owners. Each class then keeps the concepts that it
shares and the few of its own that its pictures show best.

The published likeness is the cosine of two columns of raw scores. Cosines of CLIP are all positive and nearly alike, so
that this is close to 1 for any two concepts, and its cutoff (.9998) is a number of one encoder. ``score_likeness``
subtracts the mean of each column first, which makes it their correlation.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import ConceptBank
from cbm.concepts.filters import merged_concept
from cbm.files.names import quoted

log = logging.getLogger(__name__)


def score_likeness(scores: Tensor, *, centred: bool) -> Tensor:
    """Cosines ``[K, K]`` of the columns of scores; of a constant column, if it is centred, 0.

    Args:
        scores: scores ``[N, K]`` of pictures.
        centred: whether the mean of every column is subtracted first, which makes them correlations.

    Example:
        >>> scores = torch.tensor([[0.20, 0.22], [0.22, 0.20]])
        >>> [round(float(score_likeness(scores, centred=c)[0, 1]), 3) for c in (False, True)]
        [0.995, -1.0]
    """
    columns = scores.double()
    if centred:
        columns = columns - columns.mean(dim=0)
    columns = normalize(columns, dim=0)
    return columns.T @ columns


def covering_merges(likeness: Tensor, owners: Tensor, cutoff: float, *, keep_own: bool) -> list[tuple[int, list[int]]]:
    """Which concepts are merged into which, those that cover most others first.

    Args:
        likeness: likeness ``[K, K]`` of the concepts (``score_likeness``).
        owners: which class owns which concept ``[C, K]`` bool; one without owner is every class's and is left alone.
        cutoff: likeness from which on two concepts are one.
        keep_own: whether no merger may take the last concept that is its own from a class.

    Returns:
        Pairs of a concept and those that are merged into it, the most alike first; of equals the first concept covers.

    Example:
        >>> likeness = torch.tensor([[1.0, 0.95, 0.1], [0.95, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> covering_merges(likeness, torch.eye(3, dtype=torch.bool), 0.9, keep_own=False)
        [(0, [1])]
        >>> covering_merges(likeness, torch.eye(3, dtype=torch.bool), 0.9, keep_own=True)
        []
    """
    owned = owners.any(dim=0)
    near = (likeness >= cutoff) & owned & owned[:, None]
    near.fill_diagonal_(False)
    owners, free, covers = owners.clone(), owned.clone(), near.sum(dim=1)
    found = []
    while bool(covers.any()):
        head = int(covers.argmax())
        order = likeness[head].argsort(descending=True, stable=True)
        gone = []
        for member in order[(near[head] & free)[order]].tolist():
            after = owners.clone()
            after[:, head] |= after[:, member]
            after[:, member] = False
            if not keep_own or bool((_has_own(after) | ~_has_own(owners)).all()):
                owners = after
                gone.append(member)
        if gone:
            found.append((head, gone))
        done = torch.tensor([head, *gone])
        free[done] = False
        covers = (covers - near[:, done].sum(dim=1)).where(free, 0)
    return found


def _has_own(owners: Tensor) -> Tensor:
    """Whether each class ``[C]`` owns a concept that no other class does."""
    return owners[:, owners.sum(dim=0) == 1].any(dim=1)


def share_concepts(
    bank: ConceptBank, classes: list[str], likeness: Tensor, shown: Tensor, *, cutoff: float, own: int, keep_own: bool
) -> ConceptBank:
    """The bank in which concepts that score alike are one, and a class keeps few that are its own.

    Args:
        bank: the K concepts.
        classes: C class names.
        likeness: likeness ``[K, K]`` of the concepts.
        shown: how well the pictures of a class show a concept ``[C, K]``.
        cutoff: likeness from which on two concepts are one.
        own: number of concepts that a class keeps of those that are its own, those that its pictures show best.
        keep_own: whether no merger may take the last concept that is its own from a class.
    """
    owners = bank.owners(classes)
    merges = covering_merges(likeness, owners, cutoff, keep_own=keep_own)
    reasons: list[str | None] = [None] * len(bank)
    concepts = list(bank.concepts)
    for head, gone in merges:
        concepts[head] = merged_concept(bank.concepts[head], [bank.concepts[k] for k in gone])
        for k in gone:
            reasons[k] = f"scores like '{bank.texts[head]}' (likeness {float(likeness[head, k]):.4f}), merged into it"
    for name, row in zip(classes, shown):
        mine = [k for k, one in enumerate(concepts) if reasons[k] is None and one.classes == (name,)]
        for k in sorted(mine, key=lambda k: -float(row[k]))[own:]:
            reasons[k] = f"'{name}' has {own} concepts of its own that its pictures show better"
    shared = replace(bank, concepts=tuple(concepts)).keep(reasons, "sharing")
    _say(bank, merges, shared, classes)
    return shared


def _say(bank: ConceptBank, merges: list[tuple[int, list[int]]], shared: ConceptBank, classes: list[str]) -> None:
    """What was merged into what, and how many classes have a concept of their own."""
    gone = [f"{bank.texts[k]} -> {bank.texts[head]}" for head, others in merges for k in others]
    alone = [one.classes[0] for one in shared.concepts if len(one.classes) == 1]
    log.info("concepts: %d of %d merged into one that scores alike%s", len(gone), len(bank),
             f": {quoted(gone)}" if gone else "")  # fmt: skip
    log.info("concepts: %d shared by classes, %d of one class; %d of %d classes have one of their own",
             len(shared) - len(alone), len(alone), len(set(alone)), len(classes))  # fmt: skip
