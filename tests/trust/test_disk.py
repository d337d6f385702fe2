"""The disk is full at every write of a run, one after the other, and the run goes on each time there is space again."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from conftest import one_line

from cbm.files import PARTIAL
from cbm.files.atomic import PARTIAL_FOLDER

SETTINGS = [
    "dataset=folder", "method.max_epochs=2", "nec=[]", "controls=false", "trainer.progress=false",
    "trainer.checkpoint_seconds=0", "encoder.num_workers=0", "report=false",
]  # fmt: skip


def numbers(run: str) -> dict[str, float]:
    values = json.loads((Path(run) / "metrics.json").read_text())
    return {key: value for key, value in values.items() if not key.startswith(("time/", "memory/"))}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the folder of a file in /proc")
def test_a_disk_that_is_full_at_every_write(command, colour_folder: Path, monkeypatch: pytest.MonkeyPatch):
    phrases = {"red": ["warm surface", "brick"], "green": ["grass", "leaves"], "blue": ["sea water", "clear sky"]}
    (colour_folder.parent / "bank.json").write_text(json.dumps(phrases))
    settings = [*SETTINGS, f"dataset.root={colour_folder}", f"concepts={colour_folder.parent / 'bank.json'}"]
    status, errors = command("train", *settings, "cache=other", "run_dir=sound")
    assert status == 0, errors

    fsync = os.fsync
    tried: set[tuple[str, int]] = set()  # folder, and which write to it in a run
    counts: dict[str, int] = {}

    def fill_up(descriptor: int) -> None:
        folder = str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent)  # noqa: PTH115
        folder = re.sub(rf"{re.escape(PARTIAL_FOLDER)}\w+", PARTIAL_FOLDER, folder)  # the same in every run
        counts[folder] = counts.get(folder, 0) + 1
        if (folder, counts[folder]) not in tried:
            tried.add((folder, counts[folder]))
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    failed: list[str] = []
    while True:
        counts.clear()
        status, errors = command("train", *settings, "cache=small", "run_dir=full")
        assert not list(Path().rglob(f"{PARTIAL}*"))
        if status == 0:
            break
        line = one_line((status, errors))
        assert "no space left for" in line
        failed.append(line.partition("'")[2].partition("'")[0])
    assert numbers("full") == numbers("sound")
    for part in (
        "cache/splits", "cache/features", "cache/text", "config.yaml", "state.json", "last.ckpt", "log.csv",
        "model.safetensors", "source_card.safetensors", "bank.json", "about.json", "metrics.json",
        "predictions.parquet",
    ):  # fmt: skip
        assert any(part.replace("cache", "small") in path for path in failed), (part, failed)
