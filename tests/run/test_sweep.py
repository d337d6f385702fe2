"""Many runs by one command: failures of single ones, going on, several at a time, and as jobs of a scheduler."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from birds_run import QUICK, small
from conftest import PROJECT, one_line

from cbm.files.shipped import install_command

SETTINGS = [*QUICK[:2], "nec=[]", "report=false", "controls=false", "shots=1"]


def runs(folder: Path) -> dict[str, Path]:
    """Method and seed to the finished runs of a sweep."""
    found = {}
    for path in sorted(folder.glob("runs/*/metrics.json")):
        text = (path.parent / "config.yaml").read_text()
        method = path.parent.name.split("-")[0]
        seed = next(line.split(": ")[1] for line in text.splitlines() if line.startswith("seed:"))
        assert f"{method} {seed}" not in found, "a run was made twice"
        found[f"{method} {seed}"] = path
    return found


def test_a_sweep_goes_on_after_a_failure_and_passes_over_what_is_finished(command, tmp_path: Path):
    sweep = ["-m", *small(), *SETTINGS, "method=zero_shot,linear_probe"]
    status, errors = command("train", *sweep, "seed=0,-1,1")
    assert status == 2
    failures = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(failures) == 3  # one of each method, and the last word
    assert failures[0].startswith("error: seed=-1: expected 0 or more (")
    assert "method=zero_shot" in failures[0]
    assert failures[-1].startswith("error: not every run of the sweep could be made")
    assert "Traceback" not in errors
    made = runs(tmp_path)
    assert set(made) == {"zero_shot 0", "zero_shot 1", "linear_probe 0", "linear_probe 1"}

    written = {path: path.stat().st_mtime_ns for path in made.values()}
    status, errors = command("train", *sweep, "seed=0,1,2")
    assert status == 0, errors
    assert errors.count(" is there already") == 4
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len(runs(tmp_path)) == 6


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_at_the_same_time(launcher: str, tmp_path: Path):
    """``submitit_local`` is the SLURM preset's path (files, arrays, results), with processes for jobs."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher", reason="needs the extra 'sweep'")
    overrides = [*small(), *SETTINGS, "method=zero_shot", "seed=0,1", f"launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), "-m", *overrides], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    made = runs(tmp_path)
    assert set(made) == {"zero_shot 0", "zero_shot 1"}
    for path in made.values():
        assert json.loads(path.read_text())["test/accuracy"] >= 0


def test_the_slurm_preset_composes(monkeypatch: pytest.MonkeyPatch):
    from hydra import compose, initialize_config_dir

    from cbm import config

    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'sweep'")
    config.register()
    with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = compose("train", ["launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert cfg.hydra.launcher.partition == "gpu"
    assert cfg.hydra.launcher.gpus_per_node == 1


@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is installed")
def test_a_missing_launcher_says_how_to_get_it(command):
    assert one_line(command("train", "-m", "launcher=ray", "seed=0,1")).endswith(
        f"'launcher/ray' needs a plugin that is not installed: {install_command('sweep')} "
        "(launcher=ray: the package hydra-ray-launcher)"
    )
