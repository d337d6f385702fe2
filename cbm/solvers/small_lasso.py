"""Many small lasso problems at once: coordinate descent finds the support, a linear system the exact weights on it.

    min_z  1/2 z^T G z - b^T z + sum_j cost_j |z_j|        z >= 0, or of either sign

n problems of m variables each, as `cbm.solvers.sparse_code` has them for the words in play of n pictures. An infinite
cost keeps a variable at zero, which also serves as padding; at cost zero this is (nonnegative) least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SWEEPS = 8  # of coordinate descent between two linear systems
ROUNDS = 40  # of both; nearly all problems need one


@dataclass(frozen=True)
class SmallLasso:
    """n problems.

    Attributes:
        gram: inner products G [n, m, m] of the variables.
        pull: linear terms b [n, m].
        cost: penalties [n, m], from 0 to infinity.
        signed: whether weights below zero are allowed.
    """

    gram: Tensor
    pull: Tensor
    cost: Tensor
    signed: bool

    def __getitem__(self, rows: Tensor) -> SmallLasso:
        return SmallLasso(self.gram[rows], self.pull[rows], self.cost[rows], self.signed)

    def gradient(self, z: Tensor) -> Tensor:
        """``b - G z`` [n, m]: correlations of the variables with what is left to explain."""
        return self.pull - torch.bmm(self.gram, z[:, :, None])[:, :, 0]

    def objective(self, z: Tensor, gradient: Tensor) -> Tensor:
        """The objective [n] at z, of which ``gradient`` is known."""
        paid = torch.where(z != 0, self.cost * z.abs(), 0)
        return (paid - 0.5 * z * (gradient + self.pull)).sum(dim=1)

    def solve(self, z: Tensor) -> Tensor:
        """The optimum [n, m], from a first guess at it; its support is tried first."""
        z, solved = self._on_support(z)
        rest = (~solved).nonzero()[:, 0]
        for _ in range(ROUNDS):
            if not len(rest):
                break
            part = self[rest]
            found, solved = part._on_support(part.descend(z[rest]))
            z[rest] = found
            rest = rest[~solved]
        return z

    def descend(self, z: Tensor) -> Tensor:
        """A few sweeps of coordinate descent from z [n, m].

        A weight that would move off zero by no more than rounding stays there: of two equal words one is used.
        """
        tiny = rounding(z.dtype)
        gram = self.gram.permute(1, 2, 0).contiguous()
        z, cost, gradient = z.T.contiguous(), self.cost.T.contiguous(), self.gradient(z).T.contiguous()
        curve = self.gram.diagonal(dim1=1, dim2=2).T.clamp(min=1e-12).contiguous()
        inverse = 1 / curve
        for _ in range(SWEEPS):
            for j in range(len(z)):
                best = torch.addcmul(gradient[j], z[j], curve[j])
                if self.signed:
                    best = F.hardshrink(best - best.clamp(-cost[j], cost[j]), tiny)
                else:
                    best = F.threshold(best - cost[j], tiny, 0.0)
                best *= inverse[j]
                gradient.addcmul_(gram[j], z[j] - best)
                z[j] = best
        return z.T.contiguous()

    def _on_support(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The exact optimum with the support and signs of z, and where it is the optimum over all variables [n].

        Elsewhere weights of the wrong sign are set to zero and the result is kept if its objective is below that of z.
        """
        sign = z.sign()
        found, regular = self._linear_system(sign)
        wrong = (found * sign < 0) & ((self.cost > 0) if self.signed else True)
        found = found.masked_fill(wrong, 0.0)
        gradient = self.gradient(found)
        excess = (gradient.abs() if self.signed else gradient) - self.cost
        still = ((excess <= 2 * rounding(z.dtype)) | (found != 0)).all(dim=1)
        solved = regular & ~wrong.any(dim=1) & still
        better = regular & (self.objective(found, gradient) < self.objective(z, self.gradient(z)))
        return torch.where((solved | better)[:, None], found, z), solved

    def _linear_system(self, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions of ``G z = b - cost * sign`` on the supports [n, m], and where there is one [n]."""
        on = sign != 0
        width = int(on.sum(dim=1).max())
        regular = torch.ones(len(on), dtype=torch.bool, device=on.device)
        if width == 0:
            return torch.zeros_like(sign), regular
        order = on.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        on = on.gather(1, order)
        gram = self.gram.gather(1, order[:, :, None].expand(-1, -1, self.gram.shape[2]))
        gram = gram.gather(2, order[:, None, :].expand(-1, width, -1))
        right = (self.pull - self.cost * sign).gather(1, order).masked_fill(~on, 0.0)[:, :, None]
        gram = gram * (on[:, :, None] & on[:, None, :])
        ridge = 10 * torch.finfo(gram.dtype).eps
        gram.diagonal(dim1=1, dim2=2).add_((~on).to(gram) + ridge)
        factor, failed = torch.linalg.cholesky_ex(gram)
        found = torch.cholesky_solve(right, factor)
        gram.diagonal(dim1=1, dim2=2).sub_(ridge)
        found = found + torch.cholesky_solve(right - torch.bmm(gram, found), factor)  # without the ridge
        found = found[:, :, 0].masked_fill(~on, 0.0)
        regular = (failed == 0) & found.isfinite().all(dim=1)
        found = found.masked_fill(~regular[:, None], 0.0)
        return torch.zeros_like(sign).scatter_(1, order, found), regular


def rounding(dtype: torch.dtype) -> float:
    """Differences of correlations of unit vectors that mean nothing."""
    return 1e-7 if dtype == torch.float32 else 1e-14
