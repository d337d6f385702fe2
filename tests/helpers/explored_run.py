"""Small trained runs for the tests of the explorer, once per test process."""

import functools
import shutil
import tempfile
from pathlib import Path

import hydra
from birds_run import COUNTS, QUICK, shared_folder, small

from cbm import config
from cbm.app import Explorer
from cbm.methods import METHODS
from cbm.run import train


@functools.cache
def trained(method: str) -> Path:
    """A run of ``method`` on the small birds."""
    run = shared_folder() / f"explored-{method}"
    settings = [f"method={method}", *small(), f"run_dir={run}", "nec=[]", "report=false", "controls=false"]
    epochs = METHODS[method].trains and method != "discovered"
    settings += [q for q in QUICK if not q.startswith("nec") and (epochs or not q.startswith("method."))]
    if method == "discovered":
        settings += ["method.passes=60", "method.size=30", "method.k=4", "method.start=data", "method.lr=0.02"]
    if method == "energy":
        settings.append("method.max_epochs=5")
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        train(hydra.compose("train", settings))
    return run


@functools.cache
def explored(method: str = "labo") -> Explorer:
    """The same, open."""
    explorer = Explorer(trained(method), shared_folder() / "cache")
    assert len(explorer.split) == 20 * COUNTS["n_test"]
    return explorer


def copied(method: str = "discovered") -> Path:
    """A copy of the run of ``method``, which may be changed."""
    folder = Path(tempfile.mkdtemp(dir=shared_folder())) / "run"
    shutil.copytree(trained(method), folder)
    return folder
