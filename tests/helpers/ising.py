"""Concepts that attract and repel each other, with every probability known: a class-conditional Ising model."""

from dataclasses import dataclass

import torch
from torch import Tensor

PAIRS = {(0, 1): 1.2, (2, 3): 1.2, (4, 5): -1.2}  # the coupling of spins -1, 1


@dataclass
class Ising:
    """K = 8 concepts, M = 4 classes, pictures x = noise + what their concepts add.

    Attributes:
        vectors: ``[U, K]`` all concept vectors.
        log_prior: ``[U, M]`` logarithm of p(c, y).
        loadings: ``[K, D]`` what a concept adds to a picture.
        noise: standard deviation of the features.
    """

    vectors: Tensor
    log_prior: Tensor
    loadings: Tensor
    noise: float

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures ``[n, D]``, concepts ``[n, K]``, classes ``[n]``."""
        g = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.log_prior.exp().flatten().float(), n, replacement=True, generator=g)
        c, y = self.vectors[index // 4], index % 4
        return c @ self.loadings + self.noise * torch.randn(n, self.loadings.shape[1], generator=g), c, y

    def posterior(self, x: Tensor, clamp: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The true p(c_k | x, what is clamped) ``[N, K]`` and p(y | ...) ``[N, M]``."""
        likelihood = -(torch.cdist(x, self.vectors @ self.loadings).double() / self.noise).square() / 2  # [N, U]
        if clamp is not None:
            wrong = ((self.vectors[None] != clamp[:, None]) & ~clamp.isnan()[:, None]).any(-1)
            likelihood = likelihood.masked_fill(wrong, -torch.inf)
        joint = (likelihood[:, :, None] + self.log_prior).flatten(1).softmax(1).view(len(x), -1, 4)
        return joint.sum(2) @ self.vectors.double(), joint.sum(1)


def ising(seed: int = 0, dim: int = 16, noise: float = 1.0) -> Ising:
    """The couplings of ``PAIRS`` in every class, with other fields in each."""
    g = torch.Generator().manual_seed(1000 + seed)
    numbers = torch.arange(256)
    vectors = (numbers[:, None] >> torch.arange(8) & 1).float()
    spins = 2 * vectors.double() - 1
    fields = 0.8 * torch.randn(4, 8, generator=g, dtype=torch.float64)
    energy = spins @ fields.T
    for (i, j), coupling in PAIRS.items():
        energy = energy + coupling * (spins[:, i] * spins[:, j])[:, None]
    log_prior = energy.log_softmax(0) + torch.tensor(0.25, dtype=torch.float64).log()
    return Ising(vectors, log_prior, torch.randn(8, dim, generator=g) * dim**-0.5 * 1.5, noise)
