"""``SparseCode``: the activation of a model that reads a picture as a sum of a few words."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.layers.activations import Activation
from cbm.solvers import Codes, sparse_code

RADII = ("fit", "picture", "unit")
"""How long the words' part of a picture is: as the code fits it, as the picture's distance from the mean, or 1."""


class SparseCode(Activation):
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

    mean: Tensor
    typical: Tensor
    lam: Tensor
    k: Tensor
    free: Tensor
    refit: Tensor
    radius: Tensor
    allowed: Tensor
    rests_at_zero = True

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

    def encode(self, x: Tensor, concepts: Tensor) -> Tensor:
        """Weights ``[N, K]`` of all words, most of them zero; arguments as for ``code``."""
        return self.code(x, concepts).dense(len(concepts))

    def forward(self, scores: Tensor) -> Tensor:
        """A code is no function of the scores.

        Raises:
            TypeError: always; use ``encode``.
        """
        raise TypeError("a sparse code is made of features, not of scores: use encode")

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits from the columns of the head whose words an image uses; arguments as for ``Activation.logits``."""
        logits = self.code(x, concepts).reconstruct(weights.T)
        return logits if bias is None else logits + bias

    def without(self, columns: Iterable[int]) -> "SparseCode":
        """The same code in which some words may not be used."""
        allowed = self.allowed.clone()
        allowed[list(columns)] = False
        return SparseCode(
            self.offset, self.mean, self.typical, self.lam, self.k, self.free, self.refit, self.radius, allowed
        )
