"""Rows of a measuring run: each is timed, checked and written before the next begins, and no error ends the run.

Imports nothing but torch, like ``cbm.kernels``, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

Step = Callable[[], Any]
_LONG = 1.0
"""Seconds of a step that is timed once: whole trainings."""


@dataclass
class Row:
    """One measurement: what, on which shape, by whom, and how long."""

    op: str
    shape: str
    variant: str
    ms: float
    megabytes: float
    share: float
    error: float | None


@dataclass
class Bench:
    """Where to measure, for how long, and what was found.

    Attributes:
        file: JSON lines, one for everything that is found, as soon as it is.
        seconds: of the whole run; a row that would begin too late is skipped, and says so.
        autotune: whether torch.compile tries every tile itself (10 to 20 s a product).
        ceilings: FLOP or bytes per millisecond of this device: "bf16", "fp32", "tf32" and "copy".
    """

    file: Path
    seconds: float
    autotune: bool = False
    ceilings: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    half = torch.bfloat16

    def spent(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - self.spent()

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "at_s": round(self.spent(), 1)}) + "\n")

    def unit(self, n: int, d: int, dtype: torch.dtype | None = None) -> Tensor:
        """Unit rows."""
        return normalize(torch.randn(n, d, device=self.device), dim=1).to(dtype or self.half)

    def compiled(self, function: Callable) -> Callable:
        """The function compiled for exactly the shapes it is called with, forgetting what was compiled before."""
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs" if self.autotune else None
        return torch.compile(function, dynamic=False, mode=mode) if self.gpu else function

    def compare(
        self, op: str, shape: dict[str, Any], variants: dict[str, Callable[[], Step]], *, flop: float, moved: float,
        truth: Tensor | None = None, pick: Callable[[Any], Tensor] = lambda result: result, ceiling: str = "bf16",
    ) -> None:  # fmt: skip
        """Measure the variants, of which the first is the baseline, measured once more at the end.

        Args:
            op: what is computed.
            shape: its sizes.
            variants: name to a function that makes the step: making it (compiling, capturing) may fail as well.
            flop: least number of the best algorithm.
            moved: bytes that it must read and write.
            truth: what ``pick`` of a step's result has to equal, float64.
            pick: the part of the result that is compared; nothing is, without a truth.
            ceiling: which of the device's ceilings the products are held against.
        """
        label = " ".join(f"{k}={v}" for k, v in shape.items())
        first = next(iter(variants))
        for name, make in [*variants.items(), (f"{first}, again", variants[first])]:
            self._row(op, label, name, make, flop, moved, truth, pick, ceiling)

    def _row(self, op, shape, name, make, flop, moved, truth, pick, ceiling) -> None:
        if self.left() < 8:
            self.skipped.append(f"{op} {shape} {name}")
            print(f"SKIPPED {op} | {shape} | {name}: {self.left():.0f} s left", flush=True)
            return
        try:
            start = time.perf_counter()
            step = make()
            result = step()
            self.wait()
            first = time.perf_counter() - start  # compilation included
            error = None if truth is None else relative(pick(result), truth)
            del result
            megabytes = self._peak(step)
            middle, low, high, runs = self._times(step)
        except Exception as problem:  # whatever a compiler or a driver may raise: the next row runs
            reason = f"{type(problem).__name__}: {last_line(problem)}"
            print(f"FAILED {op} | {shape} | {name}: {reason}", flush=True)
            self.write({"op": op, "shape": shape, "variant": name, "failed": reason, "text": str(problem)[-1500:]})
            self.skipped.append(f"{op} {shape} {name}: {reason}")
            if self.gpu:
                torch.cuda.empty_cache()
            return
        share = max(flop / self.ceilings[ceiling], moved / self.ceilings["copy"]) / middle
        self.rows.append(Row(op, shape, name, middle, megabytes, share, error))
        base = self.find(op, shape, next(row.variant for row in self.rows if (row.op, row.shape) == (op, shape)))
        ratio = "" if base is None else f"{base.ms / middle:.2f}x"
        print(
            f"{op} | {shape} | {name} | {middle:.3f} ms ({low:.3f}-{high:.3f}) | {ratio} | {share:.0%} | "
            f"{megabytes:.0f} MB | {'-' if error is None else f'{error:.0e}'} | first {first:.1f} s", flush=True,
        )  # fmt: skip
        self.write({
            "op": op, "shape": shape, "variant": name, "ms_p50": middle, "ms_p20": low, "ms_p80": high, "runs": runs,
            "flop": flop, "bytes": moved, "ceiling": ceiling, "share_of_ceiling": share, "peak_mb": megabytes,
            "rel_err": error, "first_s": first,
        })  # fmt: skip

    def find(self, op: str, shape: str, variant: str) -> Row | None:
        """The row of a variant whose shape begins like this; None if it was not measured."""
        known = shape.split()
        fitting = (
            r for r in self.rows if (r.op, r.variant) == (op, variant) and r.shape.split()[: len(known)] == known
        )
        return next(fitting, None)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.gpu:
            torch.cuda.synchronize()

    def _peak(self, step: Step) -> float:
        """Megabytes beside what lay there before, of a step that has run before."""
        if not self.gpu:
            return 0.0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = step()
        self.wait()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _times(self, step: Step, budget: float = 0.4) -> tuple[float, float, float, int]:
        """Median, 20th and 80th percentile in ms of 5 to 30 runs (one if they are long), L2 overwritten before each.

        Host time counts where the device waits for it, as in a training loop that reads its loss.
        """
        start = time.perf_counter()
        step()
        self.wait()
        once = time.perf_counter() - start
        if once > _LONG:
            return 1e3 * once, 1e3 * once, 1e3 * once, 1
        runs = int(min(30, max(5, budget / max(once, 1e-6)))) if self.gpu else 2
        times = []
        flush = torch.empty(2**28 if self.gpu else 1, dtype=torch.int8, device=self.device)
        for _ in range(runs):
            flush.zero_()
            if self.gpu:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                step()
                end.record()
                self.wait()
                times.append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                step()
                times.append(1e3 * (time.perf_counter() - start))
        times.sort()
        return statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5], runs

    def measure_ceilings(self) -> None:
        """Products of 8192^3 in three precisions, and a copy of 1 GB."""
        size = 8192 if self.gpu else 32
        a, b = torch.randn(2, size, size, device=self.device).to(self.half)
        wide, other = a.float(), b.float()
        source = torch.randn(2**28 if self.gpu else 2**10, device=self.device)
        target = torch.empty_like(source)
        for _ in range(20):
            a @ b  # the clocks rise
        self.ceilings["bf16"] = 2 * size**3 / self._times(lambda: a @ b)[0]
        self.ceilings["fp32"] = 2 * size**3 / self._times(lambda: wide @ other)[0]
        torch.set_float32_matmul_precision("high")
        self.ceilings["tf32"] = 2 * size**3 / self._times(lambda: wide @ other)[0]
        torch.set_float32_matmul_precision("highest")
        self.ceilings["copy"] = 8 * source.numel() / self._times(lambda: target.copy_(source))[0]
        print("TFLOP/s and TB/s:", {name: round(rate / 1e9, 2) for name, rate in self.ceilings.items()}, flush=True)
        self.write({"ceilings_per_ms": self.ceilings})


def relative(found: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    found, truth = found.detach().double(), truth.detach().double().to(found.device)
    return float((found - truth).norm() / truth.norm().clamp(min=1e-300))


def last_line(error: BaseException) -> str:
    """What an error says in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip(" ^")]
    return lines[-1][:160] if lines else ""


def said_by(*command: str) -> str:
    """What a program prints, or why it does not."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
