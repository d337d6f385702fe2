"""Clocks that are changed, and files that keep their times while their content changes."""

import os
import time
from pathlib import Path

import lightning
import pytest
from lightning.pytorch.callbacks import Callback
from small_fit import TRAINER, make_data, make_module
from trust.readable_files import picture, tar

from cbm.data.images import ImageFiles
from cbm.data.webdataset import open_tars
from cbm.files import PARTIAL, write_atomically
from cbm.training.fit import fit


def let_the_clock_tick(file: Path) -> None:
    """Wait until a change of ``file`` would get another time: the clock of files ticks every few milliseconds."""
    probe = file.with_name("probe")
    while True:
        probe.write_bytes(b"")
        now = probe.stat().st_ctime_ns
        probe.unlink()
        if now > file.stat().st_ctime_ns:
            return


def test_content_that_changes_behind_an_old_time_is_seen(tmp_path: Path):
    """What a clock set back does, or a copy that keeps times: the same size and modification time, another content."""
    file = tmp_path / "a.png"
    file.write_bytes(picture())
    os.utime(file, (1e9, 1e9))
    before = ImageFiles(tmp_path, ["a.png"]).fingerprints(tmp_path / "c")
    assert ImageFiles(tmp_path, ["a.png"]).fingerprints(tmp_path / "c") == before
    changed = picture()[:-1] + b"\x00"
    for replace in (False, True):  # written into, and replaced by another file
        let_the_clock_tick(file)
        target = tmp_path / "new.png" if replace else file
        target.write_bytes(changed)
        os.utime(target, (1e9, 1e9))
        target.rename(file)
        after = ImageFiles(tmp_path, ["a.png"]).fingerprints(tmp_path / "c")
        assert after != before
        before, changed = after, picture()


def test_a_tar_file_that_changes_behind_an_old_time_is_indexed_again(tmp_path: Path):
    def names(*members: str) -> list[str]:
        (tmp_path / "t.tar").write_bytes(tar({member: picture() for member in members}))
        os.utime(tmp_path / "t.tar", (1e9, 1e9))
        return open_tars(tmp_path, ["t.tar"], tmp_path / "c")[0].names

    assert names("a.png") == ["t.tar/a.png"]
    let_the_clock_tick(tmp_path / "t.tar")
    assert names("b.png") == ["t.tar/b.png"]


def test_a_clock_that_goes_backwards_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Checkpoints are written by a clock that nobody sets; leftovers are known by their locks, not by their age."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e6 * len(list(tmp_path.iterdir())))
    written = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            written.append((tmp_path / "last.ckpt").is_file())

    original = lightning.Trainer.__init__
    monkeypatch.setattr(
        lightning.Trainer, "__init__",
        lambda self, *args, callbacks, **kwargs: original(self, *args, callbacks=[*callbacks, Count()], **kwargs),
    )  # fmt: skip
    fit(
        make_module(), make_data(), batch_size=32, patience=1000, max_epochs=3, trainer=TRAINER,
        checkpoint=tmp_path / "last.ckpt", checkpoint_seconds=0,
    )  # fmt: skip
    assert written == [True, True, True]
    leftover = tmp_path / f"{PARTIAL}future"
    leftover.write_bytes(b"half")
    os.utime(leftover, (4e9, 4e9))
    write_atomically(tmp_path / "file", b"")
    assert not leftover.exists()
