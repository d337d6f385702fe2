"""Names for directions that nobody wrote down, with a test that they can fail.

The name of a unit is the text nearest to its atom, pictures and texts both without their means. That cosine is no
evidence: random directions with the pictures' covariance have cosines as large. A unit is *named* only if the word
tells on which pictures the unit fires (validation pictures, or training pictures where it fires on too few of them: the
words have learned from neither):

    A_kv = AUROC of c_v . x~ for {unit k fires}            v: a word, x~: a picture from the mean
    z_kv = A_kv in standard deviations above the mean of random words of the vocabulary
    p_k = share of all z of random words, of all units, that are as large as that of the unit's own word
    named: p_k passes Benjamini and Hochberg at ``fdr`` over the units, and AUROC >= ``min_auroc``

Even so, a name says what fires, and it says so of arbitrary directions too: the share of *random* directions that the
same procedure names stands beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.kernels import topk_concepts
from cbm.kernels.topk import sums_by_choice
from cbm.metrics.truth import mid_ranks

LEAST = 10
"""Pictures on which a unit must fire, and on which it must not, for a word to be tested."""
OTHERS = 1000
"""Random words that a unit's own is compared with, at most."""
SHOWN = 5
"""Words that are noted of every unit."""
AT_ONCE = 16_000_000
"""Ranks in memory at once."""


@dataclass(frozen=True)
class UnitNames:
    """The words of K units, and how well they fit.

    Attributes:
        words: the nearest words ``[K, m]``, the nearest first, as rows of the vocabulary.
        cosine: their cosines ``[K, m]`` with the unit.
        auroc: how well the nearest word tells where the unit fires ``[K]``; NaN where that cannot be tested.
        p: share ``[K]`` of random words that tell as well where units fire; NaN where that cannot be tested.
        named: whether the word counts as the unit's name ``[K]``.
        firing: number of pictures ``[K]`` on which the unit fires, of those that it was tested on.
        pictures: number of these pictures ``[K]``.
        dealt: share of the tested units that would be named by the words of other units.
        auroc_dealt: mean AUROC of those.
    """

    words: Tensor
    cosine: Tensor
    auroc: Tensor
    p: Tensor
    named: Tensor
    firing: Tensor
    pictures: Tensor
    dealt: float
    auroc_dealt: float

    @property
    def tested(self) -> Tensor:
        """Which units fire on enough pictures for their word to be tested ``[K]``."""
        return ~self.auroc.isnan()

    @property
    def margin(self) -> Tensor:
        """How much nearer the nearest word is than the next, ``[K]``; 0 if there is only one."""
        return self.cosine[:, 0] - self.cosine[:, 1] if self.cosine.shape[1] > 1 else torch.zeros(len(self.cosine))


def name_units(
    directions: Tensor,
    shown: Sequence[tuple[Tensor, Tensor]],
    words: Tensor,
    *,
    fdr: float = 0.05,
    min_auroc: float = 0.7,
    seed: int = 0,
) -> UnitNames:
    """Find the nearest word of every unit and test it.

    Args:
        directions: unit directions ``[K, E]`` of the units in the space of the texts.
        shown: sets of N pictures each: the units ``[N, m]`` that fire on each (-1 for none), and the pictures in the
            space of the texts ``[N, E]``, of length 1 from their mean. A unit is tested on the first set on which it
            can be.
        words: text vectors ``[V, E]`` of the vocabulary, of length 1 without their mean.
        fdr: largest expected share of wrong names among the named.
        min_auroc: smallest AUROC of a name.
        seed: random seed of the words that are compared, and of the exchange.

    Example:
        >>> x, words = torch.eye(3).repeat(20, 1), torch.eye(3)
        >>> fires = torch.tensor([[1], [-1], [0]]).repeat(20, 1)
        >>> found = name_units(torch.eye(3)[[2, 0]], [(fires, x)], words, fdr=0.5)
        >>> found.words[:, 0].tolist(), found.auroc.tolist()
        ([2, 0], [1.0, 1.0])
    """
    cosine, nearest = topk_concepts(directions.float(), words.float(), min(SHOWN, len(words)))
    count = len(directions)
    generator = torch.Generator().manual_seed(seed)
    others = torch.randperm(len(words), generator=generator)[:OTHERS]
    shift = torch.randperm(count, generator=generator)
    dealt = torch.empty_like(shift)
    dealt[shift] = shift.roll(1)  # nobody keeps its own
    own, exchanged = nearest[:, 0], nearest[dealt, 0]
    asked, place = torch.cat([own, exchanged]).unique(return_inverse=True)
    firing, pictures = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    tested = torch.zeros(count, dtype=torch.bool)
    found, random = torch.full((2, count), torch.nan), torch.full((count, len(others)), torch.nan)
    for fires, x in shown:
        here = torch.bincount(fires[fires >= 0].flatten(), minlength=count)
        firing, pictures = (torch.where(tested, known, new) for known, new in ((firing, here), (pictures, len(x))))
        new = ~tested & (here >= LEAST) & (len(x) - here >= LEAST)
        tested |= new
        if not bool(new.any()):
            continue
        for start, part in _tables(fires, count, x, words[asked]):
            for i in (0, 1):
                column = place[i * count : (i + 1) * count] - start
                at = new & (column >= 0) & (column < part.shape[1])
                found[i, at] = part[at, column[at]]
        for start, part in _tables(fires, count, x, words[others]):
            random[new, start : start + part.shape[1]] = part[new]
    random[others[None] == own[:, None]] = torch.nan
    mean = random.nanmean(dim=1, keepdim=True)
    spread = (random - mean).square().nanmean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    null = ((random - mean) / spread).flatten()
    null = null[~null.isnan()].sort().values
    z = (found - mean.T) / spread.T
    as_good = len(null) - torch.searchsorted(null, z.nan_to_num(torch.inf) - 1e-6)
    p = (1 + as_good) / (1 + len(null))
    p[:, ~tested] = found[:, ~tested] = torch.nan
    named = [benjamini_hochberg(each, fdr) & (auroc >= min_auroc) for each, auroc in zip(p, found)]
    share = float(named[1][tested].double().mean()) if bool(tested.any()) else 0.0
    return UnitNames(nearest, cosine, found[0], p[0], named[0], firing, pictures, share, float(found[1].nanmean()))


def _tables(fires: Tensor, count: int, x: Tensor, words: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The AUROC of some words at a time for the firing of every unit, ``[K, chunk]``, with the first word's number."""
    size = max(1, AT_ONCE // max(len(x), 1))
    for start in range(0, len(words), size):
        yield start, firing_auroc(fires, count, x.float() @ words[start : start + size].float().T)


def firing_auroc(fires: Tensor, count: int, scores: Tensor) -> Tensor:
    """AUROC ``[K, J]`` of every score for the firing of every unit, by sums of ranks over the pictures where it fires.

    Args:
        fires: units ``[N, m]`` that fire on each of N pictures; -1 for none.
        count: number of units K.
        scores: scores ``[N, J]``.

    >>> firing_auroc(torch.tensor([[0], [0], [-1]]), 1, torch.tensor([[0.9], [0.2], [0.5]])).tolist()
    [[0.5]]
    """
    firing = torch.bincount(fires[fires >= 0].flatten(), minlength=count).double()[:, None]
    wins = sums_by_choice(mid_ranks(scores), fires, None, count) - firing * (firing + 1) / 2
    pairs = firing * (len(scores) - firing)
    return torch.where(pairs > 0, wins / pairs, torch.nan).float()


def benjamini_hochberg(p: Tensor, level: float) -> Tensor:
    """Which hypotheses ``[K]`` are rejected so that at most the share ``level`` of them is expected to be true
    (Benjamini, Hochberg, J. R. Stat. Soc. B 1995); NaN is no test, and never rejected.

    >>> benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03, float("nan")]), 0.05).tolist()
    [True, False, True, False]
    """
    known = p[~p.isnan()].sort().values
    passes = known <= level * torch.arange(1, len(known) + 1) / max(len(known), 1) + 1e-12
    if not bool(passes.any()):
        return torch.zeros_like(p, dtype=torch.bool)
    return p <= known[int(passes.nonzero().max())]


def mean_directions(fires: Tensor, weights: Tensor, count: int, x: Tensor) -> Tensor:
    """Where the pictures lie on which units fire: unit directions ``[K, E]`` of their weighted means.

    Args:
        fires: units ``[N, m]`` that fire on each of N pictures; -1 for none.
        weights: how strongly ``[N, m]``.
        count: number of units K.
        x: the pictures ``[N, E]``, of length 1 from their mean.
    """
    return normalize(sums_by_choice(x.float(), fires, weights.clamp(min=0), count), dim=1)


def top_pictures(fires: Tensor, weights: Tensor, count: int, most: int) -> list[list[int]]:
    """The pictures on which each unit fires most strongly, at most ``most``, the strongest first.

    Args:
        fires: units ``[N, m]`` that fire on each of N pictures; -1 for none.
        weights: how strongly ``[N, m]``.
        count: number of units K.
        most: pictures of a unit.
    """
    used = fires >= 0
    rows = used.nonzero()[:, 0]
    units, strength = fires[used], weights[used]
    order = strength.argsort(descending=True, stable=True)
    order = order[units[order].argsort(stable=True)]
    sizes = torch.bincount(units, minlength=count)
    starts = sizes.cumsum(0) - sizes
    return [
        rows[order[start : start + min(size, most)]].tolist() for start, size in zip(starts.tolist(), sizes.tolist())
    ]
