"""``fit_method``: build a method's model, train it, and return the trained classifier."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cbm.concepts.bank import ConceptBank
from cbm.config import TrainerConfig
from cbm.data.features import FeatureData
from cbm.layers import Linked, predict_logits
from cbm.methods.base import Method
from cbm.metrics.multilabel import choose_thresholds

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def fit_method(
    method: Method,
    data: FeatureData,
    bank: ConceptBank | None,
    logit_scale: float,
    *,
    seed: int = 0,
    trainer: Any = None,
    run_path: Path | None = None,
    logger: "Logger | None" = None,
) -> tuple[nn.Module, ConceptBank | None]:
    """Train a method.

    Args:
        method: the method with its settings.
        data: encoded splits.
        bank: embedded candidate concepts, or None.
        logit_scale: factor that the encoder puts on cosines.
        seed: random seed for everything random in the fit.
        trainer: a ``cbm.config.TrainerConfig``; None for its defaults.
        run_path: run directory in which checkpoints and ``log.csv`` are written, or None.
        logger: Lightning logger that also receives the losses, or None.

    Returns:
        The model, frozen and in evaluation mode, and the bank of its columns.

    Raises:
        UserError: the data or the concepts do not suit the method.
    """
    for seed_library in (random.seed, np.random.seed, torch.manual_seed):
        seed_library(seed)
    trainer = TrainerConfig() if trainer is None else trainer
    method.check_task("many" if data.many else "one")
    built = method.build(data, bank, logit_scale)
    if method.trains:
        from cbm.training import (  # Lightning takes seconds to import
            ConceptBottleneckModule,
            epochs_of,
            fit,
            write_history,
        )

        module = ConceptBottleneckModule(built.model, method.optimizer, method.loss, method.validate)
        patience, epochs = (
            (method.config.patience, method.config.max_epochs)
            if built.passes is None
            else 2 * (epochs_of(built.passes, len(data.train), built.batch_size),)
        )
        fit(
            module,
            data,
            batch_size=built.batch_size,
            targets=built.targets,
            patience=patience,
            max_epochs=min(trainer.max_epochs, epochs),
            trainer={key: getattr(trainer, key) for key in ("accelerator", "devices", "precision")},
            checkpoint=run_path and run_path / "checkpoints" / "last.ckpt",
            checkpoint_seconds=trainer.checkpoint_seconds,
            progress=trainer.progress and run_path is not None,
            logger=logger,
        )
        if run_path is not None:
            write_history(run_path / "log.csv", module.history)
    built.model.eval().requires_grad_(False)
    finished = method.finish(built, data)
    model, bank = finished if isinstance(finished, tuple) else (finished, built.bank)
    if data.many and method.chooses_thresholds and isinstance(model, Linked):
        model.with_thresholds(choose_thresholds(predict_logits(model, data.val.x), data.val.y).float())
    return model, bank
