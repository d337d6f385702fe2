"""The LightningModule that trains every bottleneck."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.losses.classification import cross_entropy, score_batch


class ConceptBottleneckModule(lightning.LightningModule):
    """Training of a classifier on frozen features, keeping the weights with the lowest validation loss.

    Args:
        model: the classifier, from features ``[N, D]`` to logits ``[N, C]``.
        optimizer: function from the model to an optimizer of the parameters that require a gradient.
        loss: function from the model, features ``[B, D]``, labels ``[B]`` or ``[B, L]`` and perhaps concept labels
            ``[B, K]`` to the training loss; cross-entropy by default.
        validate: function of the same arguments to the validation loss and logits (None without any); cross-entropy by
            default.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        loss: Callable[..., Tensor] = cross_entropy,
        validate: Callable[..., tuple[Tensor, Tensor | None]] = score_batch,
    ):
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self._loss, self._validate = loss, validate
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "state": None}
        self.history: list[dict[str, float]] = []
        self._train_loss = torch.zeros(())
        self._val: list[tuple[float, float, int]] = []  # without logits nothing is right or wrong

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, D]`` to logits ``[N, C]``."""
        return self.model(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the parameters that require a gradient."""
        return self._optimizer(self.model)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self._loss(self.model, *batch)
        if self.trainer.world_size > 1:
            batches: Any = self.trainer.train_dataloader
            loss = loss * batches.weight(batch_idx)
        self._train_loss = loss.detach()
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Add the loss and accuracy of a batch."""
        y = batch[1]
        loss, logits = self._validate(self.model, *batch)
        right = math.nan if logits is None or y.ndim == 2 else float((logits.argmax(1) == y).sum())
        self._val.append((float(loss) * len(y), right, len(y)))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and keep the weights if they are the best so far."""
        loss, right, count = (sum(column) for column in zip(*self._val))
        self._val.clear()
        losses: Any = self.all_gather(self._train_loss)
        train_loss = float(losses.mean())
        values = {"train/loss": train_loss, "val/loss": loss / count}
        values |= {} if math.isnan(right) else {"val/accuracy": right / count}
        self.log_dict(values, prog_bar=True)
        self.history.append({"step": self.global_step, **values})
        if not math.isfinite(values["train/loss"] + values["val/loss"]):
            raise UserError(f"training diverged: the loss is {values['train/loss']} at step {self.global_step}")
        if values["val/loss"] < self.best["loss"]:
            state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"loss": values["val/loss"], "step": self.global_step, "state": state}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the best weights and the history to the checkpoint."""
        checkpoint["cbm"] = {"best": self.best, "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best weights and the history."""
        self.best, self.history = checkpoint["cbm"]["best"], checkpoint["cbm"]["history"]


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write losses and accuracies over the steps as CSV."""
    if history:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomically(path, text.getvalue().encode())
