"""Encoded splits, ready to learn from: a LightningDataModule over features that are already in memory."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.data.splits import few_shot
from cbm.errors import UserError
from cbm.kernels import class_sums

log = logging.getLogger(__name__)


@dataclass
class FeatureSplit:
    """Features of one split.

    Attributes:
        x: ``[N, D]`` unit-norm features: float32, or mapped from disk, then perhaps in half precision.
        y: ``[N]`` class indices.
        names: N picture names.
        concepts: ``[N, A]`` ground truth (1, 0, NaN unknown) or None.
    """

    x: Tensor
    y: Tensor
    names: list[str]
    concepts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> "FeatureSplit":
        """The pictures at ``rows``."""
        index = torch.from_numpy(rows)
        concepts = None if self.concepts is None else self.concepts[index]
        return FeatureSplit(self.x[index], self.y[index], [self.names[row] for row in rows], concepts)

    def class_means(self, num_classes: int) -> Tensor:
        """Mean feature of every class, ``[C, D]``."""
        return (
            class_sums(self.x, self.y, num_classes)
            / torch.bincount(self.y, minlength=num_classes).clamp(min=1)[:, None]
        )


def unit_norm(features: Tensor, names: list[str]) -> Tensor:
    """Raw features to unit norm ``[N, D]`` float32.

    Raises:
        UserError: NaN, infinite or zero features, naming the first.
    """
    features = features.float()
    norms = features.norm(dim=1)
    bad = ~norms.isfinite() | (norms == 0)
    if bad.any():
        first = names[int(bad.nonzero()[0])]
        raise UserError(f"{int(bad.sum())} feature vector(s) are NaN, infinite or zero, first for '{first}'")
    return F.normalize(features, dim=1)


def spaced(x: Tensor, count: int) -> Tensor:
    """``x`` ``[N, ...]``, or ``count`` of its rows at even distances."""
    return x if len(x) <= count else x[torch.arange(count) * len(x) // count]


def split_test(split: FeatureSplit, shots: int, classes: list[str], seed: int) -> tuple[FeatureSplit, FeatureSplit]:
    """So many pictures of every class, and the rest.

    Raises:
        UserError: a class has fewer.
    """
    rows = few_shot(split.y.numpy(), shots, seed, classes, "labelled test pictures: shots")
    rest = np.setdiff1d(np.arange(len(split)), rows)
    return split.take(rows), split.take(rest)


class Batches:
    """Batches over tensors in memory; Lightning iterates over it as over a DataLoader.

    An epoch is the stretch between two validations: as many passes over the data as make ``min_steps`` batches. Its
    order depends on the seed and the epoch only, so a resumed run sees the batches it would have seen; of several
    processes each gets its part of the same batches.

    Args:
        split: N pictures.
        batch_size: per step; if it covers the split, every step sees the full batch, in order.
        min_steps: batches per epoch, at least.
        shuffle: draw a new order for every pass.
        seed: of the order.
        concepts: ``[N, K]`` concept labels that go with every batch, if there are any.
        rank: which of the processes this is.
        world: how many there are.
    """

    def __init__(
        self, split: FeatureSplit, batch_size: int, *, min_steps: int = 1, shuffle: bool, seed: int = 0,
        concepts: Tensor | None = None, rank: int = 0, world: int = 1,
    ):  # fmt: skip
        self.rank, self.world = rank, world
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.tensors = [split.x, split.y] if concepts is None else [split.x, split.y, concepts]
        self.per_pass = -(-len(split) // batch_size)
        self.passes = -(-min_steps // self.per_pass)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    batch_sampler = None

    @property
    def sampler(self) -> "Batches":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def __len__(self) -> int:
        return self.per_pass * self.passes

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for turn in range(self.passes):
            for rows in self._order(turn):
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
        """What the mean loss of this process's part counts for, so that the mean over processes is the batch's mean."""
        start = batch % self.per_pass * self.batch_size
        whole = min(self.batch_size, len(self.split) - start)
        return self.world * len(range(self.rank, whole, self.world)) / whole


class FeatureData(lightning.LightningDataModule):
    """Encoded train, val and test splits.

    Attributes:
        classes: C class names.
        concept_names: A names of the ground-truth concepts.
        concept_groups: group name to the concept names that exclude each other.
        encoder: fingerprint of the encoder of the features.
        teacher: the same training and validation pictures, in the same order, by a text-image model; None if that is
            the encoder itself.
        class_embeddings: ``[C, E]`` the class names by the text-image model, for methods that read class names.
    """

    def __init__(
        self,
        splits: dict[str, FeatureSplit],
        classes: list[str],
        *,
        concept_names: list[str] | None = None,
        concept_groups: dict[str, list[str]] | None = None,
        seed: int = 0,
        encoder: str | None = None,
        teacher: "FeatureData | None" = None,
        class_embeddings: Tensor | None = None,
    ):
        super().__init__()
        self.splits: dict[str, FeatureSplit] = splits
        self.classes = classes
        self.concept_names = concept_names or []
        self.concept_groups = concept_groups or {}
        self.seed = seed
        self.encoder = encoder
        self.teacher = teacher
        for name, split in teacher.splits.items() if teacher else ():
            if name not in splits or split.names != splits[name].names:
                raise ValueError(f"the teacher's {name} pictures are not those of the encoder")
        self.class_embeddings = class_embeddings
        self.batch_size: int | None = None
        """Rows per training batch; None is the full batch. Set by the method."""
        self.concept_targets: dict[str, Tensor] = {}
        """Split to concept labels ``[N, K]`` that training and validation batches bring along. Set by the method."""

    @property
    def train(self) -> FeatureSplit:
        """The training split (the few-shot subset, when shots were asked for)."""
        return self.splits["train"]

    @property
    def val(self) -> FeatureSplit:
        """The validation split."""
        return self.splits["val"]

    @property
    def test(self) -> FeatureSplit:
        """The test split."""
        return self.splits["test"]

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.train.x.shape[1]

    def train_dataloader(self) -> Batches:
        """Shuffled batches of the training split, 10 steps or more between validations, dealt out to the processes."""
        return Batches(
            self.train, self.batch_size or len(self.train), min_steps=10, shuffle=True, seed=self.seed,
            concepts=self.concept_targets.get("train"),
            rank=self.trainer.global_rank if self.trainer else 0, world=self.trainer.world_size if self.trainer else 1,
        )  # fmt: skip

    def val_dataloader(self) -> Batches:
        """The validation split, in order."""
        return Batches(self.val, 65536, shuffle=False, concepts=self.concept_targets.get("val"))
