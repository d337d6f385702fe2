"""Label-free CBM's filters (Oikarinen et al., ICLR 2023, section 3.1): short, new, not a class, seen in images.

Similarity is the cosine of text embeddings. Those of CLIP share a large common vector, so that unrelated phrases have
cosines of 0.7 and more, a different number for every encoder; by default (``centred=True``) the mean of the texts is
removed first. ``centred=False`` is the published cosine. No filter holds an M x M or N x M matrix.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.kernels import concept_scores

_ROWS = 512  # phrases compared with all others at a time
_PICTURES = 8192  # pictures scored at a time


def text_similarity(texts: Tensor, others: Tensor, *, centred: bool = True, center: Tensor | None = None) -> Tensor:
    """Cosines ``[M, C]`` of two sets of texts.

    Args:
        texts: embeddings ``[M, E]`` of the first set.
        others: embeddings ``[C, E]`` of the second set.
        centred: whether the mean of all texts is subtracted first.
        center: mean ``[E]`` to subtract; by default that of both sets.
    """
    texts, others = _directions([texts, others], centred, center)
    return texts @ others.T


def _directions(sets: list[Tensor], centred: bool, center: Tensor | None) -> list[Tensor]:
    """Unit vectors whose dot products are the similarities."""
    sets = [normalize(texts.float(), dim=1) for texts in sets]
    if centred:
        center = torch.cat(sets).mean(dim=0) if center is None else center
        sets = [normalize(texts - center, dim=1) for texts in sets]
    return sets


def drop_long(bank: ConceptBank, max_characters: int = 30) -> ConceptBank:
    """Leave out phrases of more than ``max_characters``."""
    reason = f"longer than {max_characters} characters"
    return bank.keep([reason if len(text) > max_characters else None for text in bank.texts], "length")


def drop_near_class_names(
    bank: ConceptBank,
    embeddings: Tensor,
    class_embeddings: Tensor,
    classes: list[str],
    cutoff: float = 0.85,
    *,
    centred: bool = True,
    center: Tensor | None = None,
) -> ConceptBank:
    """Leave out phrases that mean the same as a class name.

    Args:
        bank: bank of M concepts.
        embeddings: embeddings ``[M, E]`` of their texts, by any text encoder.
        class_embeddings: embeddings ``[C, E]`` of the class names, by the same encoder.
        classes: C class names.
        cutoff: similarity with any class name, owner or not, from which on a phrase is left out.
        centred: whether the mean is subtracted first, see ``text_similarity``.
        center: mean ``[E]`` to subtract; by default that of phrases and class names.
    """
    _check(bank, embeddings)
    phrases, names = _directions([embeddings, class_embeddings], centred, center)
    reasons: list[str | None] = []
    for part in phrases.split(_ROWS):
        value, nearest = (part @ names.T).max(dim=1)
        reasons += [
            f"near the class name '{classes[c]}' (similarity {v:.2f})" if v >= cutoff else None
            for v, c in zip(value.tolist(), nearest.tolist())
        ]
    return bank.keep(reasons, "class name similarity")


def drop_near_duplicates(
    bank: ConceptBank, embeddings: Tensor, cutoff: float = 0.90, *, centred: bool = True, center: Tensor | None = None
) -> ConceptBank:
    """Of two phrases that mean the same keep the more generic one, with the owners of both.

    Pairs are visited in alphabetical order; a phrase that was left out already removes no other. The more generic
    phrase has the larger sum of cosines with all phrases (always without centring, which would leave only rounding and
    skewness of that sum); of equals, it is the first.

    Args:
        bank: bank of M concepts.
        embeddings: embeddings ``[M, E]`` of their texts, by any text encoder.
        cutoff: similarity from which on two phrases are duplicates.
        centred: whether the mean is subtracted first, see ``text_similarity``.
        center: mean ``[E]`` to subtract; by default that of the phrases.
    """
    _check(bank, embeddings)
    order = sorted(range(len(bank)), key=lambda k: bank.concepts[k].text)
    (raw,) = _directions([embeddings[order]], False, None)
    (phrases,) = _directions([embeddings[order]], centred, center)
    generic = (raw.double() @ raw.double().sum(dim=0)).float()  # equal texts stay equal
    winner = _winners(phrases, generic.cpu(), cutoff).tolist()

    reasons: list[str | None] = [None] * len(bank)
    merged: dict[int, list[Concept]] = {}
    for loser, kept in enumerate(winner):
        if kept < 0:
            continue
        similarity = float(phrases[loser] @ phrases[kept])
        reason = f"nearly the same as '{bank.concepts[order[kept]].text}' (similarity {similarity:.2f})"
        if winner[kept] >= 0:  # which lost to another one later
            while winner[kept] >= 0:
                kept = winner[kept]
            reason += f", merged into '{bank.concepts[order[kept]].text}'"
        reasons[order[loser]] = reason
        merged.setdefault(order[kept], []).append(bank.concepts[order[loser]])
    concepts = [
        merged_concept(concept, merged[k]) if k in merged else concept for k, concept in enumerate(bank.concepts)
    ]
    return replace(bank, concepts=tuple(concepts)).keep(reasons, "near duplicates")


def merged_concept(concept: Concept, gone: list[Concept]) -> Concept:
    """The concept with the owners of those it stands for, whose texts are kept in its provenance.

    Example:
        >>> one = merged_concept(Concept("red bill", ("finch",)), [Concept("red beak", ("crow",))])
        >>> one.classes, one.provenance
        (('finch', 'crow'), {'merged': ['red beak']})
    """
    owners = dict.fromkeys(name for one in (concept, *gone) for name in one.classes)
    names = [*concept.provenance.get("merged", []), *(one.text for one in gone)]
    return replace(concept, classes=tuple(owners), provenance={**concept.provenance, "merged": names})


def _winners(phrases: Tensor, generic: Tensor, cutoff: float) -> Tensor:
    """For every phrase the row it lost to, or -1 ``[M]``, when pairs i < j are visited in order of i, then of j."""
    winner = torch.full((len(phrases),), -1)
    left = torch.arange(len(phrases))  # neither visited nor gone
    while len(left):
        near = (phrases[:_ROWS] @ phrases.T >= cutoff).triu_(diagonal=1).cpu()
        for row in near.any(dim=1).nonzero().flatten().tolist():
            i, rivals = left[row], left[near[row]]
            rivals = rivals[winner[rivals] < 0]
            if winner[i] >= 0 or not len(rivals):
                continue
            stronger = (generic[rivals] > generic[i]).nonzero().flatten()
            if len(stronger):
                rivals, winner[i] = rivals[: stronger[0]], rivals[stronger[0]]
            winner[rivals] = i
        left, phrases = left[_ROWS:], phrases[_ROWS:]
        standing = winner[left] < 0
        if not standing.all():
            left, phrases = left[standing], phrases[standing]
    return winner


def top_activation(x: Tensor, concepts: Tensor, count: int = 5) -> Tensor:
    """Mean ``[M]`` of every concept's ``count`` largest cosines with images.

    Args:
        x: the teacher's features ``[N, E]`` of the training images; may be memory-mapped.
        concepts: the teacher's embeddings ``[M, E]`` of the phrases.
        count: number of images per concept; all of them if there are fewer.
    """
    directions = normalize(concepts.float(), dim=1)
    best = directions.new_empty(len(concepts), 0)
    for part in x.split(_PICTURES):
        pictures = normalize(part.to(directions.device).float(), dim=1)
        tops = []
        for some, before in zip(directions.split(_ROWS), best.split(_ROWS)):
            scores = concept_scores(pictures, some).T
            own = scores.topk(min(count, scores.shape[1]), dim=1).values
            tops.append(torch.cat([before, own], dim=1).topk(min(count, before.shape[1] + own.shape[1]), dim=1).values)
        best = torch.cat(tops)
    return best.mean(dim=1)


def drop_unseen(bank: ConceptBank, activation: Tensor, cutoff: float) -> ConceptBank:
    """Leave out phrases that no training image shows.

    Args:
        bank: bank of M concepts.
        activation: mean largest cosines ``[M]``, see ``top_activation``.
        cutoff: value that the activation of a phrase must exceed.
    """
    _check(bank, activation)
    reasons = [
        None if value > cutoff else f"not seen: its best pictures score {value:.3f}, wanted more than {cutoff:g}"
        for value in activation.tolist()
    ]
    return bank.keep(reasons, "activation")


def _check(bank: ConceptBank, rows: Tensor) -> None:
    if len(rows) != len(bank):
        raise ValueError(f"bank '{bank.name}' has {len(bank)} concepts, but {len(rows)} rows were given for them")
