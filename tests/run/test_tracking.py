"""W&B without a network and without a login: the run is logged offline, and its files hold what people look at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from birds_run import QUICK, small
from conftest import PROJECT
from labelled_run import NAMES, LabelRun

from cbm import config
from cbm.run.tracking import concept_table, create_wandb_logger, curves, label_examples, label_summary, run_id

pytest.importorskip("wandb")


def records(folder: Path):
    """The records of an offline run: LevelDB's log format (blocks of 32 kB; checksum, length, type) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content = next(folder.rglob("run-*.wandb")).read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_offline_without_a_login(tmp_path: Path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment = {**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    arguments = [*small(), *QUICK, "method.max_epochs=5", "logger=wandb", "controls=false", "run_dir=tracked"]
    result = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *arguments], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "no login found, logging offline" in result.stderr
    summary: dict[str, str] = {}
    logged: dict[str, str] = {}
    artifacts, history = [], 0
    for record in records(tmp_path / "tracked" / "wandb"):
        kind = record.WhichOneof("record_type")
        if kind == "summary":
            summary |= {item.key or ".".join(item.nested_key): item.value_json for item in record.summary.update}
        if kind == "history":
            history += 1
            logged |= {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if kind == "artifact":
            artifacts.append(record.artifact.type)
    measured = json.loads((tmp_path / "tracked" / "metrics.json").read_text())
    assert float(summary["test/accuracy"]) == pytest.approx(measured["test/accuracy"])
    assert history > 3
    assert artifacts.count("model") == artifacts.count("concept-bank") == 1
    assert "W&B gets the test images that are shown, the names of files" in result.stderr
    kept = (tmp_path / "tracked" / "wandb" / "id.txt").read_text()
    assert next((tmp_path / "tracked" / "wandb").glob("offline-run-*")).name.endswith(f"-{kept}")
    called = json.loads(next((tmp_path / "tracked").rglob("confusion_matrix_table_*.table.json")).read_text())
    cells = [dict(zip(called["columns"], row)) for row in called["data"]]
    right = sum(cell["nPredictions"] for cell in cells if cell["Actual"] == cell["Predicted"])
    assert sum(cell["nPredictions"] for cell in cells) == measured["data/n_test"]
    assert right == pytest.approx(measured["test/accuracy"] * measured["data/n_test"])
    for table in ("concepts", "examples", "accuracy_at_equal_sparsity_table"):
        assert json.loads(logged[f"{table}._type"]) == "table-file", sorted(logged)
    assert json.loads(logged["report._type"]) == "html-file"
    examples = json.loads(next((tmp_path / "tracked").rglob("examples_*.table.json")).read_text())
    named = dict(zip(examples["columns"], zip(*examples["data"])))
    wrong = [label != called for label, called in zip(named["class"], named["called"])]
    assert 0 < sum(wrong) <= 16
    assert wrong == sorted(wrong, reverse=True)  # mistakes first
    assert sorted(named["confidence"][: sum(wrong)], reverse=True) == list(named["confidence"][: sum(wrong)])
    assert len(list((tmp_path / "tracked").rglob("example_pictures_*.png"))) == len(wrong)
    captions = json.loads(logged["example_pictures.captions"])
    assert captions[0].startswith(f"{named['class'][0]}, called {named['called'][0]} (")
    assert named["because"][0] in captions[0]
    assert len(named["because"][0].split("; ")) == 5


def test_an_interrupted_training_goes_on_as_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", lambda **settings: asked.append(settings))
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        create_wandb_logger(tmp_path / folder, {}, project="p", entity=None, tags=[])
    assert asked[0]["id"] == asked[1]["id"] != asked[2]["id"]
    assert {settings["resume"] for settings in asked} == {"allow"}
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-sweep")
    assert run_id(tmp_path / "one") == "of-the-sweep"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_id(tmp_path / "one") == "of-the-sweep"
    (tmp_path / "two" / "wandb" / "id.txt").write_text("no id/../x")
    assert run_id(tmp_path / "two").isalnum()


def test_curves_are_read_off_the_metrics():
    metrics = {f"test/intervention_accuracy_{p}": p / 200 for p in (0, 100, 50)} | {"test/accuracy_nec5_resolved": 0.9}
    assert curves(metrics) == [
        ("accuracy_at_equal_sparsity", "concepts per class", [[5.0, 0.9]]),
        ("intervention_curve", "per cent of concepts told", [[0.0, 0.0], [50.0, 0.25], [100.0, 0.5]]),
    ]
    assert curves({"test/accuracy": 1.0}) == []
    assert curves({"test/auroc_macro_nec5_resolved": 0.9}) == [
        ("auroc_at_equal_sparsity", "concepts per label", [[5.0, 0.9]])
    ]


def test_labels_have_a_table_and_their_worst_mistakes(tmp_path: Path):
    run = LabelRun()
    result = run.result(tmp_path)
    rows = label_summary(result)
    assert rows.get_column("name") == NAMES
    assert len(rows.get_column("auroc")) == len(NAMES)
    assert concept_table(run.model, run.bank, NAMES, "label").columns[0] == "label"
    examples = label_examples(run.model, run.bank, run.data, run.dataset.splits["test"].images)
    seen = list(zip(examples.get_column("label"), examples.get_column("called")))
    assert len(set(seen)) == len(seen) > len(NAMES)
    truth = dict(zip(run.data.test.names, run.data.test.y))
    for name, (label, called) in zip(examples.get_column("name"), seen):
        assert truth[name][NAMES.index(label)] == (called == "absent")


def test_the_sweep_file_names_settings_that_exist():
    from hydra import compose, initialize_config_dir

    sweep = yaml.safe_load((config.CONFIGS / "wandb_sweep.yaml").read_text())
    chosen = [f"{key}={value['values'][-1]}" for key, value in sweep["parameters"].items()]
    fixed = [part for part in sweep["command"] if "=" in part]
    config.register()
    with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = compose("train", [*chosen, *fixed])
    assert cfg.logger.wandb
    for method in sweep["parameters"]["method"]["values"]:
        assert method in config.choices("method")
