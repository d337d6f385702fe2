"""Pictures as an encoder takes them: decoded, preprocessed, in batches; and where the time of encoding goes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cbm.data.images import Images
from cbm.encoders.base import Encoder

Key = TypeVar("Key")


@dataclass
class Spent:
    """Seconds that one process spent on each part of encoding.

    Attributes:
        workers: processes that decode images for it.
        waiting: waiting for decoded images; decoding them, if there are no such processes.
        moving: moving them to the device.
        model: in the model, with the way back of the features.
        writing: checking and writing features.

    Example:
        >>> print(Spent(workers=2, waiting=24, model=71, writing=5))
        71% model, 24% waiting for decoded images, 5% writing (limited by the model)
    """

    workers: int = 0
    waiting: float = 0.0
    moving: float = 0.0
    model: float = 0.0
    writing: float = 0.0

    def __str__(self) -> str:
        parts = {
            "model": self.model,
            "waiting for decoded images": self.waiting,
            "moving images": self.moving,
            "writing": self.writing,
        }
        total = max(sum(parts.values()), 1e-9)
        order = sorted(parts, key=lambda part: -parts[part])
        shares = ", ".join(f"{100 * parts[part] / total:.0f}% {part}" for part in order if parts[part] >= 0.005 * total)
        limit = {"model": "the model", "waiting for decoded images": "decoding"}.get(order[0], order[0])
        advice = f": now encoder.num_workers={self.workers}, more may help" if limit == "decoding" else ""
        return f"{shares} (limited by {limit}{advice})"


class Unreadable(NamedTuple):
    """Why a picture cannot be read.

    Attributes:
        reason: what was raised.
        lasting: whether its content is at fault: the same bytes will fail again.
    """

    reason: str
    lasting: bool


class Pictures(Dataset):
    """Row to (row, preprocessed picture, or why there is none)."""

    def __init__(self, images: Images, rows: Sequence[int], encoder: Encoder):
        self.images, self.rows = images, rows
        self.preprocess, self.least = encoder.preprocess, encoder.least

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, Tensor | Unreadable]:
        row = self.rows[i]
        read = partial(self.images.open, row, self.least)
        return row, preprocessed(read, self.preprocess, str(self.images.names[row]))


def preprocessed(
    read: Callable[[], Image.Image], preprocess: Callable[[Image.Image], Tensor], name: str
) -> Tensor | Unreadable:
    """A picture as the encoder takes it, or why it cannot be read.

    Args:
        read: function that opens the picture.
        preprocess: that of the encoder.
        name: what the picture is called; it is left out of the reason.
    """
    try:
        return preprocess(read())
    except Exception as error:  # a broken file can make a decoder raise anything
        reason = re.sub(rf"[^\s'\"]*{re.escape(name)}", "...", str(error))[:120]
        lasting = not (isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None))
        return Unreadable(f"{type(error).__name__}: {reason}", lasting)


def collate(
    items: list[tuple[Key, Tensor | Unreadable]],
) -> tuple[list[Key], Tensor, Tensor, dict[Key, Unreadable]]:
    """A batch: the n keys, which of them could be read ``[n]``, those pictures, and why the others could not."""
    pictures = [found for _, found in items if isinstance(found, Tensor)]
    good = torch.tensor([isinstance(found, Tensor) for _, found in items])
    why = {key: found for key, found in items if isinstance(found, Unreadable)}
    return [key for key, _ in items], good, torch.stack(pictures) if pictures else torch.empty(0), why
