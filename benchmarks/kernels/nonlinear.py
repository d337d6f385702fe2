"""A sigmoid bottleneck: loss and gradient of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from kernels.bench import Bench
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.kernels import captured, chunks, fused_bottleneck_loss
from cbm.kernels.bottleneck import Plan

OP = "nonlinear loss + gradient"
SHAPES = [(65_536, 5000, 512, 100), (65_536, 5000, 512, 1000), (65_536, 5000, 512, 10), (5994, 370, 512, 200)]
TINY = [(64, 48, 16, 4)]


def measure(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """Eager, compiled, ours with 1 GB and with 64 MB of activations, with a float32 head, and as a graph."""
    x, t, y = bench.unit(n, d), bench.unit(k, d), torch.randint(c, (n,), device=bench.device)
    head = (torch.randn(c, k, device=bench.device) * 0.05).to(bench.half)
    alpha, beta = torch.rand(k, device=bench.device) + 0.5, torch.randn(k, device=bench.device)
    a, b = (5 * alpha).to(bench.half), beta.to(bench.half)

    def plain(leaf: Tensor) -> Tensor:
        return cross_entropy((torch.sigmoid((x @ t.T) * a + b) @ leaf.T).float(), y)

    def step(loss: Callable[[Tensor], Tensor], weight: Tensor = head) -> Tensor:
        leaf = weight.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    def fused(leaf: Tensor, plan: Plan = "chunked") -> Tensor:
        return fused_bottleneck_loss(x, t, leaf, y, activation="sigmoid", alpha=alpha, beta=beta, scale=5.0, plan=plan)[
            0
        ]

    def ours(megabytes: int, weight: Tensor = head) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with budget(bench.device, megabytes):
                return step(fused, weight)

        return run

    def compiled() -> Callable[[], Tensor]:
        fast = bench.compiled(plain)
        return lambda: step(fast)

    variants = {
        "eager": lambda: lambda: step(plain),
        "ours, 1 GB": lambda: ours(1024),
        "ours, 64 MB": lambda: ours(64),
        "compile": compiled,
        "ours, float32 head": lambda: ours(1024, head.float()),
    }
    if n < 10_000:
        variants["ours, as auto takes it"] = lambda: lambda: step(lambda leaf: fused(leaf, "auto"))
    if bench.gpu and n < 10_000:
        variants["ours, CUDA graph"] = lambda: captured(ours(1024))
    bench.compare(
        OP, {"N": n, "K": k, "D": d, "C": c}, variants, flop=2 * n * k * (d + 2 * c),
        moved=2 * (n * d + k * d + 3 * k * c), truth=exact(x, t, head, y, 5 * alpha, beta),
    )  # fmt: skip


def exact(x: Tensor, t: Tensor, head: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The gradient in float64."""
    total = torch.zeros_like(head, dtype=torch.float64)
    for rows in torch.arange(len(x), device=x.device).split(8192):
        z = (x[rows].double() @ t.double().T) * alpha.double() + beta.double()
        leaf = head.double().detach().requires_grad_()
        loss = cross_entropy(torch.sigmoid(z) @ leaf.T, y[rows], reduction="sum") / len(x)
        total += torch.autograd.grad(loss, leaf)[0]
    return total


@contextmanager
def budget(device: str, megabytes: int) -> Iterator[None]:
    """Another budget of memory for chunks, within it."""
    before, chunks.CHUNK_BYTES[device] = chunks.CHUNK_BYTES[device], megabytes * 2**20
    try:
        yield
    finally:
        chunks.CHUNK_BYTES[device] = before
