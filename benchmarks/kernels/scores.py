"""Scores that are wanted: product, affine map and sigmoid."""

from __future__ import annotations

import torch
from kernels.bench import Bench
from kernels.topk import with_tile
from torch import Tensor

from cbm.kernels import concept_scores
from cbm.kernels.gpu import scores as kernel

OP = "concept scores"
SHAPES = [(65_536, 5000, 512, "bfloat16"), (65_536, 5000, 512, "float32")]
TINY = [(64, 48, 16, "bfloat16"), (64, 50, 15, "float32")]
TILES = [(128, 256, 64, 8, 4), (128, 128, 64, 8, 4)]


def measure(bench: Bench, n: int, k: int, d: int, kind: str) -> None:
    """Sigmoid of an affine map, and the scores as they are."""
    dtype = getattr(torch, kind)
    x, t = bench.unit(n, d, dtype), bench.unit(k, d, dtype)
    alpha, beta = torch.rand(k, device=bench.device) + 0.5, torch.randn(k, device=bench.device)
    a, b = alpha.to(dtype), beta.to(dtype)
    backend = "auto" if bench.gpu else "triton"
    some, size = slice(0, 256), dtype.itemsize

    def eager() -> Tensor:
        return torch.sigmoid((x @ t.T) * a + b)

    def ours() -> Tensor:
        return concept_scores(x, t, alpha=alpha, beta=beta, activation="sigmoid", out_dtype=dtype, backend=backend)

    variants = {
        "eager": lambda: eager,
        "ours": lambda: ours,
        "compile": lambda: bench.compiled(eager),
    }
    if dtype == torch.bfloat16:
        variants["ours, pointers"] = lambda: pointed(ours)
        if bench.gpu:
            for sizes in TILES:
                variants[f"ours, tile {sizes}"] = lambda sizes=sizes: with_tile("scores, described", sizes, ours)
    shape = {"N": n, "K": k, "D": d, "dtype": kind}
    sizes = {"flop": 2 * n * k * d, "moved": size * (n * d + k * d + n * k)}
    ceiling = "bf16" if size == 2 else "fp32"
    plain = x[some].double() @ t.double().T
    bench.compare(OP, {"phi": "sigmoid"} | shape, variants, **sizes, ceiling=ceiling, pick=lambda s: s[some],
                  truth=torch.sigmoid(plain * alpha.double() + beta.double()))  # fmt: skip
    product = {"the library's product alone": lambda: lambda: x @ t.T}
    bench.compare(OP, {"phi": "none"} | shape, product, **sizes, ceiling=ceiling)
    variants = {
        "eager": lambda: lambda: x @ t.T,
        "ours": lambda: lambda: concept_scores(x, t, out_dtype=dtype, backend=backend),
    }
    bench.compare(OP, {"phi": "identity"} | shape, variants, **sizes, ceiling=ceiling, pick=lambda s: s[some],
                  truth=plain)  # fmt: skip


def pointed(step):
    """The step by the kernel for rows that descriptors do not take."""

    def run():
        before, kernel.describable = kernel.describable, lambda *matrices: False
        try:
            return step()
        finally:
            kernel.describable = before

    return run
