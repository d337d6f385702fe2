"""Grounding: does a concept score higher on images of the classes that own it?

That is association with a class, not truth: phrases that are false of every image of a class can go with it as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.kernels import class_sums, score_moments
from cbm.metrics.exchange import LEVEL, WAYS, ways_to_deal


def concept_gaps(x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score of every concept on the images of its owners minus its mean score on all others.

    The owners come from the text, the scores from the images; a concept whose direction has nothing to do with its name
    has a gap near zero.

    Args:
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        concepts: concept directions ``[K, D]`` of the model.
        owners: which class owns which concept, ``[C, K]`` bool.

    Returns:
        The gaps ``[K]`` in cosine units, and in standard deviations of the concept's score over the images. NaN for a
        concept that no class or every class owns.
    """
    classes = len(owners)
    counts = torch.bincount(y, minlength=classes).float()
    sums = class_sums(x, y, classes) @ concepts.T  # [C, K] summed scores per class
    own, rest = owners.float(), 1 - owners.float()
    inside, outside = (own * counts[:, None]).sum(0), (rest * counts[:, None]).sum(0)
    gap = (own * sums).sum(0) / inside - (rest * sums).sum(0) / outside  # NaN where a count is zero
    if len(x) < 2:
        return gap, torch.full_like(gap, torch.nan)
    _, std = score_moments(x, concepts)
    return gap, gap / std.clamp(min=1e-12)


def grounding_gap(x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor) -> tuple[float, float]:
    """Mean of ``concept_gaps`` over the concepts that have one, in cosine units and in standard deviations.

    Arguments as for ``concept_gaps``.
    """
    gap, standard = concept_gaps(x, y, concepts, owners)
    return float(gap.nanmean()), float(standard.nanmean())


@dataclass(frozen=True)
class Association:
    """The grounding gaps of a bank, beside those under owners that are dealt out anew.

    Attributes:
        gap: mean gap, in standard deviations of the scores.
        low: lower end of its 95 % interval over classes (the concepts of a class are drawn together).
        high: upper end.
        null: mean gap under permuted owners.
        null_sd: its standard deviation over the draws.
        p: share of the draws, and the owners as they are, with so large a gap.
        untestable: why even a perfect bank could not pass; empty if one could.
    """

    gap: float
    low: float
    high: float
    null: float
    null_sd: float
    p: float
    untestable: str = ""

    @property
    def passed(self) -> bool:
        """Whether concepts go with their owners: significantly, and by at least 0.2 sd (Cohen's "small" effect)."""
        return not self.untestable and self.p < LEVEL and self.low > 0 and self.gap >= 0.2


def association(
    x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor, *, draws: int = 199, seed: int = 0
) -> Association | None:
    """Whether concepts score higher on images of their owners than they would under the owners of other concepts.

    Args:
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        concepts: concept directions ``[K, D]`` of the model.
        owners: which class owns which concept, ``[C, K]`` bool; not chosen on these images.
        draws: permutations of the owners.
        seed: random seed.

    Returns:
        The comparison; None if no concept has a gap.
    """
    gaps = concept_gaps(x, y, concepts, owners)[1]
    known = ~gaps.isnan()
    if not known.any():
        return None
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(y, minlength=len(owners)).double()
    sums = (class_sums(x, y, len(owners)) @ concepts.T).double() / score_moments(x, concepts)[1].clamp(min=1e-12)
    rows, columns = owners.nonzero(as_tuple=True)
    count = owners.shape[1]
    orders = (torch.randperm(count, generator=generator) for _ in range(draws))
    null = torch.stack([_mean_gap(sums, counts, rows, order[columns]) for order in orders])
    mean = float(gaps[known].mean())
    low, high = _interval_over_classes(gaps[known], owners[:, known].int().argmax(dim=0), generator)
    as_good = int((null >= mean - 1e-6).sum())  # the two sums are rounded differently
    few = ways_to_deal(owners[counts > 0].T.float()) < WAYS
    untestable = f"owners of {count} concept(s) can be exchanged in too few ways" if few else ""
    spread = float(null[~null.isnan()].std())
    return Association(mean, low, high, float(null.nanmean()), spread, (1 + as_good) / (1 + draws), untestable)


def _mean_gap(sums: Tensor, counts: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean gap of scores with these sums ``[C, K]`` over the images of a class, if class ``rows[j]`` owns concept
    ``columns[j]``."""
    inside, owned = counts.new_zeros(2, sums.shape[1])
    inside.index_add_(0, columns, counts[rows])
    owned.index_add_(0, columns, sums[rows, columns])
    return (owned / inside - (sums.sum(dim=0) - owned) / (counts.sum() - inside)).nanmean()


def _interval_over_classes(gaps: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """95 % interval ``(low, high)`` of a mean over concepts: classes are drawn again, 1,000 times, with theirs."""
    count = int(classes.max()) + 1
    totals = torch.zeros(2, count, dtype=torch.float64)
    totals[0].index_add_(0, classes, gaps.double())
    totals[1].index_add_(0, classes, torch.ones_like(gaps).double())
    present = totals[:, totals[1] > 0]
    drawn = torch.randint(present.shape[1], (1000, present.shape[1]), generator=generator)
    means = present[0, drawn].sum(dim=1) / present[1, drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
