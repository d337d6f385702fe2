"""A feature store as cbm wrote it up to f47ba49, with one folder for every list of pictures.

``tests/fixtures/store_f47ba49`` was written by that code: ``python tests/old_store.py`` in a checkout of it. Twelve
pictures, of which ``c.png`` is broken, in shards of five. ``write_old`` writes such stores by hand.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image

FIXTURE = Path(__file__).parents[1] / "fixtures" / "store_f47ba49"
NAMES = [f"{letter}.png" for letter in "abcdefghijkl"]
ROWS = 5


class Corners:
    """Picture to its first pixels; it prints the same everywhere, so the encoder has one fingerprint everywhere."""

    def __repr__(self) -> str:
        return "Corners"

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)[:2, :2].copy()).permute(2, 0, 1).float() / 255


def fixed_encoder(width: int = 6):
    """An encoder whose weights are no random numbers."""
    from cbm.encoders.base import Encoder

    class Fixed(Encoder):
        def image_features(self, pictures):
            return self.model(pictures.flatten(1))

    model = torch.nn.Linear(12, width)
    model.weight.data = torch.arange(12.0 * width).reshape(width, 12).remainder(7) - 3
    model.bias.data = torch.arange(float(width))
    return Fixed("fixed", model, Corners())


def paint_all(folder: Path) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / name)
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:70])


def write_old(root: Path, encoder, images, precision: str = "fp32", dtype: str = "float32") -> Path:
    """A store of features that are all 7, so that they are known again; returns the list's folder."""
    import safetensors.torch

    fingerprints = images.fingerprints(root)
    key = hashlib.sha256("\n".join([encoder.fingerprint, precision, dtype, *fingerprints]).encode())
    folder = root / "features" / key.hexdigest()[:24]
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(images), ROWS)):
        count = min(ROWS, len(images) - start)
        features = torch.full((count, encoder.dim), 7.0, dtype=getattr(torch, dtype))
        content = safetensors.torch.save(
            {"features": features, "readable": torch.ones(count, dtype=torch.uint8)}, {"json": '{"errors": {}}'}
        )
        checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
        (folder / f"{number:05d}-{checksum}.safetensors").write_bytes(content)
    pyarrow.parquet.write_table(pa.table({"fingerprint": fingerprints}), folder / "index.parquet")
    about = {"encoder": encoder.id, "encoder_fingerprint": encoder.fingerprint, "dtype": dtype, "dim": encoder.dim}
    (folder / "about.json").write_text(json.dumps({**about, "images": len(images)}))
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from cbm.data import FeatureStore, store
    from cbm.data.images import ImageFiles

    store.SHARD_ROWS = ROWS
    paint_all(FIXTURE / "pictures")
    images = ImageFiles(FIXTURE / "pictures", NAMES)
    stored = FeatureStore(FIXTURE).encode(fixed_encoder(), images, num_workers=0, batch_size=4, progress=False)
    print(stored.readable, stored.errors, fixed_encoder().fingerprint)
