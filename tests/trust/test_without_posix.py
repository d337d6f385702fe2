"""What is only on POSIX systems is hidden from cbm, which then locks, writes and reads as it would on Windows."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT


def test_locks_files_and_every_module(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("without_posix.py")), str(tmp_path)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all of it works" in result.stdout
