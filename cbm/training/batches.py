"""Batches of encoded splits in memory, for Lightning's loop."""

from collections.abc import Iterator, Mapping

import lightning
import torch
from torch import Tensor

from cbm.data.features import FeatureData, FeatureSplit


class Batches:
    """Batches over tensors in memory; Lightning iterates over it as over a DataLoader.

    An epoch is the stretch between two validations: as many passes over the data as make ``min_steps`` batches. Its
    order depends on the seed and the epoch only, so a resumed run sees the batches it would have seen; of several
    processes each gets its part of the same batches.

    Args:
        split: features and labels of N images.
        batch_size: images per step; if it covers the split, every step uses the full batch, in order.
        min_steps: smallest number of batches per epoch.
        shuffle: whether every pass has a new order.
        seed: random seed for the order.
        concepts: concept labels ``[N, K]`` that every batch includes, or None.
        rank: number of this process.
        world: number of processes.
        device: where the batches are made. On a GPU that has twice the memory free that the split takes, the split is
            moved there once, and no batch is waited for; else batches are sent one by one.
    """

    def __init__(
        self,
        split: FeatureSplit,
        batch_size: int,
        *,
        min_steps: int = 1,
        shuffle: bool,
        seed: int = 0,
        concepts: Tensor | None = None,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ):
        self.rank, self.world = rank, world
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.tensors = [split.x, split.y] if concepts is None else [split.x, split.y, concepts]
        if device is not None and device.type == "cuda":
            size = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
            if 2 * size <= torch.cuda.mem_get_info(device)[0]:
                self.tensors = [tensor.to(device) for tensor in self.tensors]
        self.per_pass = -(-len(split) // batch_size)
        self.passes = -(-min_steps // self.per_pass)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    batch_sampler = None

    @property
    def sampler(self) -> "Batches":
        """The object on which Lightning calls ``set_epoch``."""
        return self

    def __len__(self) -> int:
        return self.per_pass * self.passes

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for turn in range(self.passes):
            for rows in self._order(turn):
                rows = rows.to(self.tensors[0].device) if isinstance(rows, Tensor) else rows
                x, *others = (tensor[rows] for tensor in self.tensors)
                yield (x.float(), *others)

    def _order(self, turn: int) -> Iterator[slice | Tensor]:
        """The rows of every batch of one pass, or this process's part of them: where none is left, one of weight 0."""
        count, size = len(self.split), self.batch_size
        if (not self.shuffle or self.per_pass == 1) and self.world == 1:
            return (slice(start, start + size) for start in range(0, count, size))
        order = torch.arange(count)
        if self.shuffle and self.per_pass > 1:
            generator = torch.Generator().manual_seed((self.seed * 100_003 + self.epoch) * 1009 + turn)
            order = torch.randperm(count, generator=generator)
        return (batch[self.rank :: self.world] if len(batch) > self.rank else batch[:1] for batch in order.split(size))

    def weight(self, batch: int) -> float:
        """Weight of this process's mean loss with which the mean over processes is the mean of the batch."""
        start = batch % self.per_pass * self.batch_size
        whole = min(self.batch_size, len(self.split) - start)
        return self.world * len(range(self.rank, whole, self.world)) / whole


STEPS_AN_EPOCH = 10
"""Fewest training steps between two validations."""


def epochs_of(passes: int, count: int, batch_size: int | None) -> int:
    """Epochs of ``Batches`` that make at least so many passes.

    >>> epochs_of(50, 1000, 500), epochs_of(50, 100_000, 500)
    (10, 50)
    """
    steps = -(-count // (batch_size or count))
    return -(-passes // -(-STEPS_AN_EPOCH // steps))


class TrainingBatches(lightning.LightningDataModule):
    """The batches of one fit.

    Args:
        data: encoded splits.
        batch_size: rows per training batch; None for the full batch.
        targets: concept labels ``[N, K]`` by name of the split, which every batch includes; may be empty.
    """

    def __init__(self, data: FeatureData, batch_size: int | None, targets: Mapping[str, Tensor]):
        super().__init__()
        self.data, self.batch_size, self.targets = data, batch_size, targets

    def train_dataloader(self) -> Batches:
        """Shuffled batches of the training split, some steps between validations, dealt out to the processes."""
        train = self.data.train
        return Batches(
            train,
            self.batch_size or len(train),
            min_steps=STEPS_AN_EPOCH,
            shuffle=True,
            seed=self.data.seed,
            concepts=self.targets.get("train"),
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
            device=self.trainer.strategy.root_device if self.trainer else None,
        )

    def val_dataloader(self) -> Batches:
        """The validation split, in order."""
        return Batches(self.data.val, 65536, shuffle=False, concepts=self.targets.get("val"))
