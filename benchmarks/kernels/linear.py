"""A LaBo step without an optimizer: softmax head, cross-entropy, gradient of the head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernels.bench import Bench
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.kernels import captured, linear_bottleneck_logits

OP = "linear step"
SHAPES = [(50_000, 5000, 512, 100), (2048, 50_000, 768, 1000)]
TINY = [(64, 50, 16, 4)]


def measure(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """Scores, re-associated by hand, compiled, ours, ours as a graph; all float32."""
    x, t = bench.unit(n, d, torch.float32), bench.unit(k, d, torch.float32)
    y, head = torch.randint(c, (n,), device=bench.device), torch.randn(c, k, device=bench.device)

    def step(logits: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = head.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(logits(leaf.softmax(0)), y), leaf)[0]

    def associated(weight: Tensor) -> Tensor:
        return 100 * (x @ (weight @ t).T)

    def ours() -> Tensor:
        return step(lambda weight: linear_bottleneck_logits(x, t, weight, scale=100.0, plan="reassociated"))

    def compiled() -> Callable[[], Tensor]:
        fast = bench.compiled(associated)
        return lambda: step(fast)

    truth = step(lambda weight: 100 * (x.double() @ (weight.double() @ t.double()).T))
    variants = {
        "eager, N x K": lambda: lambda: step(lambda weight: 100 * (x @ t.T) @ weight.T),
        "eager, re-associated": lambda: lambda: step(associated),
        "ours": lambda: ours,
        "compile, re-associated": compiled,
    }
    if bench.gpu:
        variants["ours, CUDA graph"] = lambda: captured(ours)
    bench.compare(
        OP, {"N": n, "K": k, "D": d, "C": c}, variants, flop=4 * d * c * (n + k),
        moved=4 * (2 * n * d + 2 * k * d + 3 * c * k), truth=truth, ceiling="fp32",
    )  # fmt: skip
