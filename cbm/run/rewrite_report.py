"""``rewrite_report``: the report of a finished run, written again."""

from pathlib import Path

from cbm.files.run_directory import read_metrics, seed_of
from cbm.metrics.integrity import integrity_from_json
from cbm.metrics.leakage import model_leakage
from cbm.report import write_report
from cbm.report.result import RunResult
from cbm.trained import load


def rewrite_report(path: Path, cache: Path) -> Path:
    """Write the report of a finished run again, from what the run directory and the feature store hold.

    Args:
        path: the run directory.
        cache: folder of the feature store.

    Returns:
        Path of the report.

    Raises:
        UserError: the run does not exist, or the encoder's weights differ from those that the model was trained with.
    """
    model = load(path)
    dataset, data = model.read(("train", "val", "test"), cache=cache, as_trained=True)
    remembered = model.about
    integrity = remembered.get("integrity") and integrity_from_json(remembered["integrity"])
    metrics = read_metrics(model.path)
    leakage = None
    if "leak/n" in metrics:
        leakage = model_leakage(model.model, model.bank, data, seed=seed_of(model.config.seed))
    return write_report(
        RunResult(
            model.path,
            model.config,
            model.model,
            model.bank,
            data,
            dataset,
            metrics,
            integrity=integrity,
            baselines=remembered.get("baselines") or {},
            leakage=leakage,
            tested_before=bool(remembered.get("integrity")) and integrity is None,
        )
    )
