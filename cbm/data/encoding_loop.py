"""Pictures to shards of features: Lightning's prediction loop, in one process or in many.

Every process encodes whole shards of its own and writes each when it is complete, so processes say nothing to each
other but which pictures are missing when they begin. One that dies takes the others with it; what is on disk stays, and
the same command goes on with what is missing, in any number of processes. This module imports Lightning, which takes
seconds: whoever needs it does so when there is something to encode.
"""

import logging
import time
import warnings
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from cbm.data.encoding import Pictures, Spent, Unreadable, collate
from cbm.data.images import Images
from cbm.data.index import FeatureIndex
from cbm.encoders.base import Encoder
from cbm.errors import UserError

log = logging.getLogger(__name__)


def encode_shards(
    index: FeatureIndex,
    encoder: Encoder,
    images: Images,
    digests: np.ndarray,
    missing: np.ndarray,
    shard_rows: int,
    *,
    dtype: torch.dtype,
    batch_size: int,
    num_workers: int,
    label: str,
    progress: bool,
    devices: int,
    nodes: int,
) -> None:
    """Encode pictures and write them to the folder of ``index``; returns when all processes are done.

    Args:
        index: of the folder.
        encoder: the frozen encoder.
        images: N pictures.
        digests: ``[N, 2]`` of the pictures.
        missing: the rows to encode, ``[n]``.
        shard_rows: pictures per shard.
        dtype: what is stored.
        batch_size: pictures per forward pass.
        num_workers: processes that decode pictures, for every process that encodes.
        label: what the pictures are called.
        progress: show a progress bar.
        devices: processes on this machine.
        nodes: machines. Where SLURM or torchrun started the processes, both must say what they did.

    Raises:
        UserError: features that are not finite, a full disk, or a process that decodes died.
    """
    module = _Encoding(index, encoder, images, digests, missing, shard_rows, dtype, batch_size, num_workers)
    if len(missing) < len(images):
        log.info("%s: %d of %d already encoded", label, len(images) - len(missing), len(images))
    many = devices * nodes > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        runner = lightning.Trainer(
            accelerator="cpu" if encoder.device.type == "cpu" else "auto",
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if many else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[EncodingBar(label)] if progress else [],
            enable_progress_bar=progress,
            use_distributed_sampler=False,
        )
        began = time.perf_counter()
        try:
            runner.predict(module, return_predictions=False)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that decodes images died (out of memory?): finished shards are kept, run the same command "
                "again, perhaps with encoder.num_workers=0 or a smaller encoder.batch_size"
            ) from error
        runner.strategy.barrier()
    if runner.is_global_zero:
        speed = len(missing) / (time.perf_counter() - began)
        how = f" in {devices * nodes} processes, of which the first" * many
        log.info("encoded %s %s at %.0f images/s%s: %s", f"{len(missing):,}", label, speed, how, module.spent)


class EncodingBar(RichProgressBar):
    """The progress bar says what is encoded.

    Args:
        label: what the pictures are called.
    """

    def __init__(self, label: str):
        super().__init__(leave=False)
        self.label = label

    @property
    def predict_description(self) -> str:
        """The words before the bar."""
        return f"encoding {self.label}"


class _Encoding(lightning.LightningModule):
    """Encodes batches of pictures and writes a shard whenever one is complete."""

    def __init__(
        self,
        index: FeatureIndex,
        encoder: Encoder,
        images: Images,
        digests: np.ndarray,
        missing: np.ndarray,
        shard_rows: int,
        dtype: torch.dtype,
        batch_size: int,
        num_workers: int,
    ):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer shards than processes
        self.index, self.encoder, self.images, self.digests = index, encoder, images, digests
        self.missing, self.shard_rows, self.stored_dtype = missing, shard_rows, dtype
        self.batch_size, self.num_workers = batch_size, num_workers
        self._rows: list[int] = []
        self._features: list[Tensor] = []
        self._readable: list[Tensor] = []
        self._why: dict[int, Unreadable] = {}
        self.spent = Spent()
        self._since = 0.0

    def predict_dataloader(self) -> DataLoader:
        """The pictures of this process's shards: what the first process found missing is dealt out to all."""
        missing = self.trainer.strategy.broadcast(self.missing)
        starts = range(
            self.trainer.global_rank * self.shard_rows, len(missing), self.trainer.world_size * self.shard_rows
        )
        rows = [row for start in starts for row in missing[start : start + self.shard_rows].tolist()]
        workers = min(self.num_workers, max(1, len(rows) // self.batch_size)) if self.num_workers else 0
        self.spent.workers = workers
        self._passed()
        return DataLoader(
            Pictures(self.images, rows, self.encoder),
            batch_size=self.batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.encoder.device.type == "cuda",
        )

    def on_predict_start(self) -> None:
        """Every process has a device of its own."""
        if self.device != self.encoder.device and self.device.type != "cpu":
            self.encoder.to(self.device)

    def _passed(self) -> float:
        """Seconds since this was asked last."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch is decoded."""
        self.spent.waiting += self._passed()
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch is on its device; nothing else is done there at this moment, so that to wait for it costs nothing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.spent.moving += self._passed()
        return batch

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        """Encode, and cut at the ends of shards."""
        rows, good, pictures, why = batch
        good = good.cpu()
        encoded = torch.zeros(len(rows), self.encoder.dim)
        if len(pictures):
            encoded[good] = self.encoder.encode_images(pictures)
        self.spent.model += self._passed()
        if not (finite := encoded.isfinite().all(dim=1)).all():
            name = self.images.names[rows[int((~finite).nonzero()[0])]]
            raise UserError(f"encoder '{self.encoder.id}' gives NaN or infinite features, first for image '{name}'")
        self._why |= why
        start = 0
        while start < len(rows):
            part = slice(start, start + self.shard_rows - len(self._rows))
            self._rows += rows[part]
            self._features.append(encoded[part])
            self._readable.append(good[part])
            if len(self._rows) == self.shard_rows:
                self._write()
            start = part.stop
        self.spent.writing += self._passed()

    def on_predict_epoch_end(self) -> None:
        """The last shard is a smaller one."""
        self._passed()
        if self._rows:
            self._write()
        self.spent.writing += self._passed()

    def _write(self) -> None:
        """Write a shard, without the pictures that could not be read for another reason than their content."""
        kept = [i for i, row in enumerate(self._rows) if row not in self._why or self._why[row].lasting]
        rows = [self._rows[i] for i in kept]
        tensors = {
            "features": torch.cat(self._features)[kept].to(self.stored_dtype),
            "readable": torch.cat(self._readable)[kept].to(torch.uint8),
        }
        errors = {i: self._why[row].reason for i, row in enumerate(rows) if row in self._why}
        self.index.add(self.digests[rows], tensors, errors)
        self._rows, self._features, self._readable, self._why = [], [], [], {}
