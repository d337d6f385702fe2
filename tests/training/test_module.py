import math
import random
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_fit import TRAINER, make_data, make_module

from cbm.errors import UserError
from cbm.training.batches import Batches
from cbm.training.fit import fit, is_sound


def test_the_best_weights_are_kept_not_the_last():
    module, data = make_module(lr=1.0), make_data()
    fit(module, data, batch_size=32, patience=5, max_epochs=50, trainer=TRAINER)
    loss = torch.nn.functional.cross_entropy(module(data.val.x), data.val.y)
    losses = [row["val/loss"] for row in module.history]
    assert float(loss) == pytest.approx(min(losses), abs=1e-5)
    assert losses[-1] > min(losses)


def test_patience_ends_training():
    module = make_module(lr=1.0)
    fit(module, make_data(), batch_size=32, patience=3, max_epochs=10_000, trainer=TRAINER)
    best = min(range(len(module.history)), key=lambda i: module.history[i]["val/loss"])
    assert len(module.history) <= best + 1 + 3 + 3


class StopAt(Callback):
    """Dies like a killed process: no clean-up of ours runs."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.global_step == self.step:
            raise SystemError("killed")


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = make_module()
    fit(whole, make_data(), batch_size=32, patience=1000, max_epochs=12, trainer=TRAINER)

    original = lightning.Trainer.__init__

    def with_a_kill(self, *args, callbacks, **kwargs):
        original(self, *args, callbacks=[*callbacks, StopAt(57)], **kwargs)

    path = tmp_path / "checkpoints" / "last.ckpt"
    monkeypatch.setattr(lightning.Trainer, "__init__", with_a_kill)
    with pytest.raises(SystemError):
        fit(
            make_module(),
            make_data(),
            batch_size=32,
            patience=1000,
            max_epochs=12,
            trainer=TRAINER,
            checkpoint=path,
            checkpoint_seconds=0,
        )
    monkeypatch.setattr(lightning.Trainer, "__init__", original)
    assert path.is_file()

    resumed = make_module()
    fit(
        resumed,
        make_data(),
        batch_size=32,
        patience=1000,
        max_epochs=12,
        trainer=TRAINER,
        checkpoint=path,
        checkpoint_seconds=0,
    )
    assert [row["step"] for row in resumed.history] == [row["step"] for row in whole.history]
    for a, b in zip(whole.history, resumed.history):
        assert a == pytest.approx(b, abs=1e-6)
    torch.testing.assert_close(whole.model.matrix, resumed.model.matrix)


def test_a_damaged_checkpoint_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole, file = make_module(), tmp_path / "last.ckpt"
    settings = dict(patience=1000, max_epochs=4, trainer=TRAINER, checkpoint=file, checkpoint_seconds=0)
    fit(whole, make_data(), batch_size=32, **settings)
    content, kept = file.read_bytes(), torch.load(file, weights_only=True)["state_dict"]
    generator = random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        if is_sound(file):  # a bit that means nothing: padding, a date
            for name, tensor in torch.load(file, weights_only=True)["state_dict"].items():
                assert torch.equal(tensor, kept[name])
    changed = bytearray(content)
    changed[content.index(kept["model.matrix"].numpy().tobytes()) + 2] ^= 1
    file.write_bytes(changed)
    again = make_module()
    fit(again, make_data(), batch_size=32, **settings)
    assert "last.ckpt' is damaged: training begins again" in caplog.text
    assert again.history == whole.history


def test_divergence_is_one_line():
    module, data = make_module(), make_data()
    data.train.x[0] = math.nan
    with pytest.raises(UserError, match="training diverged"):
        fit(module, data, batch_size=32, patience=5, max_epochs=5, trainer=TRAINER)


def test_batches_cover_every_pass_once_and_depend_on_the_epoch():
    split = make_data().train
    batches = Batches(split, 32, min_steps=7, shuffle=True, seed=3)
    assert len(batches) == 9  # three passes of three batches
    rows = [x for x, _ in batches]
    assert sum(map(len, rows)) == 270
    torch.testing.assert_close(torch.cat(rows[:3]).sum(0), split.x.sum(0), rtol=1e-4, atol=1e-4)
    again = torch.cat([x for x, _ in batches])
    assert torch.equal(again, torch.cat(rows))
    batches.set_epoch(1)
    assert not torch.equal(torch.cat([x for x, _ in batches]), again)
