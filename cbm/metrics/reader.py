"""Reader accuracy: could somebody who reads only the few words that an image gets say its class?

Nothing is trained, so nothing can re-label a direction: only names can earn this number. An image is written as at most
five words (a non-negative code), what a word says of the classes comes from text alone, and the null hypothesis (names
that say nothing) is measured by dealing the names out anew:

    reader accuracy = mean_i [ argmax_c (z_i A)_c = y_i ]            z [N, K] code, A [K, C] what the names say
    name value      = reader accuracy - its mean under permuted rows of A

Text that made the directions is no independent reader: with the encoder's own text vectors, ``z A`` is the zero-shot
classification of the reconstructed image, at which random directions do as well. That number is ``code_zero_shot``, and
it is no evidence for names.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.layers import ConceptBottleneck
from cbm.metrics.bootstrap import Units, bootstrap, mean_of, share_interval
from cbm.metrics.exchange import LEVEL, WAYS, ways_to_deal
from cbm.solvers import Codes, sparse_code

WORDS = 5
"""Words of an image that are read."""
AT_MOST = 5000
"""Images that are read, at most: at even distances."""


def few_words(x: Tensor, concepts: Tensor, mean: Tensor, count: int = WORDS) -> Codes:
    """Images as sums of a few concepts: the non-negative code of exactly ``count`` concepts, if so many help, found by
    orthogonal matching pursuit on centred features and directions (``cbm.solvers.sparse_code``).

    Args:
        x: unit-norm features ``[N, D]``.
        concepts: concept directions ``[K, D]`` in the space of the features.
        mean: mean feature ``[D]`` of the training images.
        count: number of words.
    """
    centred, directions = centre(x.float(), mean), centre_directions(concepts)
    return sparse_code(centred, directions, k=min(count, len(concepts)))


@torch.no_grad()
def strongest_words(model: ConceptBottleneck, x: Tensor, count: int = WORDS) -> Codes:
    """The concepts with the largest activations, in standard deviations above their reference, as far as these are
    above zero: for concepts that are learned, and do not lie where their names do.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        count: number of words.
    """
    unit = model.spread.clamp(min=1e-12)
    found = [
        ((model.activations(part) - model.reference) / unit).topk(min(count, len(unit)), dim=1)
        for part in x.split(1024)
    ]
    values, columns = torch.cat([f.values for f in found]).clamp(min=0), torch.cat([f.indices for f in found])
    unknown = torch.full((len(x),), torch.nan, dtype=torch.float64)
    return Codes(values, columns.where(values > 0, -1), unknown, unknown, passes=1)


def centre(x: Tensor, mean: Tensor) -> Tensor:
    """Unit vectors ``[N, D]`` from the mean ``[D]`` to the rows; a row that equals the mean stays zero."""
    return normalize(x - mean.to(x), dim=1)


def centre_directions(concepts: Tensor) -> Tensor:
    """Unit directions ``[K, D]`` without what all of them share."""
    unit = normalize(concepts.float(), dim=1)
    return unit if len(unit) < 2 else normalize(unit - unit.mean(dim=0), dim=1)


def said_by_owners(owners: Tensor) -> Tensor:
    """What names say of the classes, where every phrase was written for some of them: ``[K, C]``, rows centred.

    Args:
        owners: which class owns which concept, ``[C, K]`` bool.

    >>> said_by_owners(torch.tensor([[True, False], [False, False]]))  # the second phrase was written for no class
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.0000]])
    """
    says = owners.T.float()
    return says - says.mean(dim=1, keepdim=True)


def said_by_texts(concepts: Tensor, classes: Tensor) -> Tensor:
    """What names say of the classes, by the text vectors of an encoder that did not make the directions: cosines
    ``[K, C]`` of phrases and class names, both without the phrases' mean, then centred over classes and over concepts.

    Args:
        concepts: text vectors ``[K, E]`` of the phrases.
        classes: text vectors ``[C, E]`` of the class names, by the same encoder.
    """
    concepts, classes = normalize(concepts.float(), dim=1), normalize(classes.float(), dim=1)
    says = (concepts - concepts.mean(dim=0)) @ (classes - concepts.mean(dim=0)).T
    says = says - says.mean(dim=1, keepdim=True)
    return says - says.mean(dim=0) if len(says) > 1 else says


@dataclass(frozen=True)
class Reading:
    """How well a reader says the class.

    Attributes:
        by: who reads: ``owners``, or the name of an encoder.
        accuracy: reader accuracy.
        low: lower end of its 95 % interval over images.
        high: upper end.
        null: mean accuracy under names that are dealt out anew.
        null_sd: its standard deviation over the draws.
        null_max: the largest of the draws.
        p: share of the draws, and the names as they are, that read as well or better.
        draws: number of draws.
        images: number of images that were read.
        untestable: why even a perfect reader could not pass; empty if one could.
    """

    by: str
    accuracy: float
    low: float
    high: float
    null: float
    null_sd: float
    null_max: float
    p: float
    draws: int
    images: int
    untestable: str = ""

    @property
    def name_value(self) -> float:
        """What the names are worth: the accuracy above that of permuted names."""
        return self.accuracy - self.null

    @property
    def passed(self) -> bool:
        """Whether the names say more than permuted ones do, at the 5 % level."""
        return not self.untestable and self.p < LEVEL and self.name_value > 0


def read(
    words: Codes,
    says: Tensor,
    y: Tensor,
    by: str,
    *,
    subjects: np.ndarray | None = None,
    draws: int = 199,
    seed: int = 0,
) -> Reading:
    """Reader accuracy with its permutation null.

    Args:
        words: the few words of N images.
        says: what the names say of the classes, ``[K, C]``.
        y: class indices ``[N]``.
        by: who reads, for the table.
        subjects: subject ``[N]`` of each image, whose images are not independent; None if every image is its own.
        draws: permutations of the rows of ``says``.
        seed: random seed of the permutations.

    Example:
        >>> y = torch.arange(8).repeat(25)
        >>> words = Codes(torch.ones(200, 1), y[:, None], *torch.zeros(2, 200), 1)  # one word an image
        >>> found = read(words, torch.eye(8), y, "owners")
        >>> found.accuracy, round(found.null, 1), found.p
        (1.0, 0.1, 0.005)
    """
    generator = torch.Generator().manual_seed(seed)
    right = said_rightly(words, says, y)
    accuracy = float(right.mean())
    null = torch.tensor(
        [
            reader_accuracy(_renamed(words, torch.randperm(len(says), generator=generator)), says, y)
            for _ in range(draws)
        ]
    )
    units = Units(y.numpy(), subjects)
    drawn = None if subjects is None else bootstrap(units, {"accuracy": mean_of(right.numpy())})["accuracy"]
    low, high = share_interval(accuracy, drawn, units.count)
    as_good = int((null >= accuracy - 1e-6).sum())
    untestable = ""
    if ways_to_deal(says) < WAYS:
        untestable = f"{len(says)} concept(s) can be dealt out in too few ways"
    elif (1 + int((null >= 1 - 1e-6).sum())) / (1 + draws) >= LEVEL:
        untestable = f"{len(y)} image(s) are too few: exchanged names read them without a mistake as well"
    return Reading(
        by, accuracy, low, high, float(null.mean()), float(null.std()), float(null.max()),
        (1 + as_good) / (1 + draws), draws, len(y), untestable,
    )  # fmt: skip


def _renamed(words: Codes, order: Tensor) -> Codes:
    """The same words under the names of others: word k is called as word ``order[k]``."""
    return replace(words, columns=order[words.columns.clamp(min=0)].where(words.columns >= 0, -1))


def reader_accuracy(words: Codes, says: Tensor, y: Tensor) -> float:
    """Share of the images whose class their words say; a tie among m classes counts as 1/m of an answer.

    Args:
        words: the few words of N images.
        says: what the names say of the classes, ``[K, C]``.
        y: class indices ``[N]``.
    """
    return float(said_rightly(words, says, y).mean())


def said_rightly(words: Codes, says: Tensor, y: Tensor) -> Tensor:
    """How far the class of every image is what its words say ``[N]``: 1, 0, or 1/m in a tie of m classes; float64.

    Arguments as for ``reader_accuracy``.
    """
    said = words.reconstruct(says)
    best = said >= said.max(dim=1, keepdim=True).values - 1e-6 * said.abs().amax(dim=1, keepdim=True)
    return best[torch.arange(len(y)), y].double() / best.sum(dim=1)
