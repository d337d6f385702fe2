"""Embeddings of vocabularies too large to hold: in shards, half precision, memory-mapped, encoded once."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from cbm.data.features import unit_norm
from cbm.data.shards import find_shards, read_shard, write_shard
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import sweep

log = logging.getLogger(__name__)

SHARD = 16384
"""Phrases in a shard: what an interrupted run encodes again, at most."""


@dataclass(frozen=True)
class EmbeddedVocabulary:
    """V embedded phrases on disk.

    Attributes:
        texts: V phrases.
        shards: their embeddings, in order, ``SHARD`` phrases in each but the last.
    """

    texts: Sequence[str]
    shards: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def parts(self) -> Iterator[Tensor]:
        """Unit-norm float16 embeddings ``[<= SHARD, D]``, shard by shard in order.

        Raises:
            UserError: a shard was damaged since it was written.
        """
        for path in self.shards:
            if (shard := read_shard(path)) is None:
                raise UserError(f"'{path}' was damaged and has been removed: run the command again to encode it again")
            yield shard[0]["features"]


class VocabularyStore:
    """Embedded vocabularies under ``root/vocabulary``: an interrupted encoding goes on where it stopped."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def encode(
        self, encoder: Encoder, texts: Sequence[str], templates: Sequence[str] = ("{}",), *, progress: bool = True
    ) -> EmbeddedVocabulary:
        """Embed what is not embedded yet.

        A phrase's embedding is the mean of the unit-norm features of its templates, of unit norm again (the published
        code leaves it shorter, which ranks concepts by how little the prompt matters to them).

        Args:
            encoder: A text-image model.
            texts: V phrases; their order is the order of the embeddings.
            templates: Each with a place ``{}`` for the phrase.
            progress: Show a bar.

        Raises:
            UserError: a template without a place, no text tower, or the disk is full.
        """
        if bare := [template for template in templates if "{}" not in template]:
            raise UserError(f"template '{bare[0]}' has no place {{}} for the concept")
        key = hashlib.sha256("\n".join([*templates, "", *texts]).encode()).hexdigest()[:32]
        folder = self.root / "vocabulary" / encoder.fingerprint / key
        sweep(folder)
        counts = {f"{start // SHARD:06d}": min(SHARD, len(texts) - start) for start in range(0, len(texts), SHARD)}

        def sound(stem: str, path: Path) -> bool:
            shard = read_shard(path)
            features = None if shard is None else shard[0].get("features")
            return features is not None and features.shape == (counts[stem], encoder.dim)

        stems = list(counts)
        found = {stem: path for stem, path in find_shards(folder).items() if stem in counts}
        there = {stem: path for stem, path in found.items() if sound(stem, path)}
        for stem in found.keys() - there.keys():  # damaged, or of something else: its name is needed
            found[stem].unlink(missing_ok=True)
        missing = [i for i, stem in enumerate(stems) if stem not in there]
        if missing and len(missing) < len(stems):
            log.info("vocabulary: %d of %d shards are encoded already", len(stems) - len(missing), len(stems))
        for i in track(missing, "encoding the vocabulary", transient=True, disable=not progress or len(missing) < 2):
            some = list(texts[i * SHARD : (i + 1) * SHARD])
            mean = torch.stack(
                [unit_norm(encoder.encode_text([t.replace("{}", text) for text in some]), some) for t in templates]
            ).mean(dim=0)
            features = {"features": unit_norm(mean, some).half()}
            there[stems[i]] = write_shard(folder, stems[i], features, {"first": some[0]})
        return EmbeddedVocabulary(texts, tuple(there[stem] for stem in stems))
