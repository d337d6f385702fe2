"""Standard deviation of every score."""

from __future__ import annotations

import torch
from kernels.bench import Bench
from torch import Tensor

from cbm.kernels import score_moments

OP = "score moments"
SHAPES = [(1_280_000, 4500, 512, "bfloat16"), (50_000, 5000, 512, "float32")]
TINY = [(64, 50, 16, "bfloat16"), (64, 50, 16, "float32")]


def measure(bench: Bench, n: int, k: int, d: int, kind: str) -> None:
    """All scores, and one covariance; features with a common part, as those of CLIP have."""
    dtype = getattr(torch, kind)
    x = (bench.unit(n, d, torch.float32) * 0.5 + bench.unit(1, d, torch.float32)).to(dtype)
    t = bench.unit(k, d, dtype)
    some = slice(0, 200)

    def eager() -> Tensor:
        return (x @ t.T).float().std(0)

    truth = torch.cat([(x.double() @ part.double().T).std(0) for part in t[some].split(50)])
    variants = {"eager": lambda: eager, "ours": lambda: lambda: score_moments(x, t)[1]}
    bench.compare(
        OP, {"N": n, "K": k, "D": d, "dtype": kind}, variants, flop=2 * n * d * d + 2 * k * d * d,
        moved=dtype.itemsize * (n * d + k * d), truth=truth, pick=lambda std: std[some],
        ceiling="bf16" if dtype == torch.bfloat16 else "fp32",
    )  # fmt: skip
