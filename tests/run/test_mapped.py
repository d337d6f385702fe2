"""Splits whose features stay on disk in half precision: every method trains and is judged on them as on any other."""

import json
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small

import cbm.data.store
from cbm.data.store import StoredFeatures

METHODS = {
    "labo": ["method.max_epochs=5"], "v2c": ["method.max_epochs=5"], "posthoc": [], "sparse": ["method.max_epochs=2"],
    "cms": [], "supervised": ["method.max_epochs=3"],
    "zero_shot": [], "linear_probe": [], "label_free": [], "discovered": ["method.passes=3", "method.size=24"],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_mapped_features_is_the_run_on_the_same_features_in_memory(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
):
    common = [*small(), *QUICK[:3], f"method={method}", *METHODS[method], "encoder.store_dtype=float16"]
    monkeypatch.setattr(cbm.data.store, "IN_MEMORY", 0)
    unit_rows, dtypes, metrics = StoredFeatures.unit_rows, set(), {}
    for name in ("mapped", "memory"):

        def rows(self, *args, name=name):
            x = unit_rows(self, *args)
            dtypes.add(x.dtype)
            return x if name == "mapped" else x.float()

        monkeypatch.setattr(StoredFeatures, "unit_rows", rows)
        quick = ["report=false", "controls=false"] if name == "memory" else []
        status, errors = command("train", *common, *quick, f"run_dir={tmp_path / name}")
        assert status == 0, errors
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert dtypes == {torch.float16}
    assert metrics["memory"].keys() <= metrics["mapped"].keys()
    for key, value in metrics["memory"].items():
        if key.startswith("test/"):
            assert metrics["mapped"][key] == pytest.approx(value, rel=0.02, abs=0.01), key
    status, errors = command("eval", f"run={tmp_path / 'mapped'}", small()[1])
    assert status == 0, errors
