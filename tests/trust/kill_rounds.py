"""``python tests/trust/kill_rounds.py ROUNDS SEED``: a run is killed at random moments and started again until it ends.

The libraries are imported once; every run is a fork of this process, killed with SIGKILL. After each kill every file
under its own name must be whole; when the run has ended, everything must be there exactly once, as after a run that
nobody disturbed.
"""

import csv
import json
import os
import random
import runpy
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch  # noqa: F401
import open_clip  # noqa: F401
import pyarrow.parquet
from conftest import COLOURS, PROJECT, paint

import cbm.report
import cbm.run  # noqa: F401
from cbm.data import store
from cbm.data.shards import find_shards, read_shard
from cbm.files.run_directory import verify_run
from cbm.files.tensors import read_tensors
from cbm.training.fit import is_sound

store.SHARD_ROWS = 8
SETTINGS = [
    "dataset=folder", "dataset.root=../pictures", "concepts=../bank.json", "run_dir=run", "nec=[5]", "controls=false",
    "encoder.num_workers=0", "encoder.batch_size=3", "method.max_epochs=40", "method.patience=1000",
    "trainer.checkpoint_seconds=0", "trainer.progress=false",
]  # fmt: skip


def start(folder: Path) -> int:
    """Start the run in ``folder``; returns its process id."""
    folder.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    if pid := os.fork():
        return pid
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tempfile.tempdir = str(folder / "tmp")
    sys.argv = ["train.py", *SETTINGS]
    status = 1
    try:
        runpy.run_path(str(PROJECT / "train.py"), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        os._exit(status)


def finish(folder: Path) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(folder), 0)
    assert status == 0, (folder / "log").read_text()[-3000:]
    return time.monotonic() - began


def has_ended(folder: Path) -> bool:
    """Whether the run was killed after its very last step that counts."""
    state = folder / "run" / "state.json"
    return state.is_file() and json.loads(state.read_text())["finished"]


def check_whole(folder: Path) -> None:
    """No file under its own name is half written."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            if path.is_relative_to(folder / "cache"):
                assert read_shard(path) is not None, path
            else:
                read_tensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".ckpt":
            assert is_sound(path), path
        elif path.suffix == ".parquet":
            pyarrow.parquet.read_table(path)
        elif path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as database:
                assert database.execute("pragma integrity_check").fetchall() == [("ok",)]


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves behind but the times."""
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    (splits,) = (folder / "cache" / "splits").iterdir()
    features = folder / "cache" / "features"
    for encoder in features.iterdir():
        pictures: list[tuple[int, int]] = []
        for file in encoder.glob("0*.safetensors"):
            shard = read_shard(file)
            assert shard is not None
            pictures += map(tuple, shard[0]["fingerprints"].tolist())
        assert len(pictures) == len(set(pictures)) == 20 * len(COLOURS)
    texts: list[str] = []
    for file in find_shards(next((folder / "cache" / "text").iterdir())).values():
        shard = read_shard(file)
        assert shard is not None
        texts += shard[1]["texts"]
    assert len(texts) == len(set(texts))
    with (folder / "run" / "log.csv").open() as log:
        history = list(csv.reader(log))
    verify_run(folder / "run")
    return {
        "metrics": {key: value for key, value in metrics.items() if not key.startswith(("time/", "memory/"))},
        "history": history, "texts": sorted(texts), "splits": json.loads(splits.read_text()),
        "model": (folder / "run" / "model.safetensors").read_bytes(),
        "run": sorted(str(path.relative_to(folder)) for path in (folder / "run").rglob("*")
                      if not {"checkpoints", "figures", "report.html"} & set(path.parts)),
        "features": sorted(str(path.relative_to(features)) for path in features.rglob("*")),
        "left in the temporary folder": sorted(path.name for path in (folder / "tmp").iterdir()),
    }  # fmt: skip


def kill_rounds(root: Path, rounds: int, seed: int) -> None:
    """Raise an ``AssertionError`` at the first thing that is lost, half there, or there twice."""
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(20):
            paint(root / "pictures" / name / f"{i:02d}.png", colour, seed=100 * c + i)
    phrases = {name: [f"{name[:-1]} {word}" for word in ("warm", "cold", "plain")] for name in COLOURS}
    (root / "bank.json").write_text(json.dumps(phrases))
    duration = finish(root / "whole")
    expected = outcome(root / "whole")
    generator = random.Random(seed)
    for number in range(1, rounds + 1):
        folder, moments = root / f"round-{number}", []
        for _ in range(generator.randint(1, 2)):
            moments.append(generator.uniform(0, duration))
            pid = start(folder)
            time.sleep(moments[-1])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            check_whole(folder)
        if not has_ended(folder):
            finish(folder)
            assert (folder / "run" / "report.html").is_file()  # of a finished run, `cbm report` writes it again
        found = outcome(folder)
        for key, value in expected.items():
            assert found[key] == value, (number, key, value, found[key])
        leftovers = [path for part in ("run", "cache") for path in (folder / part).rglob(".partial.*")]
        resumed = "going on from" in (folder / "log").read_text()
        killed = " and ".join(f"{moment:.2f}" for moment in moments)
        assert not leftovers, leftovers
        when = f"killed after {killed} of {duration:.2f} s"
        print(f"round {number}: {when}, {'resumed, ' * resumed}nothing lost", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        kill_rounds(Path(scratch), int(sys.argv[1]), int(sys.argv[2]))
