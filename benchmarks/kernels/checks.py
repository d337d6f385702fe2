"""What has to be right before it is timed: calls that only a GPU takes, and numbers that went wrong without a word."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import torch
from kernels.bench import Bench, last_line, relative
from torch import Tensor

from cbm.kernels import (
    captured,
    class_sums,
    concept_scores,
    fused_bottleneck_loss,
    gumbel_topk,
    gumbel_topk_gate,
    moments,
    score_moments,
    topk_concepts,
)
from cbm.solvers import LinearScores, elastic_net_path

Check = Callable[[Bench], tuple[float, float]]


def run(bench: Bench) -> None:
    """Every check: its error, and the largest that is right. A failed check is written with its traceback."""
    failed = 0
    for check in CHECKS:
        began = time.perf_counter()
        record = {"check": check.__name__}
        try:
            error, limit = check(bench)
            bench.wait()
            verdict, text = ("ok" if error <= limit else "WRONG"), f"error {error:.1e}, at most {limit:.0e}"
        except Exception as problem:  # the next one runs
            verdict, text = "FAILED", f"{type(problem).__name__}: {last_line(problem)}"
            record["traceback"] = traceback.format_exc()[-3000:]
        failed += verdict != "ok"
        bench.write({**record, "verdict": verdict, "text": text})
        print(f"{verdict} {check.__name__}: {text} [{time.perf_counter() - began:.1f} s]", flush=True)
    print(f"checks: {len(CHECKS) - failed} of {len(CHECKS)} right", flush=True)


def problem(
    bench: Bench, dtype: torch.dtype, n: int = 512, k: int = 704, d: int = 128, c: int = 20
) -> dict[str, Tensor]:
    """Tensors of a bottleneck."""
    torch.manual_seed(0)
    return {
        "x": bench.unit(n, d, dtype), "concepts": bench.unit(k, d, dtype),
        "head": torch.randn(c, k, device=bench.device).to(dtype) * 0.05,
        "y": torch.randint(c, (n,), device=bench.device), "alpha": torch.rand(k, device=bench.device) + 0.5,
        "beta": torch.randn(k, device=bench.device),
    }  # fmt: skip


def gradients(p: dict[str, Tensor], backend: str, **options) -> list[Tensor]:
    """Loss and all its gradients."""
    leaves = {n: v.detach().clone().requires_grad_(v.is_floating_point()) for n, v in p.items()}
    loss, _ = fused_bottleneck_loss(
        **leaves, activation="sigmoid", scale=5.0, plan="chunked", backend=backend, **options
    )
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return [loss, *torch.autograd.grad(loss, wanted)]


def worst(bench: Bench, p: dict[str, Tensor], **options) -> float:
    """Largest relative error of loss and gradients against float64, beyond the rounding of their dtype."""
    exact = {n: v.double() if v.is_floating_point() else v for n, v in p.items()}
    kind = "auto" if bench.gpu else "triton"
    return max(beyond_rounding(a, b) for a, b in zip(gradients(p, kind, **options), gradients(exact, "torch")))


def beyond_rounding(found: Tensor, truth: Tensor) -> float:
    """Relative error, less that of the truth in the dtype of what was found: a gradient of 1e-6 has few digits in
    float16, whoever computes it."""
    return relative(found, truth) - relative(truth.to(found.dtype), truth)


def bottleneck_in_bfloat16(bench: Bench) -> tuple[float, float]:
    """Products with float32 sums of half-precision operands, in chunks."""
    return worst(bench, problem(bench, torch.bfloat16), chunk_rows=200), 1.5e-2


def bottleneck_with_a_float32_head(bench: Bench) -> tuple[float, float]:
    """What every nn.Parameter is."""
    p = problem(bench, torch.bfloat16)
    return worst(bench, p | {"head": p["head"].float()}, chunk_rows=200), 1.5e-2


def bottleneck_in_float32(bench: Bench) -> tuple[float, float]:
    """The library's products, our elementwise kernels."""
    return worst(bench, problem(bench, torch.float32), chunk_rows=200), 1e-5


def many_rows_in_float16(bench: Bench) -> tuple[float, float]:
    """(p - y) / n is below what float16 can say."""
    n = 65_536 if bench.gpu else 256
    p = problem(bench, torch.float16, n=n, k=64, d=64, c=500 if bench.gpu else 5)
    return worst(bench, p | {"head": p["head"].float()}), 1e-2


def scores_of_two_dtypes(bench: Bench) -> tuple[float, float]:
    """float16 features and float32 concepts."""
    x, t = bench.unit(100, 64, torch.float16), bench.unit(90, 64, torch.float32)
    return relative(concept_scores(x, t, activation="tanh"), (x.double() @ t.double().T).tanh()), 1e-5


def topk_with_nan_and_128_picks(bench: Bench) -> tuple[float, float]:
    """A row of NaN gets -inf and the first concepts."""
    x, t = bench.unit(300, 64), bench.unit(3000, 64)
    x[7] = torch.nan
    values, indices = topk_concepts(x, t, 128, backend="auto" if bench.gpu else "triton")
    truth = (x.double() @ t.double().T).nan_to_num(nan=-1e9).topk(128).values
    keep = torch.arange(300, device=bench.device) != 7
    wrong = indices[7].tolist() != list(range(128)) or bool(values[7].isfinite().any())
    return relative(values[keep], truth[keep]) + wrong, 1e-5


def samples_and_their_likelihood(bench: Bench) -> tuple[float, float]:
    """The same concepts as PyTorch picks, a seed of 34 bits, the first concepts banned."""
    x, t, beta = bench.unit(500, 64), bench.unit(3000, 64), torch.zeros(3000, device=bench.device)
    beta[:300] = -torch.inf
    found, truth = (
        gumbel_topk(x, t, 16, 0.5, 12_345_678_901, scale=5.0, beta=beta, backend=b)
        for b in ("auto" if bench.gpu else "triton", "torch")
    )
    return max(relative(found[2], truth[2]), float((found[0] != truth[0]).double().mean()) / 100), 1e-5


def more_than_2_31_scores(bench: Bench) -> tuple[float, float]:
    """Addresses of 64 bits."""
    n = 50_000 if bench.gpu else 64
    x, t = bench.unit(n, 16), bench.unit(n, 16)
    out = concept_scores(x, t, activation="tanh", out_dtype=torch.bfloat16)
    return relative(out[-3:], (x[-3:].double() @ t.double().T).tanh()), 4e-3


def captured_step(bench: Bench) -> tuple[float, float]:
    """A CUDA graph replays to the same gradient."""
    if not bench.gpu:
        return 0.0, 0.0
    p = problem(bench, torch.bfloat16)
    leaf = p["head"].float().requires_grad_()

    def step() -> Tensor:
        loss, _ = fused_bottleneck_loss(
            p["x"], p["concepts"], leaf, p["y"], activation="sigmoid", alpha=p["alpha"], plan="chunked"
        )
        return torch.autograd.grad(loss, leaf)[0]

    expected, replay = step().clone(), captured(step)
    replay()
    return relative(replay(), expected), 1e-6


def bitwise_equal_runs(bench: Bench) -> tuple[float, float]:
    """Loss, gradients and class sums of five runs, rows drawn repeatedly."""
    p = problem(bench, torch.bfloat16, n=4096 if bench.gpu else 64)
    rows = torch.randint(len(p["x"]), (2 * len(p["x"]),), device=bench.device)
    runs = []
    for _ in range(5):
        leaf = p["x"].float().requires_grad_()
        scores = concept_scores(leaf, p["concepts"], rows=rows, activation="tanh")
        (of_rows,) = torch.autograd.grad(scores.sum(), leaf)
        kind = "auto" if bench.gpu else "triton"
        runs.append([*gradients(p, kind), of_rows, class_sums(p["x"], p["y"], 20)])
    same = all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0]))
    return float(not same), 0.0


def moments_of_half_precision(bench: Bench) -> tuple[float, float]:
    """Features with a large common part, by tensor cores."""
    n = 200_000 if bench.gpu else 3000
    x = (0.3 * bench.unit(n, 64, torch.float32) + bench.unit(1, 64, torch.float32)).bfloat16()
    t = bench.unit(50, 64)
    scores = x.double() @ t.double().T
    mean, std = score_moments(x, t)
    assert bench.gpu or len(x) < moments._MANY
    return max(float(((mean - scores.mean(0)) / scores.std(0)).abs().max()), relative(std, scores.std(0))), 2e-4


def gate_of_many_rows(bench: Bench) -> tuple[float, float]:
    """k of every row, the same as PyTorch's on the CPU."""
    z = torch.randn(2000 if bench.gpu else 20, 500, device=bench.device)
    found, expected = gumbel_topk_gate(z, 5, 1.0, seed=3), gumbel_topk_gate(z.cpu(), 5, 1.0, seed=3)
    return float(((found != 0).cpu() != (expected != 0)).double().mean()), 1e-4


def sparse_head_on_the_device(bench: Bench) -> tuple[float, float]:
    """Its certificate."""
    x, t = bench.unit(400, 32, torch.float32), bench.unit(60, 32, torch.float32)
    y = (x @ bench.unit(4, 32, torch.float32).T).argmax(1)
    return elastic_net_path(LinearScores(x, t), y, num_classes=4, n_lambdas=8).points[-1].gap, 1e-4


CHECKS: list[Check] = [
    bottleneck_in_bfloat16, bottleneck_with_a_float32_head, bottleneck_in_float32, many_rows_in_float16,
    scores_of_two_dtypes, topk_with_nan_and_128_picks, samples_and_their_likelihood, more_than_2_31_scores,
    captured_step, bitwise_equal_runs, moments_of_half_precision, gate_of_many_rows, sparse_head_on_the_device,
]  # fmt: skip
