"""Pictures to shards of features: Lightning's prediction loop, in one process or in many.

Every process encodes whole shards of its own and writes each when it is complete, so processes say nothing to each
other but which shards are missing when they begin. One that dies takes the others with it; what is on disk stays, and
the same command goes on with what is missing, in any number of processes.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cbm.data.images import Images
from cbm.data.shards import write_shard
from cbm.encoders.base import Encoder
from cbm.errors import UserError

log = logging.getLogger(__name__)


def encode_shards(
    folder: Path,
    encoder: Encoder,
    images: Images,
    missing: list[int],
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
    """Encode the pictures of some shards and write these to ``folder``; returns when all processes are done.

    Args:
        folder: of the shards.
        encoder: the frozen encoder.
        images: N pictures.
        missing: numbers of the shards.
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
    module = _Encoding(folder, encoder, images, missing, shard_rows, dtype, batch_size, num_workers)
    if (rows := len(module.rows_of(missing))) < len(images):
        log.info("%s: %d of %d already encoded", label, len(images) - rows, len(images))
    many = devices * nodes > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        runner = lightning.Trainer(
            accelerator="cpu" if encoder.device.type == "cpu" else "auto", devices=devices, num_nodes=nodes,
            strategy="ddp" if many else "auto", logger=False, enable_checkpointing=False, enable_model_summary=False,
            callbacks=[RichProgressBar(leave=False)] if progress else [], enable_progress_bar=progress,
            use_distributed_sampler=False,
        )  # fmt: skip
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
        speed = rows / (time.perf_counter() - began)
        log.info("encoded %d %s at %.0f images/s%s", rows, label, speed, f" in {devices * nodes} processes" * many)


class _Encoding(lightning.LightningModule):
    """Encodes batches of pictures and writes a shard whenever one is complete."""

    def __init__(
        self, folder: Path, encoder: Encoder, images: Images, missing: list[int], shard_rows: int, dtype: torch.dtype,
        batch_size: int, num_workers: int,
    ):  # fmt: skip
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer shards than processes
        self.folder, self.encoder, self.images, self.missing = folder, encoder, images, missing
        self.shard_rows, self.stored_dtype = shard_rows, dtype
        self.batch_size, self.num_workers = batch_size, num_workers
        self._features: list[Tensor] = []
        self._readable: list[Tensor] = []
        self._errors: dict[str, str] = {}

    def rows_of(self, shards: list[int]) -> list[int]:
        """The pictures of some shards, in order."""
        size, count = self.shard_rows, len(self.images)
        return [row for shard in shards for row in range(shard * size, min(shard * size + size, count))]

    def predict_dataloader(self) -> DataLoader:
        """The pictures of this process's shards: what the first process found missing is dealt out to all."""
        missing = self.trainer.strategy.broadcast(self.missing)
        rows = self.rows_of(missing[self.trainer.global_rank :: self.trainer.world_size])
        workers = min(self.num_workers, max(1, len(rows) // self.batch_size)) if self.num_workers else 0
        return DataLoader(
            _Pictures(self.images, rows, self.encoder.preprocess), batch_size=self.batch_size, num_workers=workers,
            collate_fn=_collate, pin_memory=self.encoder.device.type == "cuda",
        )  # fmt: skip

    def on_predict_start(self) -> None:
        """Every process has a device of its own."""
        if self.device != self.encoder.device and self.device.type != "cpu":
            self.encoder.to(self.device)

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        """Encode, and cut at the ends of shards."""
        rows, good, pictures, why = batch
        good = good.cpu()
        encoded = torch.zeros(len(rows), self.encoder.dim)
        if len(pictures):
            encoded[good] = self.encoder.encode_images(pictures)
        if not (finite := encoded.isfinite().all(dim=1)).all():
            name = self.images.names[rows[int((~finite).nonzero()[0])]]
            raise UserError(f"encoder '{self.encoder.id}' gives NaN or infinite features, first for image '{name}'")
        self._errors |= {self.images.names[row]: reason for row, reason in why.items()}
        start = 0
        for i, row in enumerate(rows):
            if (row + 1) % self.shard_rows == 0 or row + 1 == len(self.images):
                self._features.append(encoded[start : i + 1])
                self._readable.append(good[start : i + 1])
                self._write(row // self.shard_rows)
                start = i + 1
        self._features.append(encoded[start:])
        self._readable.append(good[start:])

    def _write(self, shard: int) -> None:
        features = torch.cat(self._features).to(self.stored_dtype)
        tensors = {"features": features, "readable": torch.cat(self._readable).to(torch.uint8)}
        write_shard(self.folder, f"{shard:05d}", tensors, {"errors": self._errors})
        self._features, self._readable, self._errors = [], [], {}


class _Pictures(Dataset):
    """Row to (row, preprocessed picture or None, why not)."""

    def __init__(self, images: Images, rows: Sequence[int], preprocess):
        self.images, self.rows, self.preprocess = images, rows, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, str]:
        row = self.rows[i]
        try:
            return row, self.preprocess(self.images.open(row)), ""
        except Exception as error:  # a broken file can make a decoder raise anything
            return row, None, f"{type(error).__name__}: {str(error).replace(str(self.images.names[row]), '...')[:120]}"


def _collate(items: list[tuple[int, Tensor | None, str]]) -> tuple[list[int], Tensor, Tensor, dict[int, str]]:
    rows = [row for row, _, _ in items]
    pictures = [picture for _, picture, _ in items if picture is not None]
    good = torch.tensor([picture is not None for _, picture, _ in items])
    return rows, good, torch.stack(pictures) if pictures else torch.empty(0), {r: why for r, _, why in items if why}
