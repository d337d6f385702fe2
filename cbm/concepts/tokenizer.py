"""Replace images by their nearest concepts; the concepts most frequent in a class are its codebook.

He et al., "V2C-CBM: Building Concept Bottlenecks with Vision-to-Concept Tokenizer" (AAAI 2025). Nothing of size
images x vocabulary is held. The published code pads a class's list with concepts that were never counted, in an
arbitrary order; here a concept must be counted, and ties have one order: more counts, larger summed cosine, then text.

The published code uses the plain cosine. In CLIP's space all images share one large vector and all texts another, so
that a few texts that happen to lie towards the images are near every image and fill all lists. ``SharedParts``
subtracts both first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.kernels import topk_concepts


@dataclass(frozen=True)
class Tokens:
    """The k nearest concepts of N images, the nearest first.

    Attributes:
        ids: rows ``[N, k]`` of the codebook.
        cosines: cosines ``[N, k]`` of the images with these concepts.
    """

    ids: Tensor
    cosines: Tensor

    def take(self, rows: Tensor) -> "Tokens":
        """The tokens of some images."""
        return Tokens(self.ids[rows], self.cosines[rows])


@dataclass(frozen=True)
class Count:
    """How often a concept was among the tokens of some images.

    Attributes:
        id: row of the concept in the codebook.
        count: number of images that have it among their tokens.
        cosine: mean cosine with these images.
    """

    id: int
    count: int
    cosine: float


@dataclass(frozen=True)
class SharedParts:
    """The parts that all images, and all concepts, have in common.

    Attributes:
        image: mean ``[D]`` of the unit-norm image features.
        text: mean ``[D]`` of the unit-norm concepts.
    """

    image: Tensor
    text: Tensor

    @staticmethod
    def of(x: Tensor, codebook: Iterable[Tensor]) -> "SharedParts":
        """The means of images ``[N, D]`` and of a codebook in parts ``[*, D]``, all of unit norm."""
        total, count = torch.zeros(x.shape[1], dtype=torch.float64), 0
        for part in codebook:
            total += part.sum(dim=0, dtype=torch.float64)
            count += len(part)
        return SharedParts(x.mean(dim=0, dtype=torch.float64).float(), (total / count).float())


def tokenise(
    x: Tensor, codebook: Iterable[Tensor], k: int, allowed: Tensor | None = None, shared: SharedParts | None = None
) -> Tokens:
    """The k concepts with the largest cosine for every image.

    Args:
        x: image features ``[N, D]``.
        codebook: unit-norm embeddings of V concepts in consecutive parts ``[*, D]``, e.g. one tensor in a list, or the
            shards of a store. Only one part is in memory at a time.
        k: number of tokens per image; all allowed concepts if there are fewer.
        allowed: which concepts ``[V]`` (bool) may be tokens; None for all.
        shared: parts to subtract first, before the cosines are computed; None for the published cosine.

    Returns:
        Tokens ``[N, k]`` by falling cosine, ties by the lower id.
    """
    x = normalize(x.float(), dim=1)
    if shared is not None:
        x = normalize(x - shared.image, dim=1)
    ids = torch.empty(len(x), 0, dtype=torch.long)
    cosines = torch.empty(len(x), 0)
    start = 0
    for part in codebook:
        rows = torch.arange(len(part)) if allowed is None else allowed[start : start + len(part)].nonzero().flatten()
        if len(rows):
            concepts = part if len(rows) == len(part) else part[rows]
            if shared is not None:
                concepts = normalize(concepts.float() - shared.text, dim=1)
            part_cosines, found = topk_concepts(x, concepts, min(k, len(rows)))
            # what is kept so far has lower ids, so a stable sort leaves ties in the order of ids
            cosines, order = torch.cat([cosines, part_cosines], 1).sort(dim=1, descending=True, stable=True)
            ids = torch.cat([ids, rows[found] + start], 1).gather(1, order)[:, :k]
            cosines = cosines[:, :k]
        start += len(part)
    return Tokens(ids, cosines)


def nearest_pictures(prototypes: Tensor, pool: Tensor, count: int) -> Tensor:
    """The quantisation set of every class: the images of an unlabelled pool that are most similar to the class.

    Args:
        prototypes: prototypes ``[C, D]``: for each class the unit-norm embedding of its name, or the mean of the
            features of its labelled images (the mean of the dot products is the dot product with the mean).
        pool: unit-norm features ``[N, D]``.
        count: number of images per class; the whole pool if it has fewer.

    Returns:
        Rows ``[C, count]`` of the pool, the most similar first.
    """
    return topk_concepts(prototypes, pool, min(count, len(pool)))[1]


def count_tokens(tokens: Tokens, texts: Sequence[str], *, min_count: int = 1, min_cosine: float = -1.0) -> list[Count]:
    """All concepts among the tokens, in the order in which a class prefers them.

    Args:
        tokens: tokens of the images of one class.
        texts: texts of the V concepts.
        min_count: smallest number of images that a concept must appear in (at least 1).
        min_cosine: smallest cosine for a token to be counted.

    Returns:
        The counts by falling count, then by falling sum of cosines, then by text: a total order.
    """
    near = tokens.cosines >= min_cosine
    ids, place = tokens.ids[near].unique(return_inverse=True)
    counts = torch.bincount(place, minlength=len(ids))
    totals = torch.bincount(place, weights=tokens.cosines[near].double(), minlength=len(ids))
    found = list(zip(ids.tolist(), counts.tolist(), totals.tolist()))
    found = [(i, n, total) for i, n, total in found if n >= max(1, min_count)]
    found.sort(key=lambda entry: (-entry[1], -entry[2], texts[entry[0]]))
    return [Count(i, n, total / n) for i, n, total in found]


def chance_count(draws: int, concepts: int, level: float = 0.999) -> int:
    """The smallest count that chance rarely reaches: one more than the quantile ``level`` of counts of random tokens.

    Args:
        draws: number of tokens that were counted, images x k.
        concepts: number of possible concepts.
        level: share of the concepts that stay below the count by chance.
    """
    from scipy.stats import poisson

    return int(poisson.ppf(level, draws / max(1, concepts))) + 1


def codebook_bank(counts: dict[str, list[Count]], texts: Sequence[str], name: str, source: str) -> ConceptBank:
    """Make a bank of every class's concepts, class by class in their order; a concept of several classes is one column.

    Args:
        counts: counts of every class's concepts, by class name.
        texts: texts of the V concepts.
        name: name of the bank.
        source: origin of the bank.
    """
    owners: dict[int, dict[str, Count]] = {}
    for class_name, found in counts.items():
        for entry in found:
            owners.setdefault(entry.id, {})[class_name] = entry
    concepts = tuple(
        Concept(
            texts[i],
            tuple(of),
            score=max(entry.cosine for entry in of.values()),
            provenance={"source": source, "counts": {class_name: entry.count for class_name, entry in of.items()}},
        )
        for i, of in owners.items()
    )
    return ConceptBank(name, source, concepts)


class ConceptTokenizer:
    """Maps image features to the nearest concepts of a bank.

    Args:
        bank: bank of K embedded concepts.
        k: number of concepts per image.
        image_mean: mean feature ``[D]`` of similar images: then ``SharedParts`` are subtracted first; None for plain
            cosines.
    """

    def __init__(self, bank: ConceptBank, k: int = 5, image_mean: Tensor | None = None):
        self.bank = bank
        self.k = k
        self._directions = normalize(bank.directions().float(), dim=1)
        self._shared = None if image_mean is None else SharedParts(image_mean, self._directions.mean(dim=0))

    def __call__(self, x: Tensor) -> list[list[tuple[str, float]]]:
        """The k nearest concepts of every image with their cosines, the nearest first, from features ``[N, D]``."""
        tokens = tokenise(x, [self._directions], self.k, shared=self._shared)
        texts = self.bank.texts
        return [
            [(texts[i], cosine) for i, cosine in zip(ids, cosines)]
            for ids, cosines in zip(tokens.ids.tolist(), tokens.cosines.tolist())
        ]
