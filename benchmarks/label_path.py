"""Sparse heads for many labels: all in one batched solve, against one label after the other.

    OMP_NUM_THREADS=1 python benchmarks/label_path.py [--rows 10000 --concepts 500 --dims 512 --labels 14] [--runs 3]

Planted labels of prevalence .16 to .43 that four concepts decide, 30 % of them unknown; 12 penalties and the solution
with exactly five concepts for every label. "One by one" is the same solver with one label; "two classes" is what would
be done without it: a head of two classes (one logistic loss each) on the rows that are known. Medians of interleaved
runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.solvers import LinearScores, elastic_net_paths, label_paths

SETTINGS = {"n_lambdas": 12, "lambda_ratio": 1 / 2000, "tol": 1e-3, "nec": (5,)}


def problem(n: int, k: int, d: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, D], concepts [K, D] and labels [N, L] of 1, 0 and NaN."""
    g = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d + 1).float() ** -0.4
    x = normalize(torch.randn(n, d, generator=g) * spectrum + torch.randn(d, generator=g) * 0.5, dim=1)
    t = normalize(torch.randn(k, d, generator=g), dim=1)
    z = LinearScores(x, t).block(slice(0, n))
    y = torch.empty(n, count)
    for label in range(count):
        weight = torch.zeros(k)
        weight[torch.randperm(k, generator=g)[:4]] = 1.5 * torch.randn(4, generator=g)
        decided = z @ weight
        noisy = decided + 0.7 * decided.std() * torch.randn(n, generator=g)
        y[:, label] = (noisy > torch.quantile(decided, 0.89 - 0.33 * label / count)).float()
        y[torch.rand(n, generator=g) < 0.3, label] = torch.nan
    return x, t, y


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 10_000), ("concepts", 500), ("dims", 512), ("labels", 14), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    x, t, y = problem(a.rows, a.concepts, a.dims, a.labels)
    scores = LinearScores(x, t)

    def together() -> list:
        return label_paths(scores, y, **SETTINGS)

    def one_by_one() -> list:
        return [label_paths(scores, y[:, [label]], **SETTINGS)[0] for label in range(a.labels)]

    def two_classes() -> list:
        found = []
        for label in range(a.labels):
            known = ~y[:, label].isnan()
            part, target = LinearScores(x[known], t), y[known, label].long()
            found.append(elastic_net_paths(part, target, num_classes=2, link="ova", **SETTINGS)[0])
        return found

    ways = {"together": together, "one by one": one_by_one, "two classes": two_classes}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(a.runs):
        for name, way in ways.items():
            start = time.perf_counter()
            paths = way()
            seconds[name].append(time.perf_counter() - start)
            if name == "together":
                counts = {len(path.at_nec[5].index) for path in paths}
                gap = max(point.gap for path in paths for point in path.points)
    base = statistics.median(seconds["together"])
    print(
        f"{a.labels} labels, {a.rows} x {a.concepts} scores of {a.dims} features, {torch.get_num_threads()} thread(s)"
    )
    print(f"concepts of every label at NEC 5: {sorted(counts)}; largest duality gap {gap:.1e}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:12} {middle:7.2f} s ({min(values):.2f} to {max(values):.2f}) {middle / base:5.2f} x")


if __name__ == "__main__":
    main()
