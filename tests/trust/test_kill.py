"""kill -9 at random moments while pictures are encoded, a model is trained, and whatever else writes is at work."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT

from cbm.files import PARTIAL, write_atomically

ROUNDS, EACH = os.environ.get("CBM_KILL_ROUNDS", "2"), os.environ.get("CBM_KILL_ROUNDS", "1")
"""``CBM_KILL_ROUNDS=20 pytest tests/trust/test_kill.py`` is the long form."""


def killed(script: str, rounds: str) -> str:
    """What a script of this folder says about so many rounds."""
    result = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "trust" / script), rounds, os.environ.get("CBM_KILL_SEED", "0")],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_nothing_is_lost_or_there_twice():
    assert killed("kill_rounds.py", ROUNDS).count("nothing lost") == int(ROUNDS)


def test_whatever_writes_can_be_killed():
    """Models, tables, answers, names, banks, edits, reports, removals, runs of found concepts."""
    said = killed("kill_commands.py", EACH)
    assert said.count("nothing lost") == int(EACH) * len({line.partition(",")[0] for line in said.splitlines()})
    assert said.count("nothing lost") >= 10 * int(EACH)


WRITE = """
import sys, time
from pathlib import Path
from cbm.files import write_in_parts

def parts():
    yield b"half"
    print("half", flush=True)
    sys.stdin.readline()
    yield b"whole"

write_in_parts(Path(sys.argv[1]), parts(), lambda: "file")
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path):
    def begin() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        return process

    killed, living = begin(), begin()
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.glob(f"{PARTIAL}*"))) == 2
    write_atomically(tmp_path / "other", b"")
    assert len(list(tmp_path.glob(f"{PARTIAL}*"))) == 1
    living.communicate("\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"halfwhole", "other": b""}
