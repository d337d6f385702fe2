"""Activations of models that read a picture as a sum of a few parts, ``x = mean + sum_k z_k atom_k + rest``.

- ``SparseCode``: the parts are words, and their weights are solved for every picture (SpLiCE);
- ``UnitCode``: the parts are units of a dictionary, and an encoder says their weights in one step (autoencoders).
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from cbm.kernels import concept_scores, topk_concepts, topk_gate
from cbm.layers.activations import Activation
from cbm.solvers import Codes, sparse_code

RADII = ("fit", "picture", "unit")
"""How long the words' part of a picture is: as the code fits it, as the picture's distance from the mean, or 1."""


SCORES_AT_ONCE = 4_000_000  # 16 MB of float32


class Coded(Activation):
    """What both have in common: a code of every picture, most of which is exactly zero.

    Attributes:
        mean: feature ``[D]`` that a picture without any part has.
        typical: weight ``[K]`` of every part where it is used: the median over the training images, or 0.
    """

    mean: Tensor
    typical: Tensor
    rests_at_zero = True

    def code(self, x: Tensor, concepts: Tensor) -> Codes:
        """Weights and parts of every picture.

        Args:
            x: unit-norm features ``[N, D]``.
            concepts: concept directions ``[K, D]`` of the model.
        """
        raise NotImplementedError

    def parts(self, concepts: Tensor) -> Tensor:
        """What one unit of every weight adds to the feature, ``[K, D]``."""
        raise NotImplementedError

    def encode(self, x: Tensor, concepts: Tensor) -> Tensor:
        """Weights ``[N, K]`` of all parts, most of them zero; arguments as for ``code``."""
        return self.code(x, concepts).dense(len(concepts))

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits from the columns of the head whose parts an image uses; arguments as for ``Activation.logits``."""
        logits = self.code(x, concepts).reconstruct(weights.T)
        return logits if bias is None else logits + bias


class SparseCode(Coded):
    """Weights of the words that sum up to a picture, ``x = mean + sum_k z_k c_k + rest``: exact sparse codes over the
    concept directions, most of them exactly zero (SpLiCE; Bhalla et al., NeurIPS 2024).

    Args:
        offset: zeros ``[K]`` (nothing is subtracted from a code).
        mean: mean feature ``[D]`` from which pictures are looked at; zeros to look at them as they are.
        typical: weight ``[K]`` of every word where it is used: the median over the training images, or 0.
        lam: penalty of the code, for pictures of length 1; 0 if ``k`` is given.
        k: exact number of words; 0 if ``lam`` is given.
        free: whether weights may be negative (Z-CBM).
        refit: whether weights are solved once more without the penalty.
        radius: place in ``RADII``.
        allowed: which words may be used ``[K]``; all by default.
    """

    lam: Tensor
    k: Tensor
    free: Tensor
    refit: Tensor
    radius: Tensor
    allowed: Tensor

    def __init__(
        self,
        offset: Tensor,
        mean: Tensor,
        typical: Tensor,
        lam: float | Tensor,
        k: int | Tensor,
        free: bool | Tensor,
        refit: bool | Tensor,
        radius: int | Tensor,
        allowed: Tensor | None = None,
    ):
        super().__init__(offset)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("typical", typical.clone())
        self.register_buffer("lam", torch.tensor(float(lam), dtype=torch.float64))
        for name, value in (("k", int(k)), ("free", bool(free)), ("refit", bool(refit)), ("radius", int(radius))):
            self.register_buffer(name, torch.tensor(value))
        words = torch.ones(len(offset), dtype=torch.bool) if allowed is None else allowed
        self.register_buffer("allowed", words.clone())

    @torch.no_grad()
    def code(self, x: Tensor, concepts: Tensor) -> Codes:
        """Weights and words of every picture.

        Args:
            x: unit-norm features ``[N, D]``.
            concepts: unit directions ``[K, D]`` of the words.
        """
        away = x.to(concepts) - self.mean
        length = away.norm(dim=1, keepdim=True)
        choice = {"k": min(int(self.k), len(concepts))} if int(self.k) else {"lam": float(self.lam)}
        found = sparse_code(
            normalize(away, dim=1),
            concepts,
            sign="free" if bool(self.free) else "nonnegative",
            refit=bool(self.refit) and not int(self.k),
            allowed=None if bool(self.allowed.all()) else self.allowed,
            **choice,
        )
        factor = length
        if RADII[int(self.radius)] != "fit":
            said = found.reconstruct(concepts).norm(dim=1, keepdim=True).clamp(min=1e-12)
            factor = (length if RADII[int(self.radius)] == "picture" else 1.0) / said
        return Codes(found.values * factor, found.columns, found.gap, found.violation, found.passes)

    def parts(self, concepts: Tensor) -> Tensor:
        """The directions of the words, ``[K, D]``."""
        return concepts

    def forward(self, scores: Tensor) -> Tensor:
        """A code is no function of the scores.

        Raises:
            TypeError: always; use ``encode``.
        """
        raise TypeError("a sparse code is made of features, not of scores: use encode")

    def without(self, columns: Iterable[int]) -> "SparseCode":
        """The same code in which some words may not be used."""
        allowed = self.allowed.clone()
        allowed[list(columns)] = False
        return SparseCode(
            self.offset, self.mean, self.typical, self.lam, self.k, self.free, self.refit, self.radius, allowed
        )


class UnitCode(Coded):
    """Weights of the units of a dictionary, as an autoencoder's encoder says them in one step:

        s = x W^T - offset                                            [N, K]
        z = s of the k largest positive scores, 0 elsewhere           (``k`` > 0: TopK)
        z = s where s > threshold, 0 elsewhere                        (``k`` = 0: ReLU, JumpReLU, BatchTopK)

    The concepts W of the model are the encoder's rows; the atoms, what a unit adds to a picture, are its decoder's.

    Args:
        offset: offset ``[K]`` that is subtracted from the scores first.
        mean: feature ``[D]`` that a picture has on which no unit fires.
        typical: weight ``[K]`` of every unit where it fires: the median over the training images, or 0.
        atoms: what one unit of every weight adds to the feature, ``[K, D]``.
        k: number of units of a picture, at most; 0 if the threshold decides.
        threshold: score ``[K]`` above which a unit fires, 0 or more; zeros by default.
    """

    atoms: Tensor
    k: Tensor
    threshold: Tensor

    def __init__(
        self,
        offset: Tensor,
        mean: Tensor,
        typical: Tensor,
        atoms: Tensor,
        k: int | Tensor,
        threshold: Tensor | None = None,
    ):
        super().__init__(offset)
        least = torch.zeros_like(offset) if threshold is None else threshold
        for name, value in (("mean", mean), ("typical", typical), ("atoms", atoms), ("threshold", least)):
            self.register_buffer(name, value.clone())
        self.register_buffer("k", torch.tensor(int(k)))

    def parts(self, concepts: Tensor) -> Tensor:
        """The atoms, ``[K, D]``."""
        return self.atoms

    def code(self, x: Tensor, concepts: Tensor) -> Codes:
        """Weights and units of every picture; arguments as for ``Coded.code``."""
        unknown = x.new_full((len(x),), torch.nan, dtype=torch.float64)
        if int(self.k):
            few = min(int(self.k), len(concepts))
            values, columns = topk_concepts(x, concepts, few, beta=-self.offset)
            fires = values > self.threshold[columns]
            return Codes(values.where(fires, 0.0), columns.where(fires, -1), unknown, unknown, passes=1)
        found = [
            _firing(concept_scores(part, concepts) - self.offset, self.threshold)
            for part in x.split(max(1, SCORES_AT_ONCE // len(concepts)))
        ]
        longest = max(values.shape[1] for values, _ in found)
        values = torch.cat([pad(values, (0, longest - values.shape[1])) for values, _ in found])
        columns = torch.cat([pad(columns, (0, longest - columns.shape[1]), value=-1) for _, columns in found])
        return Codes(values, columns, unknown, unknown, passes=1)

    def take(self, columns: Tensor) -> "UnitCode":
        """The units at ``columns`` alone; with ``k``, the k strongest of these."""
        parts = (self.offset[columns], self.mean, self.typical[columns], self.atoms[columns])
        return UnitCode(*parts, self.k, self.threshold[columns])

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to weights ``[N, K]``."""
        values = scores - self.offset
        values = topk_gate(values, min(int(self.k), values.shape[1])) if int(self.k) else values
        return values.where(values > self.threshold, 0.0)


def _firing(scores: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``[N, m]`` above the threshold and their columns, the largest first; padded by 0 and -1."""
    above = scores.where(scores > threshold, 0.0)
    most = int((above > 0).sum(dim=1).max()) if len(above) else 0
    values, columns = above.topk(most, dim=1)
    return values, columns.where(values > 0, -1)
