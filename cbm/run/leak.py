"""``cbm leak``: do the scores of a finished run say only what their names say? Measured on one of its splits."""

from pathlib import Path

from cbm.errors import UserError
from cbm.files.run_directory import seed_of
from cbm.layers import one_class
from cbm.metrics.leakage import Leakage, model_leakage
from cbm.metrics.purity import quality_metrics
from cbm.trained import load


def measure_run(path: Path, cache: Path, split: str) -> tuple[Leakage, dict[str, float], list[str]]:
    """What the scores of a finished run tell about the class beyond the concepts they are named after.

    Args:
        path: the run directory.
        cache: folder of the feature store.
        split: ``test``, or ``val`` before anything is chosen by it.

    Returns:
        What was found, its numbers with the keys of ``metrics.json``, and the names of the classes.

    Raises:
        UserError: the run does not exist, it has no concepts, or its data set labels none of them.
    """
    model = load(path)
    one_class(model.model, "what scores tell beyond their names")
    if model.bank is None:
        raise UserError(f"run '{path}' has no concepts: expected one of a method with concepts, such as method=posthoc")
    dataset, data = model.read(("train", "val", "test"), cache=cache, as_trained=True)
    seed = seed_of(model.config.seed)
    found = model_leakage(model.model, model.bank, data, split, seed)
    if found is None:
        raise UserError(
            f"data set '{dataset.name}' labels no concept of run '{path}': expected columns with the names of concepts "
            "(dataset=csv, python -m cbm datasets lists the sets that have them)"
        )
    return found, found.metrics() | quality_metrics(model.model, model.bank, data, split, seed), data.classes
