"""Text features, stored per phrase, so that only the new phrases of a bank are encoded."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cbm.data.features import unit_norm
from cbm.data.shards import find_shards, read_shard, write_shard
from cbm.encoders.base import Encoder
from cbm.files import sweep

log = logging.getLogger(__name__)


EncodeText = Callable[[list[str]], Tensor]
"""Phrases to unit-norm features ``[M, D]``."""


def text_encoder(encoder: Encoder, cache: Path, progress: bool) -> EncodeText:
    """A function from phrases to unit-norm features, which keeps them in the feature store.

    Args:
        encoder: encoder with a text tower.
        cache: folder of the feature store.
        progress: whether a progress bar is shown.
    """
    store = TextStore(cache)
    return lambda texts: unit_norm(store.encode(encoder, texts, progress=progress), texts)


class TextStore:
    """Encoded phrases under ``root/text``."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def encode(self, encoder: Encoder, texts: list[str], *, progress: bool = True) -> Tensor:
        """Raw float32 text features ``[M, D]``, in the order of ``texts``.

        Args:
            encoder: encoder with a text tower.
            texts: M phrases.
            progress: whether a progress bar is shown.

        Raises:
            UserError: the encoder has no text tower, or the disk is full.
        """
        folder = self.root / "text" / encoder.fingerprint
        sweep(folder)
        known: dict[str, Tensor] = {}
        for path in find_shards(folder).values():
            if shard := read_shard(path):
                tensors, metadata = shard
                stored, features = metadata.get("texts"), tensors.get("features")
                if isinstance(stored, list) and features is not None and features.shape == (len(stored), encoder.dim):
                    known.update((text, row) for text, row in zip(stored, features) if isinstance(text, str))
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            features = encoder.encode_text(new, progress=progress)
            stem = hashlib.blake2b("\n".join(new).encode(), digest_size=8).hexdigest()
            write_shard(folder, stem, {"features": features}, {"texts": new})
            known.update(zip(new, features))
        return torch.stack([known[text] for text in texts]) if texts else torch.zeros(0, encoder.dim)
