"""W&B without a network and without a login: the run is logged offline, and its files hold what people look at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from birds_run import QUICK, small
from conftest import PROJECT

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
    arguments = [*small(), *QUICK, "logger=wandb", "controls=false", "run_dir=tracked"]
    result = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *arguments], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=300, check=False,
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
    assert "model" in artifacts
    assert json.loads(logged["concepts._type"]) == "table-file"
    assert json.loads(logged["report._type"]) == "html-file"
