"""Show the results of a run on the terminal."""

import logging

from torch import Tensor

from cbm.metrics import chance_accuracy
from cbm.report.evidence import not_counted
from cbm.report.result import RunResult

log = logging.getLogger("cbm")


def announce(result: RunResult) -> None:
    """Log the main results of a run and the address of its report."""
    metrics, cfg = result.metrics, result.cfg
    print_metrics(f"{cfg.method.name} on {cfg.dataset.name}", metrics, result.data.test.y)
    for head in {head.nec: head for head in result.heads}.values():  # a path that ends early is one head for several
        log.info(
            "  re-solved with %.4g concepts per class: test accuracy %.4f (duality gap %.0e, KKT residual %.0e)",
            head.nec,
            metrics[f"test/accuracy_nec{head.target}_resolved"],
            head.gap,
            head.kkt,
        )
    for name, values in result.baselines.items():
        log.info("  %-28s %.4f", f"{name} accuracy", values["test/accuracy"])
    verdict = None if result.integrity is None else result.integrity.verdict
    if said := "; ".join(filter(None, (verdict, not_counted(metrics)))):
        log.info(said)
    page = result.path / "report.html"
    where = page if cfg.report and page.is_file() else result.path / "metrics.json"
    log.info("done in %.1f s: %s", metrics["time/total_s"], where)


def print_metrics(title: str, metrics: dict[str, float], labels: Tensor) -> None:
    """Log a title and the main metrics, with what the largest class alone would give; ``metrics.json`` has all of them.

    Args:
        title: title.
        metrics: metrics by key.
        labels: class indices ``[N]`` of the images whose accuracy is shown.
    """
    log.info(title)
    for key, value in metrics.items():
        if "_nec" in key and key.endswith("_resolved") and "avg" not in key:
            continue  # said with their certificates
        if key.startswith(("test/", "train/", "model/")) or (key.startswith("val/") and "test/accuracy" not in metrics):
            log.info("  %-28s %.4f", key, value)
            if key.endswith("/accuracy"):
                log.info("  %-28s %.4f", "  largest class alone", chance_accuracy(labels))
