"""``fit``: train a module on encoded splits under Lightning, and end with its best weights."""

import io
import logging
import re
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.files import write_in_parts
from cbm.files.loading import load_tensors
from cbm.training.batches import TrainingBatches
from cbm.training.module import ConceptBottleneckModule

log = logging.getLogger(__name__)


class SaveResults(Callback):
    """Saves the best weights and history to a file: the parent process of a multi-process fit does not train."""

    def __init__(self, path: Path):
        self.path = path

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Silence other libraries in the new process too."""
        logging.getLogger("lightning.pytorch").setLevel("ERROR")
        warnings.simplefilter("ignore")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the file, in one process only; the others wait, so that none ends before it is there."""
        if trainer.is_global_zero:
            torch.save({"best": pl_module.best, "history": pl_module.history}, self.path)
        trainer.strategy.barrier("results")


class TrainingBar(RichProgressBar):
    """The progress bar in one line: training stops by itself, so that no last epoch is shown."""

    def _get_train_description(self, current_epoch: int) -> str:  # Lightning has no public place for it
        return f"training, epoch {current_epoch + 1}"

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """The loss that decides when to stop; the others are in ``log.csv``."""
        found = trainer.progress_bar_metrics.get("val/loss")
        return {} if found is None else {"val loss": found}


class AtomicCheckpoint(TorchCheckpointIO):
    """Writes checkpoints whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write under a temporary name, then rename."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_in_parts(Path(path).parent, [buffer.getvalue()], lambda: Path(path).name)


def is_sound(checkpoint: Path) -> bool:
    """Whether a checkpoint is undamaged, by the checksums of its parts."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if archive.testzip() is not None:
                return False
        return "cbm" in load_tensors(checkpoint, mapped=True)
    except Exception:  # whatever a foreign or damaged file makes the parsers raise
        return False


class ResumeCheckpoint(Callback):
    """Writes ``last.ckpt`` at the end of an epoch (a stretch between two validations) every so many seconds."""

    def __init__(self, path: Path, every: float):
        self.path, self.every = path, every
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write a checkpoint if it is time; all processes agree on that."""
        if trainer.strategy.broadcast(time.monotonic() - self._written >= self.every):
            trainer.save_checkpoint(self.path)
            self._written = time.monotonic()


def fit(
    module: ConceptBottleneckModule,
    data: FeatureData,
    *,
    batch_size: int | None = None,
    targets: Mapping[str, Tensor] | None = None,
    patience: int,
    max_epochs: int,
    trainer: dict[str, Any],
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool = False,
    logger: Logger | None = None,
) -> None:
    """Train until the validation loss has not fallen by 0.001 for ``patience`` validations; end with the best weights.

    Args:
        module: the module to train.
        data: encoded splits, of which ``train`` and ``val`` are used.
        batch_size: rows per training batch; None for the full batch.
        targets: concept labels ``[N, K]`` by name of the split, which every batch includes; None without.
        patience: number of validations without improvement after which training stops.
        max_epochs: largest number of epochs, each of which ends with a validation.
        trainer: ``accelerator``, ``devices`` and ``precision`` for Lightning's Trainer. With several devices, one
            process per device computes its part of every batch; the result equals that of one process up to rounding.
        checkpoint: path of ``last.ckpt``; if the file exists, training continues from it, or, if it is damaged, begins
            again.
        checkpoint_seconds: seconds between two checkpoints.
        progress: whether a progress bar is shown.
        logger: Lightning logger that also receives the losses, or None.
    """
    callbacks: list[Callback] = [EarlyStopping("val/loss", patience=patience, min_delta=1e-3, check_finite=False)]
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        callbacks.append(ResumeCheckpoint(checkpoint, checkpoint_seconds))
    if progress:
        callbacks.append(TrainingBar(leave=False))
    resume = checkpoint if checkpoint is not None and checkpoint.is_file() else None
    if resume and not is_sound(resume):
        log.warning("'%s' is damaged: training begins again", resume)
        resume.unlink()
        resume = None
    many = trainer.get("devices", 1) not in (1, "1")
    # heads may train by other gradients than those of their parameters (cbm.solvers.AssociationAdam)
    strategy: Any = DDPStrategy(start_method="spawn", find_unused_parameters=True) if many else "auto"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="cbm-fit-") if many else nullcontext() as folder:
        warnings.simplefilter("ignore")  # Lightning's advice about workers, short epochs and missing test loops
        if many:
            callbacks.append(SaveResults(results := Path(str(folder)) / "results.pt"))
        runner = lightning.Trainer(
            max_epochs=max_epochs,
            callbacks=callbacks,
            logger=logger or False,
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            strategy=strategy,
            plugins=AtomicCheckpoint(),
            **trainer,
        )
        if resume:
            log.info("going on from %s", resume)
        # weights_only: a checkpoint is data, nothing in it is executed
        try:
            runner.fit(module, TrainingBatches(data, batch_size, targets or {}), ckpt_path=resume, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        except ProcessRaisedException as error:
            if found := re.search(r"cbm\.errors\.UserError: (.*)", str(error)):
                raise UserError(found[1]) from error
            raise
        except ProcessExitedException as error:
            if not results.is_file():
                raise UserError(
                    f"a process of the training ended ({error}; out of memory?): run the same command again, it goes "
                    "on from the last checkpoint"
                ) from error
            log.debug("a process that had finished training did not end well: %s", error)  # gloo, now and then
        if many:
            found_best = load_tensors(results)
            module.best, module.history = found_best["best"], found_best["history"]
    if module.best["state"] is not None:
        module.model.load_state_dict(module.best["state"])
    module.model.cpu()
    log.info(
        "trained %d steps; best validation loss %.4f at step %d",
        module.history[-1]["step"] if module.history else 0,
        module.best["loss"],
        module.best["step"],
    )
