"""Select concepts that are discriminative and diverse, class by class (LaBo, CVPR 2023, section 3.2)."""

import logging

import torch
from torch import Tensor

from cbm.solvers import discriminability, greedy_select
from cbm.solvers.discriminability import Score
from cbm.solvers.submodular import Coverage

log = logging.getLogger(__name__)


def select_concepts(
    embeddings: Tensor,
    owners: Tensor,
    class_means: Tensor,
    per_class: int,
    *,
    score: Score,
    coverage: Coverage,
    coverage_weight: float,
    score_weight: float | None = None,
) -> Tensor:
    """Choose ``per_class`` concepts for every class from the phrases it owns.

    Args:
        embeddings: embeddings ``[M, D]`` of the candidate phrases.
        owners: which class owns which phrase, ``[C, M]`` bool. A phrase that several classes own may be chosen for
            several of them and is one concept.
        class_means: mean image features ``[C, D]`` of the classes.
        per_class: number of concepts per class; a class with fewer candidates takes all of them.
        score: measure of discriminability, see ``cbm.solvers.discriminability``.
        coverage: measure of coverage, see ``cbm.solvers.submodular``.
        coverage_weight: weight of coverage (the mean over the class's candidates of how well the nearest choice covers
            them) against discriminability (scaled to 0 .. 1 over the bank).
        score_weight: weight of discriminability as it is, with which the utility is the published one: neither is it
            scaled, nor is coverage a mean, and mutual information is that of the paper (without the factor M).

    Returns:
        The chosen columns, class by class in greedy order, without repetition.
    """
    value, clamped = discriminability(embeddings, class_means, score)
    if clamped:
        log.info("selection: %d of %d class similarities were negative and count as zero", clamped, owners.numel())
    candidates = [row.nonzero().flatten() for row in owners]
    if score_weight is None:
        value = _unit_range(value)
        coverage_weight /= max(1.0, float(owners.sum(dim=1).double().mean()))
    else:
        value = score_weight * (value / len(embeddings) if score == "mutual_information" else value)
    picks = greedy_select(value, embeddings, candidates, per_class, coverage=coverage, coverage_weight=coverage_weight)
    return torch.tensor(list(dict.fromkeys(torch.cat(picks).tolist())))


def _unit_range(value: Tensor) -> Tensor:
    """Scores moved and scaled to 0 .. 1, so that a coverage weight means the same for every bank and score."""
    low, high = value.min(), value.max()
    return (value - low) / (high - low).clamp(min=1e-300)


def claim_concepts(embeddings: Tensor, class_means: Tensor) -> Tensor:
    """Find owners for phrases without owners: the class whose training images match a phrase best owns it.

    Similarities are compared after subtracting their mean over the classes, so that differences between classes count.

    Args:
        embeddings: embeddings ``[M, D]`` of the phrases.
        class_means: mean image features ``[C, D]`` of the classes.

    Returns:
        Which class owns which phrase, ``[C, M]`` bool; every class also owns its own best phrases, M / C of them and at
        least 5, so that no class is without.
    """
    similarity = class_means @ embeddings.T  # [C, M]
    relative = similarity - similarity.mean(dim=0)
    relative = relative / relative.norm(dim=0).clamp(min=1e-12)
    owners = torch.zeros_like(relative, dtype=torch.bool)
    owners[relative.argmax(dim=0), torch.arange(relative.shape[1])] = True
    count = min(max(5, relative.shape[1] // len(relative)), relative.shape[1])
    best = relative.topk(count, dim=1).indices
    return owners.scatter(1, best, True)
