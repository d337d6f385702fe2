"""The small birds set the command-line tests run on: 20 species, a few pictures each, drawn once per test process."""

import functools
import tempfile
from pathlib import Path

COUNTS = {"n_train": 12, "n_val": 5, "n_test": 6}


@functools.cache
def shared_folder() -> Path:
    """Holds the drawn pictures and the feature store of this process."""
    return Path(tempfile.mkdtemp(prefix="cbm-tests-"))


def small(dataset: str = "birds") -> list[str]:
    """Overrides that make ``dataset`` (a birds variant) small and keep its files out of the project."""
    shared = shared_folder()
    counts = [f"dataset.args.{key}={value}" for key, value in COUNTS.items()]
    return [f"dataset.root={shared / 'birds'}", f"cache={shared / 'cache'}", *counts]


QUICK = ["trainer.progress=false", "encoder.num_workers=0", "nec=[5]", "method.max_epochs=15"]
