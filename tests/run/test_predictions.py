"""What a run keeps of its decisions, through the command line: the numbers can be computed from it again."""

import json
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK, small

from cbm.files.predictions import read_predictions, read_predictions_file


def test_a_run_keeps_what_it_decided(command, module):
    settings = [*small(), *QUICK, "report=none", "controls=false", "trainer.threads=1"]
    status, errors = command("train", *settings, "run_dir=one")
    assert status == 0, errors
    run, kept = Path("one"), read_predictions(Path("one"))
    metrics = json.loads((run / "metrics.json").read_text())
    right = kept.decisions == kept.labels
    assert right.mean() == pytest.approx(metrics["test/accuracy"])
    np.testing.assert_array_equal(
        kept.probabilities.argmax(axis=1)[kept.confidence > 0.6], kept.decisions[kept.confidence > 0.6]
    )
    for key in ("accuracy_nec5", "accuracy_nec5_resolved"):
        assert (kept.others[key] == kept.labels).mean() == pytest.approx(metrics[f"test/{key}"])
    for key in ("accuracy", "accuracy_macro", "accuracy_nec5", "accuracy_nec5_resolved", "concept_auroc"):
        assert metrics[f"test/{key}_low"] <= metrics[f"test/{key}"] <= metrics[f"test/{key}_high"], key
    assert {"test/ece_low", "test/ece_high", "test/ece_debiased"} <= metrics.keys()
    assert json.loads((run / "about.json").read_text())["versions"]["torch_threads"] == 1

    (run / "predictions.parquet").unlink()  # as if it had been made before
    status, out, errors = module("compare", "one")
    assert status == 0, errors
    cache = next(setting for setting in small() if setting.startswith("cache="))
    status, errors = command("eval", "run=one", cache)
    assert status == 0, errors
    again = read_predictions(run)
    assert again.fingerprint == kept.fingerprint
    np.testing.assert_array_equal(again.decisions, kept.decisions)
    np.testing.assert_array_equal(again.others["accuracy_nec5_resolved"], kept.others["accuracy_nec5_resolved"])
    found = json.loads((run / "eval" / "birds-test.json").read_text())
    assert {key: found[key] for key in found if key.endswith(("_low", "_high"))} == pytest.approx(
        {key: metrics[key] for key in metrics if key.endswith(("_low", "_high"))}
    )

    status, errors = command("eval", "run=one", cache, "split=val")
    assert status == 0, errors
    assert read_predictions_file(run / "eval" / "birds-val.parquet").split == "val"
    status, errors = command("train", *settings[:-1], "trainer.threads=0", "run_dir=two")
    assert status == 2
    assert "trainer.threads=0: expected 1 or more, or null" in errors
