"""The k largest scores of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from kernels.bench import Bench
from torch import Tensor

from cbm.kernels import topk_concepts
from cbm.kernels.backend import LAUNCH

OP = "top-k"
SHAPES = [(65_536, 100_000, 768, 16), (65_536, 5000, 512, 16), (512, 100_000, 768, 64)]
TINY = [(64, 304, 16, 6)]
TILES = [(128, 64, 64, 8, 4), (64, 128, 64, 4, 4)]


def measure(bench: Bench, n: int, k: int, d: int, top: int) -> None:
    """Chunks of scores and torch.topk; compiled; ours; ours in float32; other tiles."""
    x, t = bench.unit(n, d), bench.unit(k, d)
    some = slice(0, 256)

    def chunked() -> Tensor:
        return torch.cat([(part @ t.T).topk(top, dim=1).values for part in x.split(max(1, 2**29 // k))]).float()

    def ours() -> Tensor:
        return topk_concepts(x, t, top, backend="auto" if bench.gpu else "triton")[0]

    variants = {
        "eager, chunked": lambda: chunked,
        "ours": lambda: ours,
        "compile, chunked": lambda: bench.compiled(chunked),
    }
    if k <= 10_000:
        wide_x, wide_t = x.float(), t.float()
        backend = "auto" if bench.gpu else "triton"
        variants["float32, eager"] = lambda: lambda: (wide_x @ wide_t.T).topk(top, dim=1).values
        variants["float32, ours"] = lambda: lambda: topk_concepts(wide_x, wide_t, top, backend=backend)[0]
    if bench.gpu:
        for sizes in TILES:
            variants[f"ours, tile {sizes}"] = lambda sizes=sizes: with_tile("topk, described", sizes, ours)
    truth = (x[some].double() @ t.double().T).topk(top, dim=1).values
    bench.compare(
        OP, {"N": n, "K": k, "D": d, "k": top}, variants, flop=2 * n * k * d,
        moved=2 * (n * d + k * d) + 12 * n * top, truth=truth, pick=lambda values: values[some],
    )  # fmt: skip


def with_tile(entry: str, sizes: tuple[int, ...], step):
    """The step under another entry of LAUNCH."""

    def run():
        with tile(entry, sizes):
            return step()

    return run


@contextmanager
def tile(entry: str, sizes: tuple[int, ...]) -> Iterator[None]:
    """Another entry of LAUNCH, within it."""
    names = ("rows", "concepts", "dims", "warps", "stages")
    before = LAUNCH[entry]
    LAUNCH[entry] = replace(before, **dict(zip(names, sizes)))
    try:
        yield
    finally:
        LAUNCH[entry] = before
