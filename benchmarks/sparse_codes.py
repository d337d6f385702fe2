"""Sparse codes of pictures over a vocabulary against scikit-learn, celer, skglm and the published ADMM.

    python benchmarks/sparse_codes.py [--out benchmarks/results] [--only photographs]

CPU seconds of the whole process, one thread, for 2,000 pictures. All solve the same problem to a duality gap of 1e-6
per picture; solvers of one picture a call solve the first 60, ADMM the first 200, and their time is scaled up. Gaps
and objectives are evaluated in float64, outside the clock. Writes ``cpu_sparse_codes.jsonl`` and ``.md``.

Pictures are generated; if CBM_CLIP_FEATURES names a folder with ``food10.npz`` (X_train) and ``vocabulary.npz`` (text
features lvis, o365, imagenet, oid), its features are measured too. Needs ``pip install -e .[bench]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from runner import Report, cpu_milliseconds, environment
from sparse_path import clip_like
from torch import Tensor
from torch.nn.functional import normalize

from cbm.solvers import greedy_projection, penalty_for_count, sparse_code

TOL = 1e-6
ALONE, TOGETHER = 60, 200  # pictures for solvers of one picture a call, and for ADMM
ROUNDS = 3
STEPS = ("small", "large", "memory", "wide", "photographs", "signed")
HEADER = ["data", "K", "lambda", "solver", "CPU s for 2,000", "against ours", "largest gap", "objective - ours", "L0"]


@dataclass
class Task:
    """Unit pictures x [2000, D], unit words [K, D] and a penalty."""

    name: str
    x: Tensor
    words: Tensor
    lam: float
    signed: bool = False

    def objective(self, z: Tensor) -> Tensor:
        """The objective [n] of codes [n, K] of the first n pictures."""
        left = self.x[: len(z)].double() - z.double() @ self.words.double()
        return 0.5 * left.square().sum(1) + self.lam * z.double().abs().sum(1)

    def gap(self, z: Tensor) -> Tensor:
        """Duality gap [n]."""
        x = self.x[: len(z)].double()
        e = x - z.double() @ self.words.double()
        pull = e @ self.words.double().T
        highest = (pull.abs() if self.signed else pull).amax(1).clamp(min=1e-30)
        share = torch.minimum((x * e).sum(1) / e.square().sum(1), self.lam / highest)
        return self.objective(z) - 0.5 * x.square().sum(1) + 0.5 * (x - share[:, None] * e).square().sum(1)


def ours(task: Task) -> Tensor:
    sign = "free" if task.signed else "nonnegative"
    return sparse_code(task.x, task.words, lam=task.lam, tol=TOL, sign=sign).dense(len(task.words))


def one_by_one(task: Task, model: object) -> Tensor:
    """Fits of a model of scikit-learn's kind, one picture a call."""
    design = np.asfortranarray(task.words.numpy().T)
    return torch.from_numpy(np.stack([model.fit(design, row).coef_.copy() for row in task.x[:ALONE].numpy()]))


def others(task: Task) -> dict[str, Callable[[], Tensor]]:
    from celer import Lasso as Celer
    from skglm import Lasso as Skglm
    from sklearn.linear_model import Lasso

    settings = {"alpha": task.lam / task.x.shape[1], "fit_intercept": False, "tol": TOL}
    settings |= {"positive": not task.signed}
    models = {"scikit-learn": Lasso(max_iter=100_000, **settings), "skglm": Skglm(**settings)}
    if not task.signed:  # celer takes float32 as well
        models["celer"] = Celer(**settings)
    return {name: lambda model=model: one_by_one(task, model) for name, model in models.items()}


def admm(task: Task, rho: float = 5.0) -> Iterator[Tensor]:
    """SpLiCE's iteration as published, ten at a time: dense [K, n] iterates from random starts, one Cholesky factor."""
    words, x = task.words, task.x[:TOGETHER]
    k, lam = len(words), 2 * task.lam
    factor = torch.linalg.cholesky(2 * words @ words.T + rho * torch.eye(k))
    g = torch.Generator().manual_seed(0)
    z, u = (torch.randn(k, len(x), generator=g) for _ in range(2))
    while True:
        for _ in range(10):
            code = torch.cholesky_solve(2 * words @ x.T + rho * (z - u), factor)
            z = (code + u - lam / rho).clamp(min=0)
            u = u + code - z
        yield z.T


def follow_admm(task: Task, most: int = 500) -> tuple[float, Tensor, int]:
    """CPU seconds until every picture is within the gap (or ``most`` iterations), the codes, and the iterations."""
    spent, steps = 0.0, admm(task)
    for count in range(10, most + 1, 10):
        before = time.process_time()
        z = next(steps)
        spent += time.process_time() - before
        if count % 50 == 0 and float(task.gap(z).max()) <= TOL:
            break
    return spent, z, count


def compare(report: Report, task: Task, with_admm: bool) -> dict[str, float]:
    """Rows of one task; returns how many times more CPU time the others take."""
    scaled = {"ours": 2000 / len(task.x)}
    solvers = {"ours": lambda: ours(task)} | others(task)
    found, times = {}, {name: [] for name in solvers}
    for run in range(-1, ROUNDS):
        for name, solve in solvers.items():
            if run < 0:
                found[name] = solve()
            else:
                times[name].append(cpu_milliseconds(solve) / 1e3 * scaled.get(name, 2000 / min(ALONE, len(task.x))))
    seconds = {name: statistics.median(each) for name, each in times.items()}
    steps = {}
    if with_admm:
        spent, found["ADMM"], steps["ADMM"] = follow_admm(task)
        seconds["ADMM"] = spent * 2000 / TOGETHER
    best = task.objective(found["ours"])
    for name, z in found.items():
        gap, apart = float(task.gap(z).max()), float((task.objective(z) - best[: len(z)]).mean())
        ratio, used = seconds[name] / seconds["ours"], float((z.abs() > 1e-6).sum(1).double().mean())
        label = f"{name}, {steps[name]} iterations" if name in steps else name
        row = (f"{seconds[name]:.3g}", f"{ratio:.1f}x", f"{gap:.1e}", f"{apart:.0e}", f"{used:.1f}")
        report.add(task.name, len(task.words), f"{task.lam:.4g}", label, *row)
        report.measurements.append(
            {"op": "sparse_code", "variant": name, "data": task.name, "k": len(task.words), "d": task.x.shape[1]}
            | {"lam": task.lam, "s_per_2000": seconds[name], "ratio": ratio, "gap": gap, "objective_diff": apart}
            | {"l0": used, "runs": 1 if name in steps else ROUNDS, "signed": task.signed}
        )
    return {name: value / seconds["ours"] for name, value in seconds.items()}


def generated(k: int, count: float) -> Task:
    """Centred unit pictures and words of `clip_like`, and the penalty for so many words on average."""
    x, words, _ = clip_like(2000, k, 10)
    x, words = normalize(x - x.mean(0), dim=1), normalize(words - words.mean(0), dim=1)
    return Task("generated", x, words, penalty_for_count(x, words, count))


def real(folder: Path, count: float) -> Task:
    """Photographs of food and the words of four vocabularies, by CLIP ViT-B/32."""
    x = torch.from_numpy(np.load(folder / "food10.npz")["X_train"])
    texts = np.load(folder / "vocabulary.npz")
    words = normalize(torch.from_numpy(np.concatenate([texts[n] for n in ("lvis", "o365", "imagenet", "oid")])), dim=1)
    x, words = normalize(x, dim=1), words.unique(dim=0)
    x, words = normalize(x - x.mean(0), dim=1), normalize(words - words.mean(0), dim=1)
    return Task("food, ViT-B/32", x, words, penalty_for_count(x, words, count))


PEAK = """
import sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from sparse_path import clip_like
from torch.nn.functional import normalize
from cbm.solvers import sparse_code
torch.set_num_threads(1)
def now(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
x, words, _ = clip_like(50_000, 10_000, 10)
x, words = x.sub_(x.mean(0)), words.sub_(words.mean(0))
x /= x.norm(dim=1, keepdim=True); words /= words.norm(dim=1, keepdim=True)
sparse_code(x[:100], words, lam={lam})
Path("/proc/self/clear_refs").write_text("5")
before = now("VmRSS")
codes = sparse_code(x, words, lam={lam})
out = sum(t.numel() * t.element_size() for t in (codes.values, codes.columns, codes.gap, codes.violation)) / 2**20
print(now("VmHWM") - before, out, float(codes.count.double().mean()), codes.passes)
"""


def peak_memory(report: Report, lam: float) -> None:
    """The largest resident size of another process during one call, less what was there before and the result."""
    code = PEAK.format(here=str(Path(__file__).parent), lam=lam)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, out, count, _ = (float(v) for v in done.stdout.split())
    report.remarks.append(
        f"Peak memory of the process beyond inputs and outputs, 50,000 pictures, 10,000 words, L0 {count:.1f}: "
        f"{peak - out:.0f} MB (the codes themselves: {out:.0f} MB; dense ones would be 2,000 MB). Target 100 MB: "
        f"{'met' if peak - out <= 100 else 'MISSED'}."
    )
    report.measurements.append({"op": "memory", "n": 50_000, "k": 10_000, "peak_mb": peak - out, "codes_mb": out})


def smaller_things(report: Report, task: Task) -> None:
    """One picture, a pursuit and a selection of 200 words, on 10,000 words."""
    from sklearn.linear_model import orthogonal_mp

    one = []
    for row in task.x[:41]:
        before = time.perf_counter()
        sparse_code(row[None], task.words, lam=task.lam)
        one.append(1e3 * (time.perf_counter() - before))
    pursuit = [cpu_milliseconds(lambda: sparse_code(task.x, task.words, k=10)) / 1e3 for _ in range(ROUNDS)]
    design, rows = task.words.numpy().T, task.x[:ALONE].numpy()
    signed = cpu_milliseconds(lambda: [orthogonal_mp(design, row, n_nonzero_coefs=10) for row in rows])
    moment = task.x.T @ task.x / len(task.x)
    selection = cpu_milliseconds(lambda: greedy_projection(moment, task.words, 200)) / 1e3
    other = signed / 1e3 * 2000 / ALONE
    report.remarks += [
        f"One picture, 10,000 words, the wall clock: {statistics.median(one[1:]):.0f} ms (median of 40; target 30).",
        f"Pursuit of 10 of 10,000 words, 2,000 pictures: {statistics.median(pursuit):.2f} CPU s; scikit-learn's "
        f"orthogonal_mp, which is signed: {other:.1f} ({other / statistics.median(pursuit):.1f} times).",
        f"Selection of 200 of 10,000 words (greedy_projection): {selection:.1f} CPU s.",
    ]
    report.measurements += [
        {"op": "one picture", "k": 10_000, "wall_ms": statistics.median(one[1:])},
        {"op": "pursuit", "k": 10_000, "words": 10, "s_per_2000": statistics.median(pursuit), "s_sklearn": other},
        {"op": "greedy_projection", "k": 10_000, "words": 200, "s": selection},
    ]


def verdict(where: str, ratios: dict[str, float], targets: dict[str, float]) -> str:
    cells = [f"{name} {ratios[name]:.1f} times ({'met' if ratios[name] >= t else 'MISSED'}: {t:g})" for name, t in
             targets.items()]  # fmt: skip
    return f"Targets, {where}: " + ", ".join(cells) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--alone", type=int, default=ALONE, help="pictures for solvers of one picture a call")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="some of the steps; the results are of these alone")
    arguments = parser.parse_args()
    globals()["ALONE"] = arguments.alone
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = environment("sparse_codes.py")
    report = Report("sparse_codes", "Sparse codes over a vocabulary: CPU seconds to a duality gap of 1e-6", HEADER)
    report.remarks += remarks()
    for step in arguments.only or STEPS:  # written after each: all of it takes minutes
        globals()[step](report)
        report.write(arguments.out, about)


def small(report: Report) -> None:
    targets = {"scikit-learn": 8, "celer": 6, "skglm": 6, "ADMM": 80}
    report.remarks.append(verdict("K 2,000, L0 12", compare(report, generated(2_000, 12), with_admm=True), targets))


def wide(report: Report) -> None:
    ratios = compare(report, generated(2_000, 27), with_admm=False)
    report.remarks.append(verdict("K 2,000, L0 27", ratios, {"scikit-learn": 4}))


def large(report: Report) -> None:
    task = generated(10_000, 20)
    smaller_things(report, task)
    targets = {"scikit-learn": 20, "celer": 15, "skglm": 15}
    report.remarks.append(verdict("K 10,000, L0 20", compare(report, task, with_admm=False), targets))


def memory(report: Report) -> None:
    peak_memory(report, lam=0.25)


def photographs(report: Report) -> None:
    if folder := os.environ.get("CBM_CLIP_FEATURES"):
        for count in (12, 27):
            compare(report, real(Path(folder), count), with_admm=False)


def signed(report: Report) -> None:
    x, words, _ = clip_like(8, 2048, 10)
    compare(report, Task("generated, signed, not centred", x, words, 1e-5 * 512, signed=True), with_admm=False)


def remarks() -> list[str]:
    return [
        f"2,000 pictures of 512 dimensions; medians of {ROUNDS} rounds, the solvers in turn, ADMM once. scikit-learn, "
        f"celer and skglm solve the first {ALONE} pictures one by one, ADMM the first {TOGETHER} together: scaled.",
        "ADMM: SpLiCE's iteration (rho 5, random start, C x anew in every iteration), stopped at the first multiple of "
        "50 iterations at which every gap is within 1e-6, or after 500, where its ratio is a lower bound; its "
        "objective is of the projected iterate.",
        "The signed rows are Z-CBM's penalty (alpha 1e-5) on 2,048 words, 8 pictures scaled: a near copy, not a "
        "sparse code. skglm stops by the violation of the optimality conditions, not by the gap.",
    ]


if __name__ == "__main__":
    main()
