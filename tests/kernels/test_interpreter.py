"""Runs the tests of the Triton kernels by Triton's interpreter, in a process that defines the kernels for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = [Path(__file__).with_name(name) for name in ("test_triton.py", "test_triton_edges.py")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU itself")
def test_kernels_are_right_by_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, TESTS), "-n0", "-p", "no:cacheprovider", "-W", "ignore"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=TESTS[0].parents[2], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout[-2000:]
    assert int(passed[1]) >= 120
