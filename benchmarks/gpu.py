"""The kernels on a GPU: checks, then timings, the most important first, within a budget of time.

    python benchmarks/gpu.py [checks nonlinear topk scores ...] [--seconds 330] [--out DIR]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse      # tiny shapes on a CPU: does everything run, and agree?

Needs torch, triton and numpy (rows of ``encoding`` also open_clip and torchvision). Every measurement is written to
``gpu.jsonl`` as it is made, whatever comes after it; ``gpu.md`` is written at the end: two files. A row has the median
of 5 to 30 runs with the L2 cache overwritten before each, the share of the ceiling that the least FLOP and bytes of the
best algorithm allow, peak memory beside the inputs, and the error against float64. Baselines are eager PyTorch and
torch.compile for exactly this shape; ``--autotune`` lets it try its tiles. The baseline is measured again at the end of
every shape, so that a drift of the clocks is seen.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels.bench import Bench, last_line, said_by

ORDER = ["checks", "nonlinear", "topk", "scores", "moments", "association", "sampled", "linear", "interventions",
         "training", "encoding"]  # fmt: skip
"""By importance; modules of ``benchmarks/kernels``."""


def ratio(
    op: str, shape: str, ours: str, theirs: str, *, their_shape: str | None = None, factor: float = 1.0
) -> Callable[[Bench], float | None]:
    """How many times faster ours is than ``factor`` runs of theirs, on the same shape unless theirs is named."""

    def of(bench: Bench) -> float | None:
        a, b = bench.find(op, shape, ours), bench.find(op, their_shape or shape, theirs)
        return None if a is None or b is None else factor * b.ms / a.ms

    return of


def memory(op: str, shape: str, ours: str, theirs: str) -> Callable[[Bench], float | None]:
    """How many times less memory ours takes."""

    def of(bench: Bench) -> float | None:
        a, b = bench.find(op, shape, ours), bench.find(op, shape, theirs)
        return None if a is None or b is None else b.megabytes / max(a.megabytes, 1e-9)

    return of


def slowest(bench: Bench) -> float | None:
    """The operation that loses most: the better of its baselines over the best of ours that "auto" would take."""
    found = []
    for op, shape in dict.fromkeys((row.op, row.shape) for row in bench.rows):
        rows = [row for row in bench.rows if (row.op, row.shape) == (op, shape)]
        theirs = [row.ms for row in rows if row.variant.split(",")[0].split()[0] in ("eager", "compile")]
        ours = [row.ms for row in rows if row.variant in ("ours", "ours, 1 GB", "ours, as auto takes it")]
        if theirs and ours:
            found.append((min(theirs) / min(ours), f"{op} {shape}"))
    if found:
        print("slowest against the better baseline:", min(found), flush=True)
    return min(found)[0] if found else None


BIG, WIDE, LABO = "N=65536 K=5000 D=512 C=100", "N=65536 K=100000", "N=2048 K=50000"
NONLINEAR, SCORES = "nonlinear loss + gradient", "phi=sigmoid N=65536 K=5000 D=512 dtype=bfloat16"
GOALS: list[tuple[str, float, Callable[[Bench], float | None]]] = [
    ("nonlinear step, 1 GB, against compile", 1.3, ratio(NONLINEAR, BIG, "ours, 1 GB", "compile")),
    ("nonlinear step, 1 GB, against eager", 2.5, ratio(NONLINEAR, BIG, "ours, 1 GB", "eager")),
    ("nonlinear step, 64 MB, memory against eager", 20.0, memory(NONLINEAR, BIG, "ours, 64 MB", "eager")),
    ("nonlinear step, 64 MB, against eager", 1.0, ratio(NONLINEAR, BIG, "ours, 64 MB", "eager")),
    ("top-k of 100,000 against eager", 2.0, ratio("top-k", WIDE, "ours", "eager, chunked")),
    ("scores with sigmoid against eager", 2.0, ratio("concept scores", SCORES, "ours", "eager")),
    ("scores, share of the library's product rate", 0.6,
     ratio("concept scores", SCORES, "ours", "the library's product alone",
           their_shape=SCORES.replace("sigmoid", "none"))),
    ("moments of 1.28M rows against eager", 10.0, ratio("score moments", "N=1280000", "ours", "eager")),
    ("LaBo step against N x K by autograd", 5.0, ratio("LaBo step with Adam", LABO, "ours", "eager, N x K")),
    ("LaBo step against re-associated", 1.0, ratio("LaBo step with Adam", LABO, "ours", "eager, re-associated")),
    ("interventions against the whole head", 20.0,
     ratio("interventions", "form=curve N=50000", "ours", "one answer by the whole head", their_shape="N=50000",
           factor=50)),
    ("every operation against the better of eager and compile", 1.0, slowest),
    ("interventions against low rank in torch", 1.5,
     ratio("interventions", "form=curve N=50000", "ours", "eager, low rank")),
]  # fmt: skip


def about() -> dict[str, str]:
    """Date, device, driver, clocks, versions, command and commit: what is not known is called so."""
    import triton

    folder = Path(__file__).resolve().parents[1]
    commit = said_by("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "state": state(),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"cuda {torch.version.cuda}",
        "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        "commit": os.environ.get("COMMIT") or (commit if commit.isalnum() and len(commit) < 20 else "unknown"),
    }


def state() -> str:
    """Driver, clocks, temperature and power as nvidia-smi says them."""
    what = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    said = said_by("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader")
    return said if "," in said else "unknown"


def measure(bench: Bench, name: str, rehearse: bool) -> None:
    """All shapes of one module; an error ends its shape, not the run."""
    print(f"--- {name} at {bench.spent():.0f} s", flush=True)
    module = importlib.import_module(f"kernels.{name}")
    if name == "checks":
        module.run(bench)
        return
    for shape in module.TINY if rehearse else module.SHAPES:
        if bench.left() < 8:
            bench.skipped.append(f"{name} {shape}")
            continue
        try:
            module.measure(bench, *shape)
        except Exception as error:  # out of memory while inputs are made, a missing package: the next shape runs
            reason = f"{type(error).__name__}: {last_line(error)}"
            print(f"FAILED {name} {shape}: {reason}", flush=True)
            bench.write({"op": name, "shape": str(shape), "failed": reason, "text": traceback.format_exc()[-3000:]})
            bench.skipped.append(f"{name} {shape}: {reason}")
        if bench.gpu:
            torch.cuda.empty_cache()


def table(bench: Bench, header: dict[str, str], ended: str) -> str:
    """Everything as one page of Markdown."""
    lines = [
        "# Kernels on a GPU",
        "",
        *(f"{name}: {value}  " for name, value in header.items()),
        f"state at the end: {ended}  ",
    ]
    lines += [
        f"seconds: {bench.spent():.0f} of {bench.seconds:.0f}  ",
        "ceilings: " + ", ".join(
            f"{name} {rate / 1e9:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
            for name, rate in bench.ceilings.items()
        ), "", "## Goals", "", "| goal | at least | measured | |", "|---|---|---|---|",
    ]  # fmt: skip
    for goal, least, of in GOALS:
        found = of(bench)
        verdict = "not measured" if found is None else "met" if found >= least else "missed"
        lines.append(f"| {goal} | {least:g} | {'' if found is None else f'{found:.2f}'} | {verdict} |")
    lines += ["", "## Rows", "", "| op | shape | variant | ms | first / this | of the ceiling | MB | error |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    base: dict[tuple[str, str], float] = {}
    for row in bench.rows:
        first = base.setdefault((row.op, row.shape), row.ms)
        error = "" if row.error is None else f"{row.error:.0e}"
        lines.append(
            f"| {row.op} | {row.shape} | {row.variant} | {row.ms:.3f} | {first / row.ms:.2f} | {row.share:.0%} | "
            f"{row.megabytes:.0f} | {error} |"
        )
    if bench.skipped:
        lines += ["", "## Not measured", "", *(f"- {each}" for each in bench.skipped)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], help=f"what to measure: {', '.join(ORDER)}; all by default")
    parser.add_argument("--seconds", type=float, default=330.0, help="of the whole run: what is left over is skipped")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the two files")
    parser.add_argument("--autotune", action="store_true", help="torch.compile with max-autotune")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes anywhere; keeps nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in ORDER]:
        parser.error(f"unknown benchmark '{unknown[0]}': choose from {', '.join(ORDER)}")
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device: nothing is measured (--rehearse tries everything anywhere)")
    if arguments.rehearse and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("no CUDA device: rehearse with TRITON_INTERPRET=1 in the environment")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.out / "gpu.jsonl", arguments.seconds, arguments.autotune)
    if arguments.rehearse:
        bench.file = Path(os.devnull)
    elif bench.file.exists():
        bench.file.unlink()
    torch.manual_seed(0)
    header = about()
    print(header, flush=True)
    bench.write(header)
    names = arguments.names or ORDER
    if names != ["checks"]:
        bench.measure_ceilings()
    for name in names:
        measure(bench, name, arguments.rehearse)
    ended = state()
    bench.write({"state": ended, "seconds": bench.spent()})
    page = table(bench, header, ended)
    if arguments.rehearse:
        print(page)
        wrong = [row for row in bench.rows if row.error is not None and not row.error < 2e-2]
        sys.exit(f"wrong: {wrong}" if wrong or bench.skipped else 0)
    (arguments.out / "gpu.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
