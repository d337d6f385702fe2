"""The fused kernels on a GPU, against eager PyTorch and torch.compile in their best form, in one run.

    python benchmarks/gpu.py [linear association nonlinear sampled topk interventions moments] [--out DIR]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse      # tiny shapes on a CPU: does everything run, agree?

Imports nothing but torch, triton and numpy. The first thing measured is the device itself: bfloat16 GEMM and copy
bandwidth. Every row has milliseconds (20th-80th percentile, variants in turn, L2 overwritten before each), the share of
the ceiling that its least FLOP and bytes allow, peak memory beside the inputs, and the error against float64 on some
rows. A variant that cannot run (out of memory) stays in the table with its reason.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from runner import Report, Timing, environment, gpu_milliseconds, interleaved, relative
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cbm.kernels import (
    association_adam_,
    association_vectors,
    captured,
    fused_bottleneck_loss,
    gumbel_topk,
    intervene,
    linear_bottleneck_logits,
    score_moments,
    topk_concepts,
)

HEADER = ["op", "shape", "variant", "ms", "eager / this", "share of ceiling", "peak MB", "error"]


@dataclass
class Ceilings:
    """Of the device: FLOP and bytes per millisecond."""

    flop: float
    bytes: float

    def milliseconds(self, flop: float, moved: float) -> float:
        """The least time for so many FLOP and bytes."""
        return max(flop / self.flop, moved / self.bytes)


@dataclass
class Bench:
    """Where and how: on the GPU, or a rehearsal on a CPU."""

    rehearse: bool
    ceilings: Ceilings
    report: Report

    @property
    def device(self) -> str:
        """Where tensors are made."""
        return "cpu" if self.rehearse else "cuda"

    def unit(self, n: int, d: int) -> Tensor:
        """Unit rows in bfloat16 (float32 in a rehearsal)."""
        rows = normalize(torch.randn(n, d, device=self.device), dim=1)
        return rows if self.rehearse else rows.bfloat16()

    def compare(
        self, op: str, shape: dict[str, int], variants: dict[str, Callable[[], Tensor]], exact: Callable[[], Tensor],
        flop: float, moved: float,
    ) -> None:  # fmt: skip
        """Time the variants; the first is the baseline. Each returns what is compared with ``exact()``."""
        truth = exact().double().cpu()
        works: dict[str, Callable[[], Tensor]] = {}
        errors, peaks, reasons = {}, {}, {}
        for name, step in variants.items():
            try:
                if not self.rehearse:
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                errors[name] = relative(step().detach().cpu(), truth)
                peaks[name] = 0.0 if self.rehearse else (torch.cuda.max_memory_allocated() - before) / 2**20
                works[name] = step
            except torch.OutOfMemoryError:
                reasons[name] = "out of memory"
                torch.cuda.empty_cache()
        if self.rehearse:
            worst = max(errors.values())
            assert worst < 1e-3, (op, shape, errors)
        times = interleaved(works, 20, wall if self.rehearse else gpu_milliseconds)
        base = times.get(next(iter(variants)))
        floor = self.ceilings.milliseconds(flop, moved)
        label = " ".join(f"{k}={v}" for k, v in shape.items())
        for name in variants:
            if name in reasons:
                self.report.add(op, label, name, reasons[name], *[""] * 4)
                continue
            timing: Timing = times[name]
            ratio = "" if base is None else f"{base.median / timing.median:.2f}"
            share = f"{floor / timing.median:.0%}"
            self.report.add(op, label, name, timing, ratio, share, f"{peaks[name]:.0f}", f"{errors[name]:.0e}")
            self.report.measurements.append(
                {"op": op, "variant": name, "shape": shape, "dtype": "float32" if self.rehearse else "bfloat16"}
                | {"peak_mb": peaks[name], "flop": flop, "bytes": moved, "share_of_ceiling": floor / timing.median}
                | {"rel_err": errors[name]} | timing.fields()
            )  # fmt: skip


def wall(step: Callable) -> float:
    began = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - began)


def measured_ceilings() -> Ceilings:
    """bfloat16 GEMM of 8192^3, and a copy of 2 GB."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    times = interleaved({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, 10, gpu_milliseconds)
    return Ceilings(2 * 8192**3 / times["gemm"].median, 2 * 2**31 / times["copy"].median)


def compiled(function: Callable) -> Callable:
    return torch.compile(function, mode="max-autotune-no-cudagraphs")


def linear(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """A LaBo step: softmax head, cross-entropy, gradient of the head."""
    x, t, y = bench.unit(n, d), bench.unit(k, d), torch.randint(c, (n,), device=bench.device)
    weight = torch.randn(c, k, device=bench.device)
    wide_x, wide_t = x.float(), t.float()

    def step(logits: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(logits(leaf.softmax(0)), y), leaf)
        return gradient

    def direct(head: Tensor) -> Tensor:
        return 100 * (x @ t.T).to(head.dtype) @ head.T

    def associated(head: Tensor) -> Tensor:
        return 100 * wide_x @ (head @ wide_t).T

    def ours(head: Tensor) -> Tensor:
        return linear_bottleneck_logits(wide_x, wide_t, head, scale=100.0, plan="reassociated")

    def exact() -> Tensor:
        return step(lambda head: 100 * (x.double() @ (head.double() @ t.double()).T))

    variants = {"eager": lambda: step(direct), "eager re-associated": lambda: step(associated)}
    if not bench.rehearse:
        with_compile = compiled(associated)
        variants["compile re-associated"] = lambda: step(with_compile)
    variants["ours"] = lambda: step(ours)
    if not bench.rehearse:
        variants["ours, CUDA graph"] = captured(lambda: step(ours))
    bench.compare(
        "linear step", {"N": n, "K": k, "D": d, "C": c}, variants, exact, 4 * d * c * (n + k),
        4 * (2 * n * d + 2 * k * d + 3 * c * k),
    )  # fmt: skip


def association(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """A LaBo step with Adam: the weights after it."""
    x, t, y = bench.unit(n, d).float(), bench.unit(k, d).float(), torch.randint(c, (n,), device=bench.device)
    start = torch.randn(c, k, device=bench.device)

    def eager(dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
        features, text, weight = x.to(dtype), t.to(dtype), start.to(dtype).clone().requires_grad_()
        adam = torch.optim.Adam([weight], lr=1e-3, fused=dtype == torch.float32)

        def step() -> Tensor:
            adam.zero_grad()
            cross_entropy(100 * features @ (weight.softmax(1) @ text).T, y).backward()
            adam.step()
            return weight

        return step

    weight, moments, steps = start.clone(), (torch.zeros_like(start), torch.zeros_like(start)), [0]

    def ours() -> Tensor:
        steps[0] += 1
        vectors, lse = association_vectors(weight, t)
        vectors.requires_grad_()
        cross_entropy(100 * x @ vectors.T, y).backward()
        assert vectors.grad is not None
        association_adam_(weight, *moments, vectors.grad, vectors.detach(), lse, t, steps[0], lr=1e-3)
        return weight

    variants = {"eager, fused Adam": eager(), "ours": ours}
    bench.compare(
        "LaBo step with Adam", {"N": n, "K": k, "D": d, "C": c}, variants, eager(torch.float64), 4 * d * c * (n + k),
        24 * c * k + 4 * (2 * n * d + 2 * k * d),
    )  # fmt: skip


def nonlinear(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """A sigmoid bottleneck: loss and gradient of the head."""
    x, t, y = bench.unit(n, d), bench.unit(k, d), torch.randint(c, (n,), device=bench.device)
    head = (torch.randn(c, k, device=bench.device) * 0.02).to(x.dtype)
    alpha, beta = torch.rand(k, device=bench.device) + 0.5, torch.randn(k, device=bench.device)

    def plain(leaf: Tensor) -> Tensor:
        z = (10 * (x @ t.T)) * alpha.to(x.dtype) + beta.to(x.dtype)
        return cross_entropy((torch.sigmoid(z) @ leaf.T).float(), y)

    def step(loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = head.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    def ours(plan: str) -> Callable[[Tensor], Tensor]:
        return lambda leaf: fused_bottleneck_loss(
            x, t, leaf, y, activation="sigmoid", alpha=alpha, beta=beta, scale=10.0, plan=plan
        )[0]

    def exact() -> Tensor:
        total = torch.zeros_like(head, dtype=torch.float64)
        for rows in torch.arange(len(x), device=x.device).split(4096):
            z = 10 * (x[rows].double() @ t.double().T) * alpha.double() + beta.double()
            leaf = head.double().detach().requires_grad_()
            loss = cross_entropy(torch.sigmoid(z) @ leaf.T, y[rows], reduction="sum") / len(x)
            total += torch.autograd.grad(loss, leaf)[0]
        return total

    variants = {"eager": lambda: step(plain)}
    if not bench.rehearse:
        with_compile = compiled(plain)
        variants["compile"] = lambda: step(with_compile)
    variants["ours, chunked"] = lambda: step(ours("chunked"))
    if c <= 256:
        variants["ours, single"] = lambda: step(ours("single"))
    if not bench.rehearse and n < 10_000:
        variants["ours, CUDA graph"] = captured(lambda: step(ours("chunked")))
    bench.compare(
        "nonlinear loss + gradient", {"N": n, "K": k, "D": d, "C": c}, variants, exact, 2 * n * k * (d + 2 * c),
        2 * (n * d + k * d + 3 * k * c),
    )  # fmt: skip


def sampled(bench: Bench, n: int, k: int, d: int, c: int, top: int) -> None:
    """Gumbel top-k and the logits of what was sampled."""
    x, t, head = bench.unit(n, d), bench.unit(k, d), torch.randn(c, k, device=bench.device) * 0.02

    def eager() -> Tensor:
        z = 10 * (x @ t.T).float()
        z = z - torch.empty_like(z).exponential_().log()
        gate = torch.zeros_like(z).scatter_(1, z.topk(top, 1).indices, 1.0)
        return gate @ head.T

    def ours() -> Tensor:
        return gumbel_topk(x, t, top, 1.0, 0, head=head.to(x.dtype), scale=10.0, backend="triton")[1]

    def exact() -> Tensor:
        return gumbel_topk(x, t, top, 1.0, 0, head=head.to(x.dtype), scale=10.0, backend="torch")[1]

    # eager draws other noise: it is timed, not compared
    truth = exact()
    variants = {"eager": lambda: (eager(), truth)[1], "ours": ours}
    if not bench.rehearse:
        with_compile = compiled(eager)
        variants["compile"] = lambda: (with_compile(), truth)[1]
    bench.compare(
        "Gumbel top-k forward", {"N": n, "K": k, "D": d, "C": c, "k": top}, variants, lambda: truth,
        2 * n * k * d, 2 * (n * d + k * d) + 4 * n * c,
    )  # fmt: skip


def topk(bench: Bench, n: int, k: int, d: int, top: int) -> None:
    """The k largest scores of a vocabulary."""
    x, t = bench.unit(n, d), bench.unit(k, d)

    def chunked() -> Tensor:
        return torch.cat([(part @ t.T).topk(top, dim=1).values for part in x.split(max(1, 2**29 // k))]).float()

    def exact() -> Tensor:
        return torch.cat([(part.double() @ t.double().T).topk(top, dim=1).values for part in x.split(512)])

    variants = {"eager, chunked": chunked, "ours": lambda: topk_concepts(x, t, top, backend="triton")[0]}
    if not bench.rehearse:
        variants["eager, chunked, compile"] = compiled(chunked)
    bench.compare(
        "top-k", {"N": n, "K": k, "D": d, "k": top}, variants, exact, 2 * n * k * d,
        2 * (n * d + k * d) + 12 * n * top,
    )  # fmt: skip


def interventions(bench: Bench, n: int, k: int, c: int, m: int, p: int) -> None:
    """Accuracy while m concepts are told under p policies."""
    a, truth = torch.randn(n, k, device=bench.device), torch.randn(n, k, device=bench.device)
    head, y = torch.randn(c, k, device=bench.device), torch.randint(c, (n,), device=bench.device)
    order = torch.stack([torch.rand(n, k, device=bench.device).topk(m, dim=1).indices for _ in range(p)])

    def whole() -> Tensor:
        curves = []
        for steps in order:
            now = a.clone()
            curve = [((now @ head.T).argmax(1) == y).double().mean()]
            for column in steps.T:
                now.scatter_(1, column[:, None], truth.gather(1, column[:, None]))
                curve.append(((now @ head.T).argmax(1) == y).double().mean())
            curves.append(torch.stack(curve))
        return torch.stack(curves)

    def ours() -> Tensor:
        change = torch.stack([(truth - a).gather(1, steps) for steps in order])
        return intervene(a @ head.T, order, change, head.T.contiguous(), y, backend="triton")[0]

    bench.compare(
        "interventions", {"N": n, "K": k, "C": c, "m": m, "P": p}, {"eager": whole, "ours": ours}, whole,
        2 * n * p * m * c + 2 * n * k * c, 4 * (n * p * m * c + n * k),
    )  # fmt: skip


def moments(bench: Bench, n: int, k: int, d: int) -> None:
    """Standard deviation of every score."""
    x, t = bench.unit(n, d), bench.unit(k, d)

    def eager() -> Tensor:
        return (x @ t.T).float().std(0)

    def exact() -> Tensor:
        return torch.cat([(x.double() @ part.double().T).std(0) for part in t.split(100)])

    variants = {"eager": eager, "ours": lambda: score_moments(x, t)[1]}
    bench.compare(
        "score moments", {"N": n, "K": k, "D": d}, variants, exact, 2 * n * d * d + 2 * k * d * d,
        2 * (n * d + k * d),
    )  # fmt: skip


CASES: dict[str, tuple[Callable, list[tuple[int, ...]], tuple[int, ...]]] = {  # shapes, and that of a rehearsal
    "linear": (linear, [(50_000, 5000, 512, 100), (50_000, 500, 768, 10), (2048, 50_000, 768, 1000)], (64, 50, 16, 4)),
    "association": (association, [(2048, 50_000, 768, 1000), (50_000, 5000, 512, 100)], (64, 50, 16, 4)),
    "nonlinear": (
        nonlinear,
        [*((65_536, 5000, 512, c) for c in (10, 100, 1000)), (16_384, 50_000, 768, 1000), (5994, 370, 512, 200)],
        (64, 50, 16, 4),
    ),
    "sampled": (sampled, [(65_536, 5000, 512, 100, 16)], (64, 300, 16, 4, 6)),
    "topk": (topk, [(65_536, 100_000, 768, 16), (65_536, 5000, 512, 16), (512, 100_000, 768, 64)], (64, 300, 16, 6)),
    "interventions": (interventions, [(50_000, 4500, 1000, 50, 1), (5794, 312, 200, 28, 5)], (20, 30, 5, 4, 2)),
    "moments": (moments, [(1_280_000, 4500, 512), (50_000, 5000, 512)], (64, 50, 16)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], help=f"what to measure: {', '.join(CASES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU; writes nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in CASES]:
        parser.error(f"unknown benchmark '{unknown[0]}': choose from {', '.join(CASES)}")
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device: nothing is measured (--rehearse tries every benchmark on the CPU)")
    torch.manual_seed(0)
    ceilings = Ceilings(1e9, 1e9) if arguments.rehearse else measured_ceilings()
    for name in arguments.names or CASES:
        report = Report(name, f"GPU: {name}", HEADER, machine="gpu")
        case, shapes, tiny = CASES[name]
        for shape in [tiny] if arguments.rehearse else shapes:
            case(Bench(arguments.rehearse, ceilings, report), *shape)
        report.remarks += [
            f"Ceilings measured in the same run: {ceilings.flop / 1e9:.0f} TFLOP/s (bfloat16 GEMM of 8192^3), "
            f"{ceilings.bytes / 1e9:.2f} TB/s (copy). The share counts the FLOP and bytes of the best algorithm, so a "
            "baseline that does more is charged for it.",
            "Inputs bfloat16, sums float32 (linear, moments: float32 products). No optimizer. Peak memory beside the "
            "inputs.",
        ]
        if not arguments.rehearse:
            report.write(arguments.out, environment("gpu.py"))


if __name__ == "__main__":
    main()
