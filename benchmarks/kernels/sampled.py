"""Gumbel top-k and the logits of what was sampled, and the gate that keeps k concepts."""

from __future__ import annotations

import torch
from kernels.bench import Bench
from torch import Tensor
from torch.nn.functional import embedding_bag

from cbm.kernels import gumbel_topk, gumbel_topk_gate

OP, GATE = "Gumbel top-k", "Gumbel gate"
SHAPES = [(65_536, 5000, 512, 100, 16), (4096, 5000, 512, 100, 5)]
TINY = [(64, 304, 16, 4, 6)]


def measure(bench: Bench, n: int, k: int, d: int, c: int, top: int) -> None:
    """Forward, forward and backward (straight-through), and the gate on scores that are there."""
    x, t = bench.unit(n, d), bench.unit(k, d)
    head = (torch.randn(c, k, device=bench.device) * 0.02).to(bench.half)
    shape, some = {"N": n, "K": k, "D": d, "C": c, "k": top}, slice(0, 128)
    sizes = {"flop": 2 * n * k * d, "moved": 2 * (n * d + k * d) + 4 * n * c}

    def eager() -> Tensor:
        z = (x @ t.T).float().mul_(10)
        z -= torch.empty_like(z).exponential_().log_()
        picks = z.topk(top, 1, sorted=False).indices
        return embedding_bag(picks, head.T.contiguous().float(), mode="sum")

    def ours(rows: slice = slice(None), backend: str = "auto" if bench.gpu else "triton") -> Tensor:
        return gumbel_topk(x[rows], t, top, 1.0, 0, head=head, scale=10.0, backend=backend)[1]

    truth = ours(some, "torch")  # the noise of eager is another
    variants = {"eager": lambda: eager, "ours": lambda: ours, "compile": lambda: bench.compiled(eager)}
    bench.compare(OP, {"pass": "forward"} | shape, variants, **sizes, pick=lambda r: r[some],
                  truth=None)  # fmt: skip
    bench.compare(OP, {"pass": "forward, checked"} | shape, {"ours": lambda: lambda: ours(some)}, **sizes, truth=truth)

    def straight_through() -> Tensor:
        leaf = head.detach().requires_grad_()
        z = (x @ t.T).float().mul_(10)
        z = z - torch.empty_like(z).exponential_().log_()
        p = z.softmax(1)
        gate = torch.zeros_like(p).scatter_(1, z.topk(top, 1, sorted=False).indices, 1.0) - p.detach() + p
        return torch.autograd.grad((gate @ leaf.float().T).square().sum(), leaf)[0]

    def trained() -> Tensor:
        leaf, scale = head.detach().requires_grad_(), torch.ones(k, device=bench.device, requires_grad=True)
        backend = "auto" if bench.gpu else "triton"
        logits = gumbel_topk(x, t, top, 1.0, 0, head=leaf, scale=10.0, alpha=scale, backend=backend)[1]
        return torch.autograd.grad(logits.square().sum(), [leaf, scale])[0]

    if n * k <= 2**26:
        variants = {"eager": lambda: straight_through, "ours": lambda: trained}
        bench.compare(OP, {"pass": "with backward"} | shape, variants, **sizes)
        z = (10 * (x @ t.T).float()).requires_grad_()

        def gate() -> Tensor:
            return torch.autograd.grad(gumbel_topk_gate(z, top, 1.0, seed=0).square().sum(), z)[0]

        def plain_gate() -> Tensor:
            keys = z - torch.empty_like(z).exponential_().log()
            soft = (keys / 1.0).softmax(1) * top
            hard = torch.zeros_like(z).scatter_(1, keys.topk(top, 1).indices, 1.0)
            return torch.autograd.grad(((hard - soft.detach() + soft) * z).square().sum(), z)[0]

        bench.compare(GATE, shape, {"eager, one softmax": lambda: plain_gate, "ours, k softmaxes": lambda: gate},
                      flop=0, moved=12 * n * k)  # fmt: skip
