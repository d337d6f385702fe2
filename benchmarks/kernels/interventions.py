"""Accuracy while m concepts are told under P policies."""

from __future__ import annotations

import torch
from kernels.bench import Bench
from torch import Tensor

from cbm.kernels import intervene

OP = "interventions"
SHAPES = [(50_000, 4500, 1000, 50, 1), (5794, 312, 200, 28, 5)]
TINY = [(20, 30, 5, 4, 2)]


def measure(bench: Bench, n: int, k: int, c: int, m: int, p: int) -> None:
    """The whole head after every answer (one answer is timed and multiplied), the low-rank form in torch, ours."""
    a, told = torch.randn(2, n, k, device=bench.device)
    head, y = torch.randn(c, k, device=bench.device), torch.randint(c, (n,), device=bench.device)
    order = torch.stack([torch.rand(n, k, device=bench.device).topk(m, dim=1).indices for _ in range(p)])
    votes = head.T.contiguous()

    def low_rank() -> Tensor:
        curves = []
        for steps in order:
            now, change = a @ head.T, (told - a).gather(1, steps)
            curve = [(now.argmax(1) == y).double().mean()]
            for j in range(m):
                now = now.addcmul(votes[steps[:, j]], change[:, j, None])
                curve.append((now.argmax(1) == y).double().mean())
            curves.append(torch.stack(curve))
        return torch.stack(curves)

    def ours(dtype: torch.dtype = torch.float32) -> Tensor:
        change = torch.stack([(told - a).gather(1, steps) for steps in order])
        backend = "auto" if bench.gpu else "triton"
        return intervene(a @ head.T, order, change, votes.to(dtype), y, backend=backend)[0]

    shape = {"N": n, "K": k, "C": c, "m": m, "P": p}
    sizes = {"flop": 2 * n * p * m * c + 2 * n * k * c, "moved": 4 * (n * p * m * c + n * k)}
    one = {"one answer by the whole head": lambda: lambda: (a @ head.T).argmax(1)}
    bench.compare(OP, shape, one, **sizes, ceiling="fp32")
    variants = {
        "eager, low rank": lambda: low_rank,
        "ours": lambda: ours,
        "ours, bfloat16 votes": lambda: lambda: ours(torch.bfloat16),
    }
    bench.compare(OP, {"form": "curve"} | shape, variants, **sizes, truth=low_rank(), ceiling="fp32")
