"""Concepts that are found, through the command line: what a run leaves, an interrupted run, units as a bank."""

import json
from pathlib import Path

import lightning
import pytest
import torch
from birds_run import shared_folder, small
from conftest import one_line

import cbm
from cbm.files.dictionaries import read_dictionary
from cbm.layers import UnitCode, load_model

QUICK = [
    "method=discovered", "method.size=24", "method.passes=40", "method.k=6", "trainer.progress=false",
    "encoder.num_workers=0", "nec=[5]", "report=none",
]  # fmt: skip


@pytest.fixture
def run(command) -> Path:
    """A finished run, trained once per process."""
    path = shared_folder() / "found-run"
    if not (path / "metrics.json").is_file():
        status, errors = command("train", *small(), *QUICK, f"run_dir={path}")
        assert status == 0, errors
    return path


def test_what_a_run_leaves(run: Path):
    metrics = json.loads((run / "metrics.json").read_text())
    for key in (
        "method/name_named", "method/name_named_null", "method/name_named_dealt", "method/name_cosine",
        "method/name_cosine_null", "method/stability_cosine", "method/stability_cosine_null", "method/dead",
        "test/code_r2", "test/code_r2_best", "test/code_l0", "test/unnamed_share", "test/accuracy_l0_5",
        "integrity/random_accuracy", "test/accuracy_nec5_resolved",
    ):  # fmt: skip
        assert key in metrics, key
    assert "integrity/shuffled_accuracy" not in metrics  # no owner is read: it would be the same model
    assert metrics["test/code_l0"] <= 6
    assert len(read_dictionary(run / "dictionary.safetensors")) == 24
    assert len(read_dictionary(run / "seeds" / "1.safetensors")) == 24
    rows = (run / "log.csv").read_text().splitlines()
    assert rows[0] == "step,train/loss,val/loss"  # a dictionary has no accuracy
    model = cbm.load(run)
    assert isinstance(model.model.activation, UnitCode)
    assert len(model.bank) == metrics["model/n_concepts"]


def test_units_are_a_bank_for_other_methods(run: Path, command, tmp_path: Path):
    settings = ["method=posthoc", "nec=[]", "report=none", "trainer.progress=false", "encoder.num_workers=0",
                "controls=false"]  # fmt: skip
    where = [f"concepts=discovered:{run}", f"run_dir={tmp_path / 'r'}"]
    status, errors = command("train", *small(), *settings, *where)
    named = [c.text for c in cbm.load(run).bank.concepts if c.provenance["unit"]["word"]]
    assert named
    assert status == 0, errors
    assert cbm.load(tmp_path / "r").bank.texts == named


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["concepts=discovered:nowhere", "method=posthoc"], "there is no bank; expected the folder of a finished run"),
        (["method=discovered", "method.dictionary=top"], "method.dictionary=top: did you mean 'topk'"),
        (["method=discovered", "method.dictionary=none.safetensors"], "none.safetensors"),
        (["method=discovered", "method.naming.fdr=2"], "method.naming.fdr=2.0: expected a share between 0 and 1"),
        (["method=discovered", "method.naming.fdrr=0.1"], "did you mean 'method.naming.fdr'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command, tmp_path: Path, settings, message):
    done = command("train", *small(), *settings, "trainer.progress=false", "encoder.num_workers=0",
                   f"run_dir={tmp_path / 'r'}")  # fmt: skip
    assert message in one_line(done)
    assert not (tmp_path / "r" / "model.safetensors").exists()


class StopAt(lightning.Callback):
    """Dies when a step begins, as a killed process does."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.global_step == 70:
            raise SystemError("killed")


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "relu"])
def test_an_interrupted_dictionary_goes_on_as_if_nothing_had_happened(kind: str, tmp_path: Path, monkeypatch):
    """Weights, dead units, threshold and penalty are those of a run that was never interrupted."""
    from small_fit import TRAINER, make_data

    from cbm.methods import create_method
    from cbm.training import ConceptBottleneckModule, fit

    def train(path: Path | None) -> dict:
        torch.manual_seed(0)
        data = make_data()
        method = create_method({"name": "discovered", "dictionary": kind, "size": 12, "k": 3, "passes": 12})
        built = method.build(data, None, 100.0)
        module = ConceptBottleneckModule(built.model, method.optimizer, method.loss, method.validate)
        fit(module, data, batch_size=built.batch_size, patience=100, max_epochs=12, trainer=TRAINER, checkpoint=path,
            checkpoint_seconds=0)  # fmt: skip
        return module.model.state_dict()

    whole = train(None)
    original = lightning.Trainer.__init__
    monkeypatch.setattr(
        lightning.Trainer,
        "__init__",
        lambda self, *args, callbacks, **more: original(self, *args, callbacks=[*callbacks, StopAt()], **more),
    )
    path = tmp_path / "last.ckpt"
    with pytest.raises(SystemError):
        train(path)
    monkeypatch.setattr(lightning.Trainer, "__init__", original)
    assert path.is_file()
    again = train(path)
    assert all(value.equal(again[key]) for key, value in whole.items())


def test_a_loaded_model_is_the_saved_one(run: Path):
    x = torch.nn.functional.normalize(torch.randn(20, load_model(run / "model.safetensors").concepts.shape[1]), dim=1)
    first, second = (load_model(run / "model.safetensors") for _ in range(2))
    assert first(x).equal(second(x))
