"""Training in two processes (gloo, on this machine) is training in one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from cbm.training.batches import Batches, FeatureSplit

SCRIPT = textwrap.dedent("""
    import json, os, sys
    import torch
    from torch.nn.functional import normalize
    from cbm.data import FeatureData, FeatureSplit
    from cbm.errors import UserError
    from cbm.layers import AssociationHead, ConceptBottleneck
    from cbm.methods.base import trained
    from cbm.training import ConceptBottleneckModule, fit
    from cbm.solvers import AssociationAdam

    def association(model):
        return AssociationAdam(model.head, trained(model), lr=0.05)

    def adam(model):
        return torch.optim.Adam(trained(model), lr=0.05)

    def diverging(model):
        return torch.optim.SGD(trained(model), lr=float("inf"))

    class Aborting(ConceptBottleneckModule):
        def teardown(self, stage):
            if self.global_rank == 1:
                os.abort()  # as the library for messages between processes does at times, when all is done

    class Killed(ConceptBottleneckModule):
        def on_train_epoch_end(self):
            if self.global_rank == 1:
                os.abort()

    def run(devices, optimizer, kind=ConceptBottleneckModule):
        g = torch.Generator().manual_seed(0)
        centres = torch.randn(4, 8, generator=g)
        splits = {}
        for name, count in (("train", 69), ("val", 60)):  # batches of 34, 34 and 1
            y = torch.arange(count) % 4
            x = normalize(centres[y] + 0.9 * torch.randn(count, 8, generator=g), dim=1)
            splits[name] = FeatureSplit(x, y, [str(i) for i in range(count)])
        data = FeatureData(splits, list("abcd"))
        head = AssociationHead(torch.randn(4, 30, generator=g))
        concepts = normalize(torch.randn(30, 8, generator=g), dim=1)
        module = kind(ConceptBottleneck(concepts, head, scale=5.0, learn_scale=True), optimizer)
        trainer = {"accelerator": "cpu", "devices": devices, "precision": "32-true"}
        fit(module, data, batch_size=34, patience=3, max_epochs=4, trainer=trainer)
        return module

    if __name__ == "__main__":
        result = {}
        for optimizer, kind in ((adam, ConceptBottleneckModule), (association, Aborting)):
            one, two = run(1, optimizer), run(2, optimizer, kind)
            off = float((one.model.head.logits - two.model.head.logits).abs().max())
            result[optimizer.__name__] = [off, one.history, two.history]
        for name, optimizer, kind in (("diverging", diverging, ConceptBottleneckModule), ("killed", adam, Killed)):
            try:
                run(2, optimizer, kind)
            except UserError as error:
                result[name] = str(error)
        print(json.dumps(result))
""")


def test_two_processes_train_what_one_trains(tmp_path: Path):
    script = tmp_path / "train_both.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for optimizer in ("adam", "association"):
        off, one, two = result[optimizer]
        assert off < 1e-5, optimizer
        assert len(one) == len(two) == 4
        for a, b in zip(one, two):
            assert a["step"] == b["step"]
            assert a["val/loss"] == pytest.approx(b["val/loss"], abs=1e-5)
    assert result["diverging"].startswith("training diverged: the loss is ")
    assert result["killed"].startswith("a process of the training ended (process 1 terminated with signal SIGABRT")


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_every_batch_out(world: int):
    y = torch.arange(23) % 3
    split = FeatureSplit(torch.arange(23.0)[:, None], y, [str(i) for i in range(23)])
    whole = Batches(split, 7, min_steps=5, shuffle=True, seed=4)
    parts = [Batches(split, 7, min_steps=5, shuffle=True, seed=4, rank=r, world=world) for r in range(world)]
    for number, (batch, *own) in enumerate(zip(whole, *parts)):
        weights = [part.weight(number) for part in parts]
        counted = [x for (x, _), weight in zip(own, weights) if weight]
        assert torch.equal(torch.cat(counted).sort(dim=0).values, batch[0].sort(dim=0).values)
        mean = sum(weight * x.mean() for (x, _), weight in zip(own, weights)) / world
        torch.testing.assert_close(mean, batch[0].mean())
    assert len(list(whole)) == len(list(parts[0])) == 8
