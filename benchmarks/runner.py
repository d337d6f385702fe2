"""What the benchmarks share: timings in turn, tables, and JSON lines that say where and how they were measured.

Imports nothing but torch and numpy, like ``cbm.kernels``, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


@dataclass
class Report:
    """Lines of one benchmark: measurements for the JSON lines, rows and remarks for the table."""

    name: str
    title: str
    header: list[str]
    machine: str = "cpu"
    rows: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    measurements: list[dict] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Append a row to the table and print it."""
        self.rows.append([str(c) for c in cells])
        print(" | ".join(self.rows[-1]), flush=True)

    def write(self, folder: Path, about: dict[str, str]) -> None:
        """Write the JSON lines and the Markdown table."""
        lines = [json.dumps({**m, **about}) for m in self.measurements]
        (folder / f"{self.machine}_{self.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        table = [self.header, ["---"] * len(self.header), *self.rows]
        text = [f"# {self.title}", ""]
        text += [f"{key}: {value}  " for key, value in about.items()]
        text += ["", *("| " + " | ".join(row) + " |" for row in table), "", *(f"- {r}" for r in self.remarks)]
        (folder / f"{self.machine}_{self.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
        print("\n".join(self.remarks))


def environment(script: str) -> dict[str, str]:
    """Date, device, versions, command and commit."""
    name = platform.processor()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line for line in lines if line.startswith("model name")]
        name = models[0].split(":")[1].strip() + f", {torch.get_num_threads()} thread(s)" if models else name
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    if torch.cuda.is_available():
        import triton

        versions += f", triton {triton.__version__}, cuda {torch.version.cuda}"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "versions": versions,
        "command": f"python benchmarks/{script} " + " ".join(sys.argv[1:]),
        "commit": commit.stdout.strip() or "unknown",
    }


@dataclass
class Timing:
    """Milliseconds: median, 20th and 80th percentile."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"

    def equals(self, other: Timing) -> bool:
        """Whether the medians differ by less than either spread from the 20th to the 80th percentile."""
        return abs(self.median - other.median) < max(self.high - self.low, other.high - other.low)

    def fields(self) -> dict[str, float]:
        """The timing as JSON fields."""
        return {"ms_p20": self.low, "ms_p50": self.median, "ms_p80": self.high, "runs": self.runs}


def cpu_milliseconds(step: Callable) -> float:
    """CPU time of the whole process: the machine may be shared."""
    before = time.process_time()
    step()
    return 1e3 * (time.process_time() - before)


def gpu_milliseconds(step: Callable) -> float:
    """Between two CUDA events, after the L2 cache was overwritten."""
    torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def interleaved(
    variants: dict[str, Callable], seconds: float, measure: Callable[[Callable], float] = cpu_milliseconds
) -> dict[str, Timing]:
    """Time the variants in turn, one warm-up round first: 3 to 31 rounds, about ``seconds`` in all."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for run in range(-1, 31):
        if run >= 3 and time.perf_counter() - start > seconds:
            break
        for name, step in variants.items():
            took = measure(step)
            if run >= 0:
                spent[name].append(took)
    return {
        name: Timing(statistics.median(t), *(float(np.percentile(t, p)) for p in (20, 80)), len(t))
        for name, t in spent.items()
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
