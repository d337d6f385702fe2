"""A feature store as cbm wrote it up to f47ba49, with one folder for every list of pictures.

``tests/fixtures/store_f47ba49`` was written by that code: ``python tests/old_store.py`` in a checkout of it, with shards
of five pictures. Twelve pictures, of which ``c.png`` is broken.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FIXTURE = Path(__file__).parent / "fixtures" / "store_f47ba49"
NAMES = [f"{letter}.png" for letter in "abcdefghijkl"]
ROWS = 5


class Corners:
    """Picture to its first pixels; it prints the same everywhere, so its encoder has the same fingerprint everywhere."""

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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from cbm.data import FeatureStore, store
    from cbm.data.images import ImageFiles

    store.SHARD_ROWS = ROWS
    paint_all(FIXTURE / "pictures")
    images = ImageFiles(FIXTURE / "pictures", NAMES)
    stored = FeatureStore(FIXTURE).encode(fixed_encoder(), images, num_workers=0, batch_size=4, progress=False)
    print(stored.readable, stored.errors, fixed_encoder().fingerprint)
