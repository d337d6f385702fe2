"""Small trained runs for the tests of the explorer, once per test process."""

import functools
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
    settings += [
        q for q in QUICK if not q.startswith("nec") and (METHODS[method].trains or not q.startswith("method."))
    ]
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
