"""Weights & Biases: what people look at, and model and bank as artifacts. Offline by itself when there is no login."""

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from cbm.concepts.bank import ConceptBank
from cbm.layers import ConceptBottleneck
from cbm.metrics.sparsity import top_concepts

log = logging.getLogger(__name__)


def create_wandb_logger(
    path: Path, settings: dict[str, Any], *, project: str, entity: str | None, tags: list[str]
) -> Any:
    """Lightning's W&B logger writing below ``path``; offline unless there is a login or ``WANDB_MODE`` is set."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    mode: dict[str, Any] = {}
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
        mode = {"mode": "offline"}
        log.info("W&B: no login found, logging offline (wandb sync %s/wandb/offline-run-* uploads it later)", path)
    return WandbLogger(
        name=path.name, project=project, entity=entity, tags=tags, save_dir=str(path), config=settings, **mode
    )


def log_results(
    logger: Any, path: Path, metrics: dict[str, float], model: nn.Module, bank: ConceptBank | None, classes: list[str]
) -> None:
    """Final metrics as the run's summary, a table of every class's top concepts, report, model and bank."""
    import wandb

    run = logger.experiment
    run.summary.update(metrics)
    if isinstance(model, ConceptBottleneck) and bank is not None:
        table = wandb.Table(columns=["class", "rank", "concept", "weight", "importance"])
        weights, importance = model.weights(), model.importance()
        for row, columns in enumerate(top_concepts(model, 10).tolist()):
            for rank, k in enumerate(columns, start=1):
                table.add_data(classes[row], rank, bank.texts[k], float(weights[row, k]), float(importance[row, k]))
        run.log({"concepts": table})
    if (path / "report.html").is_file():
        run.log({"report": wandb.Html((path / "report.html").read_text(encoding="utf-8"))})
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metrics)
    artifact.add_file(str(path / "model.safetensors"))
    artifact.add_file(str(path / "config.yaml"))
    if (path / "bank").is_dir():
        artifact.add_dir(str(path / "bank"), name="bank")
    run.log_artifact(artifact)
    run.finish()
