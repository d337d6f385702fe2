"""What the algebra saves on one CPU thread: bottlenecks, score moments, interventions, sampling, concept selection.

    python benchmarks/cpu.py linear association nonlinear moments interventions gumbel selection topk text [--out DIR]

Times are CPU time of the whole process (the machine may be shared), medians of interleaved runs with the 20th and 80th
percentile, one thread. Every variant's result is checked against the others in the same run. Writes
``cpu_NAME.jsonl`` (one line per variant and shape) and ``cpu_NAME.md``.

``selection`` compares with apricot-select and needs ``pip install -e .[bench]``.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from runner import Report, Timing, environment, interleaved, relative
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy, normalize

from cbm.kernels import (
    choose_plan,
    fused_bottleneck_loss,
    gumbel_topk,
    intervene,
    linear_bottleneck_logits,
    score_moments,
    topk_concepts,
)
from cbm.layers import AssociationHead, ConceptBottleneck
from cbm.solvers import AssociationAdam, greedy_select
from cbm.solvers.submodular import _Problem, _select_one


@cache
def ceiling() -> float:
    """FLOP per millisecond of a float32 product of 2048^3 on this thread, measured once per run."""
    a, b = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / interleaved({"product": lambda: a @ b}, 10)["product"].median


def share(flop: float, timing: Timing) -> dict[str, float]:
    """The part of the ceiling that the least FLOP of the best algorithm make in this time."""
    return {"flop": flop, "share_of_ceiling": flop / ceiling() / timing.median}


def percent(flop: float, timing: Timing) -> str:
    """The same for a table."""
    return f"{share(flop, timing)['share_of_ceiling']:.0%}"


CEILING = (
    "`% of ceiling`: the FLOP of the best algorithm in the time of ours, against a float32 product of 2048^3 on the "
    "same thread in the same run ({:.0f} GFLOP/s)."
)

LINEAR_SHAPES = [  # rows of a batch, concepts, dimensions, classes
    (128, 500, 512, 10),
    (512, 500, 512, 10),
    (4096, 500, 512, 10),
    (512, 2000, 512, 40),
    (4096, 2000, 512, 40),
    (512, 5000, 512, 100),
    (4096, 5000, 512, 100),
    (2048, 10000, 768, 200),
    (1024, 50000, 768, 1000),
    (64, 100, 512, 2),
    (4096, 100, 512, 100),
]


def linear() -> Report:
    report = Report(
        "linear",
        "LaBo training step: re-associated against the N x K scores",
        [
            *("B", "K", "D", "C", "N x K ms", "re-associated ms", "scores kept ms", "N x K / re", "kept / re"),
            "% of ceiling",
            *("model N x K", "model kept", "gradient error fp32", "fp64"),
        ],
    )
    misses = []
    for b, k, d, c in LINEAR_SHAPES:
        torch.manual_seed(0)
        x, concepts = normalize(torch.randn(b, d), dim=1), normalize(torch.randn(k, d), dim=1)
        weight, y = torch.randn(c, k), torch.randint(c, (b,))

        def step(variant: str, dtype=torch.float32, x=x, concepts=concepts, weight=weight, y=y, kept=None):
            features, text = x.to(dtype), concepts.to(dtype)
            leaf = weight.to(dtype).detach().requires_grad_()
            head = leaf.softmax(0)
            if variant == "naive":
                logits = 100 * (features @ text.T) @ head.T
            elif variant == "kept":
                logits = 100 * kept @ head.T
            else:
                logits = linear_bottleneck_logits(features, text, head, scale=100.0, plan="reassociated")
            cross_entropy(logits, y).backward()
            return leaf.grad

        scores = x @ concepts.T
        times = interleaved(
            {
                "naive": lambda step=step: step("naive"),
                "reassociated": lambda step=step: step("reassociated"),
                "kept": lambda step=step, scores=scores: step("kept", kept=scores),
            },
            seconds=20,
        )
        naive, ours, kept = times["naive"], times["reassociated"], times["kept"]
        error32 = relative(step("reassociated"), step("naive"))
        small = c * k < 2e7
        error64 = relative(step("reassociated", torch.float64), step("naive", torch.float64)) if small else None
        choices = []
        for cached, other in ((False, naive), (True, kept)):
            choice = choose_plan(b, k, d, c, scores_cached=cached)
            winner = "reassociated" if ours.median < other.median else "direct"
            verdict = "right" if choice == winner else ("equal" if ours.equals(other) else "WRONG")
            choices.append(f"{choice}: {verdict}")
            if verdict != "right":
                misses.append(f"B={b} K={k} D={d} C={c} {'kept' if cached else 'N x K'}: {verdict}")
        report.add(
            b, k, d, c, naive, ours, kept, f"{naive.median / ours.median:.2f}", f"{kept.median / ours.median:.2f}"
        )
        flop = 4 * d * c * (b + k)
        report.rows[-1] += [
            percent(flop, ours),
            *choices,
            f"{error32:.0e}",
            "not run" if error64 is None else f"{error64:.0e}",
        ]
        print("   ", *report.rows[-1][-5:])
        shape = {"N": b, "K": k, "D": d, "C": c}
        for name, timing in times.items():
            report.measurements.append(
                {"op": "linear_bottleneck_logits", "variant": name, "shape": shape, "dtype": "float32", "mode": "step"}
                | timing.fields()
                | share(flop, timing)
                | {"grad_rel_err_fp32": error32, "grad_rel_err_fp64": error64}
            )
    report.remarks += [
        "One step: softmax of the head over classes, logits at scale 100, cross-entropy, backward to the head; no "
        "optimizer. float32, features and concepts normalised beforehand. Median (20th-80th percentile) CPU "
        "milliseconds.",
        "`N x K`: plain autograd through the scores [B, K]. `scores kept`: the scores are given for free at every "
        "step, which needs them stored for the whole data set.",
        "`model`: what `choose_plan` picks against either baseline, and whether that is the measured winner ('equal': "
        "the difference is below the spread).",
        "Choices that were not the measured winner: " + ("; ".join(misses) if misses else "none") + ".",
        "Ratios below 1 are shapes where re-association loses; `plan='auto'` does not take it there.",
        CEILING.format(ceiling() / 1e6),
    ]
    return report


def moments() -> Report:
    report = Report(
        "moments",
        "Mean and standard deviation of every concept score",
        [
            *("N", "D", "K", "from scores ms", "from covariance ms", "ratio", "% of ceiling"),
            *("largest temporary MB, before", "after"),
            *("std error, scores", "covariance"),
        ],
    )
    for n, d, k in [(20_000, 512, 2000), (50_000, 512, 5000), (50_000, 768, 500), (20_000, 512, 200)]:
        torch.manual_seed(0)
        x = normalize(torch.randn(n, d) @ torch.randn(d, d) * 0.1 + torch.randn(d), dim=1)
        concepts = normalize(torch.randn(k, d), dim=1)

        def from_scores(x=x, concepts=concepts):
            scores = x @ concepts.T
            return scores.mean(0), scores.std(0)

        variants = {"scores": from_scores, "covariance": lambda x=x, concepts=concepts: score_moments(x, concepts)}
        times = interleaved(variants, seconds=20)
        exact = torch.cat([(x.double() @ t.double().T).std(0) for t in concepts.split(500)])
        errors = {name: relative(variant()[1], exact) for name, variant in variants.items()}
        ratio, flop = times["scores"].median / times["covariance"].median, 2 * d * d * (n + k)
        report.add(
            *(n, d, k, times["scores"], times["covariance"], f"{ratio:.2f}", percent(flop, times["covariance"])),
            *(f"{n * k * 4e-6:.0f}", f"{max(4096 * d * 4, d * d * 8, min(k, 4096) * d * 8) * 1e-6:.0f}"),
            *(f"{errors[name]:.0e}" for name in variants),
        )
        for name, timing in times.items():
            report.measurements.append(
                {"op": "score_moments", "variant": name, "shape": {"N": n, "D": d, "K": k}, "dtype": "float32"}
                | timing.fields()
                | share(flop, timing)
                | {"std_rel_err": errors[name]}
            )
    report.remarks += [
        "Baseline: `s = x @ concepts.T; s.mean(0), s.std(0)`. Errors against float64. The temporaries are computed "
        "from the shapes, not measured.",
        "The covariance costs N D^2 whatever K is, the scores N D K: with fewer concepts than dimensions the scores "
        "are cheaper (ratio below 1) but still need the N x K memory.",
        CEILING.format(ceiling() / 1e6),
    ]
    return report


_ASSOCIATION_PEAK = """
import torch
torch.set_num_threads(1)
from torch.nn.functional import cross_entropy
from cbm.layers import AssociationHead, ConceptBottleneck
from cbm.solvers import AssociationAdam
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def train(b, k, d, c):
    model = ConceptBottleneck(torch.randn(k, d), AssociationHead(torch.zeros(c, k)))
    x, y = torch.randn(b, d), torch.randint(c, (b,))
    parameters = [p for p in model.parameters() if p.requires_grad]
    if {ours}:
        optimizer = AssociationAdam(model.head, parameters, lr=0.01)
    else:
        optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)
    before = high_water()
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return before
train(64, 100, 16, 3)  # whatever is imported on the first call
before = train(*{shape})
print((high_water() - before) / 1024)
"""


def association() -> Report:
    report = Report(
        "association",
        "LaBo training step with Adam: head held by its class vectors against plain autograd",
        [
            *("B", "K", "D", "C", "Adam ms", "fused Adam ms", "ours ms", "Adam / ours", "fused / ours"),
            *("% of ceiling", "peak MB, fused Adam", "ours", "largest difference of a weight"),
        ],
    )
    for b, k, d, c in [(2048, 50_000, 768, 1000), (4096, 20_000, 512, 1000), (4096, 5000, 512, 100)]:
        torch.manual_seed(0)
        t, x, y = normalize(torch.randn(k, d), dim=1), normalize(torch.randn(b, d), dim=1), torch.randint(c, (b,))
        first = ConceptBottleneck(t, AssociationHead(torch.randn(c, k)), scale=20.0, learn_scale=True)
        steps, models = {}, {}
        for name in ("Adam", "fused Adam", "ours"):
            model = models[name] = copy.deepcopy(first)
            parameters = [p for p in model.parameters() if p.requires_grad]
            if name == "ours":
                optimizer: torch.optim.Optimizer = AssociationAdam(model.head, parameters, lr=0.01)
            else:
                optimizer = torch.optim.Adam(parameters, lr=0.01, fused=name == "fused Adam")

            def step(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()

            steps[name] = step
        times = interleaved(steps, seconds=40)
        logits = [model.head.logits.detach() for model in models.values()]
        off = max(float((each - logits[0]).abs().max()) for each in logits[1:])
        peaks = {
            name: float(run_code(_ASSOCIATION_PEAK.format(shape=(b, k, d, c), ours=name == "ours")))
            for name in ("fused Adam", "ours")
        }
        ours, flop = times["ours"].median, 4 * d * c * (b + k)
        report.add(
            b, k, d, c, *times.values(), f"{times['Adam'].median / ours:.2f}",
            f"{times['fused Adam'].median / ours:.2f}", percent(flop, times["ours"]),
            *(f"{peak:.0f}" for peak in peaks.values()), f"{off:.0e}",
        )  # fmt: skip
        report.measurements += [
            {"op": "association_step", "variant": name, "shape": dict(zip("NKDC", (b, k, d, c)))}
            | {"dtype": "float32", "mode": "step", "peak_mb": peaks.get(name), "largest_difference": off}
            | timing.fields()
            | share(flop, timing)
            for name, timing in times.items()
        ]  # fmt: skip
    report.remarks += [
        "Forward, backward and the step of Adam; softmax over concepts. `ours` makes the gradient of the head tile by "
        "tile as Adam uses it up. Matrix products are nearly all of a step on a CPU, so what is saved is memory; the "
        "methods take it from 2^24 weights on, and PyTorch's fused Adam below.",
        "`peak`: by how much two steps raise the largest memory of a fresh process beyond model and data; Adam's two "
        "moments are in it on both sides.",
        CEILING.format(ceiling() / 1e6),
    ]
    return report


NONLINEAR_SHAPES = [  # rows of a batch, concepts, dimensions, classes
    (8192, 5000, 512, 10),
    (8192, 5000, 512, 100),
    (8192, 5000, 512, 1000),
    (65536, 1000, 512, 100),
    (4096, 500, 512, 10),
    (512, 216, 512, 20),
    (64, 100, 512, 2),
]

_PEAK = """
import torch
torch.set_num_threads(1)
from torch.nn.functional import cross_entropy
from cbm.kernels import fused_bottleneck_loss
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
b, k, d, c = {shape}
x, t, y = torch.randn(b, d), torch.randn(k, d), torch.randint(c, (b,))
w = (torch.randn(c, k) * 0.02).requires_grad_()
alpha, beta = torch.ones(k, requires_grad={affine}), torch.zeros(k, requires_grad={affine})
def step(x, y, plan):
    return fused_bottleneck_loss(x, t, w, y, activation="sigmoid", alpha=alpha, beta=beta, plan=plan)[0].backward()
for plan in ("eager", "chunked"):  # whatever is imported on the first call
    step(x[:64], y[:64], plan)
before = high_water()
if {ours}:
    step(x, y, "chunked")
else:
    cross_entropy(torch.sigmoid(x @ t.T * alpha + beta) @ w.T, y).backward()
print((high_water() - before) / 1024)
"""


def run_code(code: str) -> str:
    """What a fresh Python process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def peak_megabytes(shape: tuple[int, ...], affine: bool, ours: bool) -> float:
    """By how much one step raises the largest memory of a fresh process; gradients are in it on both sides."""
    return float(run_code(_PEAK.format(shape=shape, affine=affine, ours=ours)))


def nonlinear() -> Report:
    report = Report(
        "nonlinear",
        "Sigmoid bottleneck, loss and gradients: chunks against plain autograd",
        [
            *("B", "K", "D", "C", "trained", "eager ms", "ours ms", "eager / ours", "% of ceiling"),
            *("peak MB, eager", "ours", "ratio"),
            *("gradient error", "eager's"),
        ],
    )
    for shape, affine in [(shape, affine) for shape in NONLINEAR_SHAPES for affine in (False, True)]:
        b, k, d, c = shape
        torch.manual_seed(0)
        x, t = normalize(torch.randn(b, d), dim=1), normalize(torch.randn(k, d), dim=1)
        w, y = torch.randn(c, k) * 0.02, torch.randint(c, (b,))
        alpha, beta = torch.rand(k) + 0.5, torch.randn(k)

        def step(variant: str, dtype=torch.float32, x=x, t=t, w=w, y=y, alpha=alpha, beta=beta, affine=affine):
            head = w.to(dtype).detach().requires_grad_()
            a, b = (v.to(dtype).detach().requires_grad_(affine) for v in (alpha, beta))
            if variant == "eager":
                z = 10 * (x.to(dtype) @ t.to(dtype).T) * a + b
                loss = cross_entropy(torch.sigmoid(z) @ head.T, y)
            else:
                loss, _ = fused_bottleneck_loss(x, t, head, y, activation="sigmoid", alpha=a, beta=b, scale=10.0)
            loss.backward()
            return head.grad

        times = interleaved({name: lambda step=step, name=name: step(name) for name in ("eager", "ours")}, seconds=30)
        eager, ours = times["eager"], times["ours"]
        exact = step("eager", torch.float64) if b * k * 8 < 2e9 else None
        errors = {n: "not run" if exact is None else f"{relative(step(n), exact):.0e}" for n in times}
        flop = 2 * b * k * (d + (3 if affine else 2) * c)
        peaks = {n: peak_megabytes(shape, affine, n == "ours") if b * k > 2**24 else None for n in times}
        report.add(
            *shape, "head, alpha, beta" if affine else "head", eager, ours,
            "equal" if eager.equals(ours) else f"{eager.median / ours.median:.2f}", percent(flop, ours),
            *("" if p is None else f"{p:.0f}" for p in peaks.values()),
            "" if peaks["ours"] is None else f"{peaks['eager'] / max(peaks['ours'], 1):.0f}",
            errors["ours"], errors["eager"],
        )  # fmt: skip
        for name, timing in times.items():
            report.measurements.append(
                {"op": "fused_bottleneck_loss", "variant": name, "shape": dict(zip("NKDC", shape)), "dtype": "float32"}
                | {"mode": "step", "trained": report.rows[-1][4], "peak_mb": peaks[name], "rel_err": errors[name]}
                | timing.fields()
                | share(flop, timing)
            )
    report.remarks += [
        "Loss, and gradients of what is trained; scale 10, affine map and sigmoid, no optimizer. `ours` decides by "
        "itself between plain autograd and chunks (plan='auto').",
        "`peak`: by how much one step of that size raises the largest memory of a fresh process (inputs and a small "
        "step done before), gradients included; only where the scores are over 64 MB.",
        "`equal`: the medians differ by less than the spread from the 20th to the 80th percentile.",
        "Against float64; gradient of the head.",
        CEILING.format(ceiling() / 1e6),
    ]
    return report


def interventions() -> Report:
    report = Report(
        "interventions",
        "Accuracy while concepts are told one after the other",
        ["N", "K", "C", "answers", "policies", "whole head ms", "ours ms", "ratio", "largest difference of a curve"],
    )
    for n, k, c, m, p in [
        (1000, 1000, 100, 50, 4),
        (2000, 312, 200, 28, 4),
        (1000, 4500, 1000, 20, 1),
        (500, 64, 10, 16, 4),
    ]:
        torch.manual_seed(0)
        a, truth, w, y = torch.randn(n, k), torch.randn(n, k), torch.randn(c, k), torch.randint(c, (n,))
        order = torch.stack([torch.rand(n, k).topk(m, dim=1).indices for _ in range(p)])

        def whole(a=a, truth=truth, w=w, y=y, order=order):
            curves = []
            for steps in order:
                now = a.clone()
                curve = [((now @ w.T).argmax(1) == y).double().mean()]
                for column in steps.T:
                    now.scatter_(1, column[:, None], truth.gather(1, column[:, None]))
                    curve.append(((now @ w.T).argmax(1) == y).double().mean())
                curves.append(torch.stack(curve))
            return torch.stack(curves)

        def ours(a=a, truth=truth, w=w, y=y, order=order):
            change = torch.stack([truth.gather(1, steps) - a.gather(1, steps) for steps in order])
            return intervene(a @ w.T, order, change, w.T.contiguous(), y)[0]

        times = interleaved({"whole": whole, "ours": ours}, seconds=20)
        off = float((whole() - ours()).abs().max())
        ratio = times["whole"].median / times["ours"].median
        report.add(n, k, c, m, p, times["whole"], times["ours"], f"{ratio:.1f}", f"{off:.0e}")
        report.measurements += [
            {"op": "intervene", "variant": name, "shape": {"N": n, "K": k, "C": c, "m": m, "P": p}, "dtype": "float32"}
            | {"largest_difference": off} | timing.fields()
            for name, timing in times.items()
        ]  # fmt: skip
    report.remarks.append(
        "The first logits, the changes and the transposed head are made anew in every run of ours. Curves may differ "
        "by single pictures whose two best classes are equal to rounding."
    )
    return report


def gumbel() -> Report:
    report = Report(
        "gumbel",
        "Gumbel top-k: forward, and straight-through backward to the head and the concepts",
        ["B", "K", "D", "C", "k", "", "eager ms", "ours ms", "ratio", "same concepts as float64"],
    )
    for b, k, d, c, top in [(4096, 5000, 512, 100, 16), (512, 1000, 512, 20, 5)]:
        torch.manual_seed(0)
        x, t = normalize(torch.randn(b, d), dim=1), normalize(torch.randn(k, d), dim=1)
        w, y = torch.randn(c, k) * 0.02, torch.randint(c, (b,))

        def eager(backward: bool, x=x, t=t, w=w, y=y, top=top):
            text, head = (v.detach().requires_grad_(backward) for v in (t, w))
            z = 10 * (x @ text.T)
            z = z - torch.empty_like(z).exponential_().log()
            p = z.softmax(1)
            gate = torch.zeros_like(p).scatter_(1, z.topk(top, 1).indices, 1.0)
            loss = cross_entropy((gate + p - p.detach() if backward else gate) @ head.T, y)
            if backward:
                loss.backward()

        def ours(backward: bool, x=x, t=t, w=w, y=y, top=top):
            text, head = (v.detach().requires_grad_(backward) for v in (t, w))
            loss = cross_entropy(gumbel_topk(x, text, top, 1.0, 0, head=head, scale=10.0)[1], y)
            if backward:
                loss.backward()

        found = gumbel_topk(x[:256], t, top, 1.0, 0, scale=10.0)[0]
        exact = gumbel_topk(x[:256].double(), t.double(), top, 1.0, 0, scale=10.0)[0]
        same = float((found == exact).double().mean())
        for backward in (False, True):
            times = interleaved(
                {"eager": lambda e=eager, b=backward: e(b), "ours": lambda o=ours, b=backward: o(b)}, seconds=30
            )
            mode = "with backward" if backward else "forward"
            ratio = times["eager"].median / times["ours"].median
            report.add(b, k, d, c, top, mode, times["eager"], times["ours"], f"{ratio:.2f}", f"{same:.2%}")
            report.measurements += [
                {"op": "gumbel_topk", "variant": name, "shape": {"N": b, "K": k, "D": d, "C": c, "k": top}}
                | {"dtype": "float32", "mode": mode, "same_ids": same} | timing.fields()
                for name, timing in times.items()
            ]  # fmt: skip
    report.remarks.append(
        "Noise that is a function of the picture's number costs integer arithmetic on a CPU (Philox): what is gained "
        "here is memory (no N x K matrix between the passes) and noise that is the same in any batch and on any device."
    )
    return report


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    """Unit vectors in twenty clusters with a common mean: like the phrases of one class."""
    g = np.random.default_rng(seed)
    centres = g.standard_normal((20, d))
    x = centres[g.integers(20, size=n)] + 0.8 * g.standard_normal((n, d)) + 0.5 * g.standard_normal(d)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def shortfall(features: np.ndarray, picks: list[int]) -> float:
    """By how much a pick's float64 gain was below the best one at its step, at most, relative to the first gain."""
    unit = features.astype("f8") / np.linalg.norm(features.astype("f8"), axis=1, keepdims=True)
    similarity = (unit @ unit.T) ** 2
    covered, worst, first = np.zeros(len(unit)), 0.0, similarity.sum(1).max()
    for pick in picks:
        gains = np.maximum(similarity - covered, 0).sum(1)
        worst = max(worst, (gains.max() - gains[pick]) / first)
        covered = np.maximum(covered, similarity[pick])
    return worst


def selection() -> Report:
    try:
        import apricot
        import numba
        from apricot import FacilityLocationSelection
        from apricot.functions import facilityLocation
        from apricot.optimizers import LazyGreedy, NaiveGreedy
    except ImportError:
        raise SystemExit("selection compares with apricot-select: pip install -e .[bench]") from None
    numba.set_num_threads(1)

    classes, compared, n, d, k = 100, 10, 500, 512, 50
    banks = [clustered(n, d, seed) for seed in range(classes)]
    features = torch.from_numpy(np.concatenate(banks))
    candidates = list(torch.arange(classes * n).split(n))
    nothing = torch.zeros(classes * n)

    def ours() -> list[torch.Tensor]:
        return greedy_select(nothing, features, candidates, k, coverage="facility_cos2")

    def problems() -> list[_Problem]:
        none = torch.zeros(n, dtype=torch.float64)
        return [_Problem(none, torch.from_numpy(bank), "facility_cos2", 1.0) for bank in banks]

    tables = [p.rewards() for p in problems()]
    similarities = [np.ascontiguousarray((b.astype("f8") @ b.T.astype("f8")) ** 2) for b in banks[:compared]]

    def loop_only() -> list[torch.Tensor]:
        return [_select_one(p, t, k) for p, t in zip(problems(), tables)]

    def fit(optimizer: str) -> list[list[int]]:
        return [
            list(FacilityLocationSelection(k, metric="cosine", optimizer=optimizer).fit(b).ranking)
            for b in banks[:compared]
        ]

    optimizers = {"naive": NaiveGreedy, "lazy": LazyGreedy}
    compiled_once = {
        name: cache(getattr(facilityLocation, name)) for name in ("calculate_gains", "calculate_gains_sieve")
    }

    def inner(name: str) -> tuple[float, list[list[int]]]:
        """CPU ms per class of apricot's greedy loop on a given similarity matrix, and the picks. Nothing compiles."""
        spent, picks = 0.0, []
        for similarity in similarities:
            model = FacilityLocationSelection(k, metric="precomputed", optimizer=name)
            with mock.patch.multiple(facilityLocation, **compiled_once):
                model._initialize(similarity)
            before = time.process_time()
            optimizers[name](function=model).select(similarity, k)
            spent += time.process_time() - before
            picks.append([int(i) for i in model.ranking])
        return 1e3 * spent / compared, picks

    spent: dict[str, list[float]] = {}
    with threadpool_limits(1):
        reference = fit("lazy")
        mine = [(p % n).tolist() for p in ours()]
        paths = {
            "ours, whole": mine[:compared],
            "ours, greedy loop": [c.tolist() for c in loop_only()[:compared]],
            "apricot fit": [[int(i) for i in c] for c in reference],
            **{f"apricot greedy loop, {name}": inner(name)[1] for name in optimizers},
        }
        worst = max(shortfall(bank, picks) for path in paths.values() for bank, picks in zip(banks, path))
        identical = sum(all(path[i] == mine[i] for path in paths.values()) for i in range(compared))
        if worst > 1e-6 or paths["ours, greedy loop"] != paths["ours, whole"]:
            raise SystemExit(
                f"selection: a pick was not the greedy one (gain short by {worst:.1e}); nothing is reported"
            )
        for run in range(7):
            for name, call, per in (
                ("ours, whole", ours, classes),
                ("ours, greedy loop", loop_only, classes),
                ("apricot fit, lazy", lambda: fit("lazy"), compared),
                ("apricot fit, naive", lambda: fit("naive"), compared),
            ):
                if name.startswith("apricot") and run >= 3:
                    continue
                before = time.process_time()
                call()
                spent.setdefault(name, []).append(1e3 * (time.process_time() - before) / per)
            for name in optimizers:
                spent.setdefault(f"apricot greedy loop, {name}", []).append(inner(name)[0])
    times = {
        name: Timing(statistics.median(t), *(float(np.percentile(t, p)) for p in (20, 80)), len(t))
        for name, t in spent.items()
    }

    report = Report(
        "selection",
        "Greedy facility location: 100 classes, 500 candidates of 512 dimensions, 50 picks",
        ["", "CPU ms per class", "against ours, whole", "against our greedy loop", "classes timed", "runs"],
    )
    whole, loop = times["ours, whole"].median, times["ours, greedy loop"].median
    for name, timing in times.items():
        counted = compared if name.startswith("apricot") else classes
        report.add(name, timing, f"{timing.median / whole:.2f}", f"{timing.median / loop:.2f}", counted, timing.runs)
        report.measurements.append(
            {"op": "greedy_select", "variant": name, "shape": {"classes": counted, "n": n, "D": d, "k": k}}
            | {"dtype": "float32", "apricot": apricot.__version__, "numba": numba.__version__}
            | timing.fields()
        )
    versus_fit = min(times[f"apricot fit, {name}"].median for name in optimizers) / whole
    versus_loop = min(times[f"apricot greedy loop, {name}"].median for name in optimizers) / loop
    report.remarks += [
        f"apricot-select {apricot.__version__}, numba {numba.__version__}. All times are per class; apricot is timed "
        f"on {compared} of the {classes} classes. The same objective for both: apricot's 'cosine' is the squared "
        f"cosine, our `facility_cos2`. Picks identical, in order, in {identical} of {compared} classes; in the others "
        "they part at a tie (two leftover neighbours gain the same to the last digit: we take the lower index, "
        "apricot what rounding gives). Every pick of every variant has the largest float64 gain of its step, to "
        f"within {worst:.0e} of the first gain.",
        "'whole' and 'fit' start from features. Nearly all of apricot's `fit` is numba compiling its kernel anew in "
        "every call, which a user pays once per class; 'greedy loop' starts from a given similarity matrix and leaves "
        "compilation out on both sides. apricot works in float64, ours in float32 with near-ties settled in float64.",
        f"Target, at least 100 times less CPU time than `fit`: {versus_fit:.0f} times, "
        f"{'met' if versus_fit >= 100 else 'MISSED'}.",
        f"Target, the greedy loop no slower than apricot's faster one: {versus_loop:.2f} times less CPU time, "
        f"{'met' if versus_loop >= 1 else 'MISSED'}. Counting our similarity matrix as well (and not apricot's): "
        f"{versus_loop * loop / whole:.2f}.",
    ]
    return report


def plain_product(x: torch.Tensor, concepts: torch.Tensor, rows: int = 1024, chunk: int = 2048) -> None:
    """All scores, into one reused buffer of 8 MB: what any search must compute, in blocks that are as fast as any."""
    buffer = torch.empty(rows, chunk)
    for part in concepts.split(chunk):
        part = part.to(x.dtype).T
        for block in x.split(rows):
            torch.mm(block, part, out=buffer.flatten()[: len(block) * part.shape[1]].view(len(block), -1))


def chunked_topk(x: torch.Tensor, concepts: torch.Tensor, k: int, chunk: int = 4096) -> torch.Tensor:
    """What one would write: torch.topk of every chunk of scores, merged with the best so far."""
    parts = []
    for block in x.split(512):
        values = indices = None
        for start in range(0, len(concepts), chunk):
            v, i = (block @ concepts[start : start + chunk].to(x.dtype).T).topk(k, 1)
            if values is not None:
                v, i = torch.cat([values, v], 1), torch.cat([indices, i + start], 1)
                v, order = v.topk(k, 1)
                i = i.gather(1, order)
            values, indices = v, i
        parts.append(indices)
    return torch.cat(parts)


def topk() -> Report:
    """Streaming top-k of a vocabulary, against the matrix product alone."""
    count, d = 400_000, 512
    generator = torch.Generator().manual_seed(0)
    concepts = torch.empty(count, d, dtype=torch.float16)
    for part in concepts.split(20_000):
        part.copy_(normalize(torch.randn(len(part), d, generator=generator), dim=1))
    shared = normalize(torch.randn(d, generator=generator), dim=0)
    report = Report(
        "topk",
        "Top-k of 400,000 phrases of 512 dimensions (float16), streaming",
        ["pictures", "k", "", "GFLOP/s", "share of the product", "CPU s"],
    )
    x = normalize(torch.randn(20_000, d, generator=generator), dim=1)
    began = time.process_time()
    topk_concepts(x, concepts, 10)
    whole = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report.measurements.append(
        {"op": "topk_concepts", "variant": "whole", "shape": {"N": 20_000, "K": count, "D": d}}
        | {"k": 10, "s": whole, "peak_gb": peak, "gflops": 2 * len(x) * count * d / whole / 1e9}
    )
    report.remarks.append(
        f"20,000 pictures x 400,000 phrases, k = 10, once, before anything else: {whole:.0f} s, "
        f"{2 * len(x) * count * d / whole / 1e9:.1f} GFLOP/s, largest memory of the process {peak:.2f} GB."
    )
    for name, n, k in (("random", 2000, 10), ("random", 2000, 50), ("shared mean", 2000, 10), ("ascending", 500, 10)):
        x, bank = normalize(torch.randn(n, d, generator=generator), dim=1), concepts
        if name == "shared mean":  # cosines of texts and pictures have a large part in common
            x = normalize(x + 1.5 * shared, dim=1)
            bank = normalize(concepts.float() + 1.5 * shared, dim=1).half()
        if name == "ascending":  # the worst case: every chunk beats what came before it
            x = normalize(shared + 0.1 * x, dim=1)
            bank = concepts[(concepts.float() @ shared).argsort()]
        times = interleaved(
            {
                "product alone": lambda x=x, bank=bank: plain_product(x, bank),
                "topk of every chunk": lambda x=x, bank=bank, k=k: chunked_topk(x, bank, k),
                "topk_concepts": lambda x=x, bank=bank, k=k: topk_concepts(x, bank, k),
            },
            seconds=20,
        )
        dense = (x[:200] @ bank.float().T).topk(k, 1)
        values, indices = topk_concepts(x[:200], bank, k)
        same = float((indices == dense.indices).double().mean())
        off = float((values - dense.values).abs().max())
        for variant, timing in times.items():
            speed = 2 * n * count * d / timing.median / 1e6
            share = times["product alone"].median / timing.median
            report.add(f"{n}, {name}", k, variant, f"{speed:.1f}", f"{share:.2f}", f"{timing.median / 1e3:.1f}")
            report.measurements.append(
                {"op": "topk_concepts", "variant": variant, "case": name, "shape": {"N": n, "K": count, "D": d, "k": k}}
                | {"gflops": speed, "share_of_product": share, "same_ids": same, "largest_difference": off}
                | timing.fields()
            )
        report.remarks.append(
            f"{name}, k = {k}: ids equal to dense scores and torch.topk in {same:.4%} of 200 rows x {k} (values within "
            f"{off:.0e}: where they differ, two scores are equal to rounding)."
        )
    return report


def text() -> Report:
    """Encoding phrases with the padding cut off, against all 77 tokens of each."""
    import open_clip

    from cbm.encoders.open_clip import ClipEncoder

    phrases = (Path(__file__).parent.parent / "concepts" / "general.txt").read_text(encoding="utf-8").splitlines()[::4]
    torch.manual_seed(0)
    network, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")  # random weights take the same time
    encoder = ClipEncoder("ViT-B-32", network, preprocess, open_clip.SimpleTokenizer())
    report = Report(
        "text", f"Encoding {len(phrases)} phrases with the text tower of ViT-B-32",
        ["", "CPU ms", "phrases/s", "against all tokens"],
    )  # fmt: skip
    features = {}

    def encode(trim: bool | None, name: str) -> None:
        encoder._trim = trim
        features[name] = encoder.encode_text(phrases)

    variants = {"all 77 tokens": False, "padding cut off": True}
    times = interleaved({name: lambda t=trim, n=name: encode(t, n) for name, trim in variants.items()}, seconds=60)
    for name, timing in times.items():
        speed = len(phrases) / timing.median * 1e3
        ratio = times["all 77 tokens"].median / timing.median
        report.add(name, timing, f"{speed:.0f}", f"{ratio:.1f}")
        report.measurements.append(
            {"op": "encode_text", "variant": name, "phrases": len(phrases), "ratio": ratio} | timing.fields()
        )
    whole = features["all 77 tokens"]
    encode(None, "as decided")
    report.remarks.append(
        f"Largest difference of a feature: {(features['padding cut off'] - whole).abs().max():.0e}, of norm "
        f"{float(whole.norm(dim=1).mean()):.1f}. The encoder tries on its first batch "
        f"whether cutting changes anything; here it decides to {'cut' if encoder._trim else 'keep the padding'}."
    )
    return report


def main() -> None:
    benchmarks = {
        each.__name__: each
        for each in (linear, association, nonlinear, moments, interventions, gumbel, selection, topk, text)
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=benchmarks, help="what to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = environment("cpu.py")
    for name in arguments.names:
        benchmarks[name]().write(arguments.out, about)


if __name__ == "__main__":
    main()
