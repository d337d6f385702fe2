"""Are concepts what they say? Measured where the data set labels some: the only evidence that no association with the
classes can give, because within a class the class is no help.

Every score is compared with every label, so that names dealt out anew are a null hypothesis that costs nothing: entry
(i, j) of ``auroc_matrix`` is how well score i finds the images that show concept j, the diagonal is the truth of the
names, and a permutation of its columns is a draw without it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.metrics.exchange import LEVEL, WAYS, ways_to_deal


@dataclass(frozen=True)
class Truth:
    """How far scores are what their names say.

    Attributes:
        auroc: AUROC ``[M]`` of every score for the label of its own name; NaN if that is not defined.
        error: standard error ``[M]`` of each under the hypothesis that it is 0.5.
        mean: mean of ``auroc``.
        null: mean under names that are dealt out anew.
        null_sd: its standard deviation over the draws.
        p: share of the draws, and the names as they are, with so high a mean.
        above: share of the concepts whose AUROC is significantly above 0.5 (one-sided 5 %, Holm over the concepts).
        untestable: why even perfect scores could not pass; empty if they could.
    """

    auroc: Tensor
    error: Tensor
    mean: float
    null: float
    null_sd: float
    p: float
    above: float
    untestable: str = ""

    @property
    def passed(self) -> bool:
        """Whether the names fit better than dealt out anew, and at least half of them significantly better than coin
        tosses."""
        return not self.untestable and self.p < LEVEL and self.above >= 0.5


def concept_truth(
    scores: Tensor, labels: Tensor, strata: Tensor | None = None, *, draws: int = 199, seed: int = 0
) -> Truth | None:
    """Compare scores with labels, over all images or within strata.

    Images count as independent of each other.

    Args:
        scores: scores ``[N, M]``.
        labels: labels ``[N, M]`` of the same concepts: 1, 0, or NaN if unknown.
        strata: class indices ``[N]``: images are compared with others of their class only (weights n1 n0 of van
            Elteren); None compares all.
        draws: permutations of the names.
        seed: random seed of the permutations.

    Returns:
        The comparison; None if no concept has both labels (in a stratum).

    Example:
        >>> labels = torch.tensor([[1.0, 0], [0, 1]]).repeat(50, 1)
        >>> found = concept_truth(labels + 0.1 * torch.arange(100)[:, None] / 100, labels)
        >>> found.mean, round(found.null, 1), found.above  # of two names, half of the permutations exchange them
        (1.0, 0.5, 1.0)
    """
    auroc, variance = auroc_matrix(scores, labels, strata)
    own = auroc.diagonal()
    known = ~own.isnan()
    if not known.any():
        return None
    error = variance.sqrt()
    p_values = upper_tail(((own - 0.5) / error)[known])
    filled = auroc.nan_to_num(0.5)[:, known]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(filled))[known]
    null = torch.stack(
        [filled[rows[torch.randperm(len(rows), generator=generator)], torch.arange(len(rows))].mean()
         for _ in range(draws)]
    )  # fmt: skip
    mean = float(own[known].mean())
    above = sum(holm(p_values, LEVEL)) / len(p_values)
    as_good = int((null >= mean - 1e-9).sum())
    spread = float(null.std()) if draws > 1 else math.nan
    untestable = ""
    if ways_to_deal(labels[:, known].T) < WAYS:
        untestable = f"names of {len(rows)} concept(s) with labels can be exchanged in too few ways"
    elif 2 * sum(holm(upper_tail((0.5 / error)[known]), LEVEL)) < len(rows):
        untestable = "too few images with and without a concept for any score to be significant"
    return Truth(own, error, mean, float(null.mean()), spread, (1 + as_good) / (1 + draws), above, untestable)


def auroc_matrix(scores: Tensor, labels: Tensor, strata: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """AUROC of every score for every label (Mann and Whitney, Ann. Math. Stat. 1947), by sums of ranks.

    Args:
        scores: scores ``[N, J]``.
        labels: labels ``[N, M]``: 1, 0, or NaN if unknown; an image of unknown label is left out for all labels of its
            column only.
        strata: class indices ``[N]``, see ``concept_truth``.

    Returns:
        AUROC ``[J, M]`` float64, NaN for a label without both values; and the variance ``[M]`` of each column if a
        score has nothing to do with the label (without ties).
    """
    strata = torch.zeros(len(scores), dtype=torch.long) if strata is None else strata
    wins = torch.zeros(scores.shape[1], labels.shape[1], dtype=torch.float64)
    pairs, variance = torch.zeros(2, labels.shape[1], dtype=torch.float64)
    for stratum in strata.unique():
        rows = strata == stratum
        truth, here = labels[rows], scores[rows]
        known = ~truth.isnan()
        patterns, column = known.unique(dim=1, return_inverse=True)  # labels that are known of the same images
        for pattern, members in ((patterns[:, i], column == i) for i in range(patterns.shape[1])):
            shown = truth[pattern][:, members].double()
            positive = shown.sum(dim=0)
            negative = len(shown) - positive
            if not len(shown) or not bool((positive * negative).any()):
                continue
            wins[:, members] += mid_ranks(here[pattern]).T @ shown - (positive * (positive + 1) / 2)
            pairs[members] += positive * negative
            variance[members] += positive * negative * (len(shown) + 1) / 12
    auroc = torch.where(pairs > 0, wins / pairs, torch.nan)
    return auroc, variance / pairs.square()


def mid_ranks(values: Tensor) -> Tensor:
    """Ranks ``[N, J]`` from 1 within each column, float64; equal values share the mean of their ranks.

    >>> mid_ranks(torch.tensor([[3.0], [1.0], [3.0]])).flatten().tolist()
    [2.5, 1.0, 2.5]
    """
    ordered = values.sort(dim=0).values
    ends = torch.searchsorted(ordered.T.contiguous(), values.T.contiguous(), right=True)
    starts = torch.searchsorted(ordered.T.contiguous(), values.T.contiguous())
    return ((starts + 1 + ends) / 2).T.double()


def upper_tail(z: Tensor) -> list[float]:
    """Chances of a standard normal number above each of ``z`` ``[M]``."""
    return [0.5 * math.erfc(float(each) / math.sqrt(2)) for each in z]


def holm(p_values: list[float], level: float) -> list[bool]:
    """Which of several hypotheses are rejected, with at most ``level`` chance of rejecting a true one (Holm, Scand. J.
    Stat. 1979).

    >>> holm([0.01, 0.04, 0.03], 0.05)
    [True, False, False]
    """
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected
