"""The measuring run, some of it rehearsed; all of it by ``TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse``."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

pytest.importorskip("triton", reason="triton is not installed")


def gpu(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_part_of_a_rehearsal():
    run = gpu("moments", "linear", "--rehearse", TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "| score moments | N=64 K=50 D=16 dtype=bfloat16 | ours |" in run.stdout
    assert "| nonlinear step, 1 GB, against compile | 1.3 |  | not measured |" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
    run = gpu()
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith(
        "no CUDA device: nothing is measured (--rehearse tries everything anywhere)"
    )
    run = gpu("nonsense")
    assert "unknown benchmark 'nonsense': choose from checks, nonlinear" in run.stderr


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    module = importlib.import_module("kernels.bench")
    made = module.Bench(tmp_path / "gpu.jsonl", seconds=1000.0)
    made.ceilings = {"bf16": 1e9, "copy": 1e9}
    return made


def test_every_row_is_written_as_it_is_made_and_no_error_ends_the_run(bench):
    def broken():
        raise RuntimeError("a compiler fell over\nline two")

    x = torch.randn(4, 4)
    steps = {
        "eager": lambda: lambda: x @ x,
        "broken": lambda: broken,
        "never made": broken,
        "ours": lambda: lambda: x @ x + 1,
    }
    bench.compare("product", {"N": 4, "C": 100}, steps, flop=128, moved=64, truth=(x @ x).double())
    lines = [json.loads(line) for line in bench.file.read_text().splitlines()]
    assert [line["variant"] for line in lines] == ["eager", "broken", "never made", "ours", "eager, again"]
    assert lines[0]["rel_err"] < 1e-6 < lines[3]["rel_err"]
    assert lines[1]["failed"] == lines[2]["failed"] == "RuntimeError: line two"
    assert bench.find("product", "N=4 C=100", "ours") is not None
    assert bench.find("product", "N=4 C=10", "ours") is None  # no prefix of a number
    bench.seconds = 0
    bench.compare("product", {"N": 5}, steps, flop=128, moved=64)
    assert len(bench.skipped) == 2 + 5
