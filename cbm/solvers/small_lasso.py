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

SWEEPS = 5  # of coordinate descent between two linear systems
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
        weights, gradient = z.T.contiguous(), self.gradient(z).T.contiguous()
        curve = self.gram.diagonal(dim1=1, dim2=2).T.clamp(min=1e-12).contiguous()
        inverse, cost = 1 / curve, self.cost.T.contiguous()
        each = [t.unbind() for t in (self.gram.permute(1, 2, 0).contiguous(), weights, gradient, curve, inverse, cost)]
        for _ in range(SWEEPS):
            for gram, weight, pull, bend, factor, price in zip(*each):
                best = torch.addcmul(pull, weight, bend)
                if self.signed:
                    best = F.hardshrink(best - best.clamp(-price, price), tiny)
                else:
                    best = F.threshold(best.sub_(price), tiny, 0.0)
                best.mul_(factor)
                gradient.addcmul_(gram, weight.sub_(best))
                weight.copy_(best)
        return weights.T.contiguous()

    def _on_support(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The exact optimum with a support within that of z, and where it is the optimum over all variables [n].

        Weights of the wrong sign in the solution of the linear system leave the support and it is solved once more, as
        long as there are any.
        """
        z, solved = z.clone(), torch.zeros(len(z), dtype=torch.bool, device=z.device)
        rows, part = torch.arange(len(z), device=z.device), self
        while len(rows):
            before = z[rows]
            found, regular = part._linear_system(before.sign())
            wrong = (found * before < 0) & ((part.cost > 0) if self.signed else True) & regular[:, None]
            after = torch.where(regular[:, None], found, before)
            gradient = part.gradient(found)
            excess = (gradient.abs() if self.signed else gradient) - part.cost
            still = ((excess <= 2 * rounding(z.dtype)) | (found != 0)).all(dim=1)
            more = wrong.any(dim=1)
            solved[rows] = regular & still & ~more
            z[rows] = part._towards(before, after, wrong) if bool(more.any()) else after
            if not bool(more.any()):
                break
            rows, part = rows[more], part[more]
        return z, solved

    def _towards(self, before: Tensor, after: Tensor, wrong: Tensor) -> Tensor:
        """From one point towards another that is better but for some weights of the wrong sign: the better of stopping
        at the first zero, which lowers the objective for sure, and of going all the way with those weights at zero.
        """
        reach = torch.where(wrong, before / (before - after), torch.inf)
        share = reach.amin(dim=1, keepdim=True)
        first = torch.where(wrong & (reach <= share), 0.0, before + share.clamp(max=1) * (after - before))
        trimmed = after.masked_fill(wrong, 0.0)
        values = (self.objective(point, self.gradient(point)) for point in (first, trimmed))
        return torch.where((next(values) < next(values))[:, None], first, trimmed)

    def _linear_system(self, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions of ``G z = b - cost * sign`` on the supports [n, m], and where there is one [n].

        A little is added to the diagonal: where the variables are dependent, the solution is far away in the direction
        in which the objective falls, and `_towards` it one of them becomes zero.
        """
        on = sign != 0
        width = int(on.sum(dim=1).max())
        regular = torch.ones(len(on), dtype=torch.bool, device=on.device)
        if width == 0:
            return torch.zeros_like(sign), regular
        order, on = leading(on, width)
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
        return torch.zeros_like(sign).scatter_add_(1, order, found), regular  # padding adds 0 to the first


def leading(on: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Where the entries stand that are ``on`` [n, m], in order: [n, width], and which of these places are in use.

    The places that are not point at entry 0.
    """
    count = on.sum(dim=1, keepdim=True)
    slot = (on.cumsum(dim=1) - 1).masked_fill(~on, width)
    places = torch.arange(on.shape[1], device=on.device).expand(on.shape)
    order = torch.zeros(len(on), width + 1, dtype=torch.long, device=on.device).scatter_(1, slot, places)
    return order[:, :width], torch.arange(width, device=on.device) < count


def rounding(dtype: torch.dtype) -> float:
    """Differences of correlations of unit vectors that mean nothing."""
    return 1e-7 if dtype == torch.float32 else 1e-14
