"""Small trained runs for the tests of the explorer, once per test process."""

import functools
import shutil
import tempfile
from pathlib import Path

import hydra
from birds_run import COUNTS, QUICK, shared_folder, small
from squares import SAID, draw_squares

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


@functools.cache
def explored_labels() -> Explorer:
    """A run on labels that are rules over the attributes of the small birds, open."""
    run = shared_folder() / "explored-labels"
    settings = ["method=posthoc", *small(), "+dataset.args.task=attributes", f"run_dir={run}", "nec=[]", "report=false"]
    settings += ["controls=false", "method.n_lambdas=10", "method.max_nec=8"]
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        train(hydra.compose("train", settings))
    return Explorer(run, shared_folder() / "cache")


@functools.cache
def explored_values() -> Explorer:
    """A run whose concepts are the hue of a square (one of three), its level (ordered) and its glow (a number)."""
    root, run = shared_folder() / "squares", shared_folder() / "explored-values"
    draw_squares(root)
    (root / "columns.yaml").write_text(SAID + "groups: [site]\n")
    settings = ["method=supervised", "dataset=csv", f"dataset.root={root}", f"cache={shared_folder() / 'cache'}"]
    settings += ["method.max_epochs=150", "method.lr=0.02", f"run_dir={run}", "nec=[]", "report=false"]
    settings += [*QUICK[:2], "controls=false"]
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        train(hydra.compose("train", settings))
    return Explorer(run, shared_folder() / "cache")
