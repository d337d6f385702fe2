"""A LaBo step with Adam: the change of the weights that it makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernels.bench import Bench
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.kernels import association_adam_, association_vectors

OP = "LaBo step with Adam"
SHAPES = [(2048, 50_000, 768, 1000), (50_000, 5000, 512, 100)]
TINY = [(64, 50, 16, 4)]


def measure(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """N x K by autograd, re-associated by autograd with a fused Adam, ours; float32, then TF32."""
    x, t = bench.unit(n, d, torch.float32), bench.unit(k, d, torch.float32)
    y, start = torch.randint(c, (n,), device=bench.device), torch.randn(c, k, device=bench.device)

    def by_autograd(reassociated: bool, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
        features, text, leaf = x.to(dtype), t.to(dtype), start.to(dtype).clone().requires_grad_()
        adam = torch.optim.Adam([leaf], lr=1e-3, fused=bench.gpu and dtype == torch.float32)

        def step() -> Tensor:
            adam.zero_grad()
            head = leaf.softmax(1)
            logits = features @ (head @ text).T if reassociated else features @ text.T @ head.T
            cross_entropy(100 * logits, y).backward()
            adam.step()
            return leaf.detach() - start.to(dtype)

        return step

    def ours() -> Callable[[], Tensor]:
        weight, moments, steps = start.clone(), (torch.zeros_like(start), torch.zeros_like(start)), [0]

        def step() -> Tensor:
            steps[0] += 1
            vectors, lse = association_vectors(weight, t)
            vectors.requires_grad_()
            cross_entropy(100 * x @ vectors.T, y).backward()
            assert vectors.grad is not None
            association_adam_(
                weight, *moments, vectors.grad, vectors.detach(), lse, t, steps[0], lr=1e-3,
                backend="auto" if bench.gpu else "triton",
            )  # fmt: skip
            return weight - start

        return step

    truth = by_autograd(True, torch.float64)()
    shape, sizes = {"N": n, "K": k, "D": d, "C": c}, {
        "flop": 4 * d * c * (n + k), "moved": 24 * c * k + 4 * (2 * n * d + 2 * k * d)
    }  # fmt: skip
    variants = {
        "eager, N x K": lambda: by_autograd(False),
        "eager, re-associated": lambda: by_autograd(True),
        "ours": ours,
    }
    bench.compare(OP, shape, variants, **sizes, truth=truth, ceiling="fp32")
    torch.set_float32_matmul_precision("high")
    try:
        variants = {"eager, re-associated": lambda: by_autograd(True), "ours": ours}
        bench.compare(OP, {"products": "TF32"} | shape, variants, **sizes, ceiling="tf32")
    finally:
        torch.set_float32_matmul_precision("highest")
