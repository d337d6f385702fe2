"""Features of the size of ImageNet's, made elsewhere: seconds to read and divide them, and the memory they take.

python benchmarks/given_features.py FOLDER      # 2 GB are written there once, and 2 GB of copies
"""

import sys
import time
from pathlib import Path

import numpy as np

from cbm.config import load_card
from cbm.data.encoded import Encoding, encode_splits, read_images

ROWS, DIM, CLASSES, BLOCK = 1_281_167, 768, 1000, 50_000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "labels.npy").is_file():
        features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (ROWS, DIM))
        generator = np.random.default_rng(0)
        for start in range(0, ROWS, BLOCK):
            part = features[start : start + BLOCK]
            part[:] = generator.standard_normal(part.shape, dtype=np.float32)
        features.flush()
        np.save(folder / "labels.npy", generator.integers(0, CLASSES, ROWS))
    card, cache = load_card("features"), folder / "cache"
    card.root = str(folder)
    for what in ("read, splits drawn", "read again"):
        began = time.perf_counter()
        dataset = read_images(card, cache)
        print(f"{what}: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    _, data = encode_splits(dataset, None, Encoding(cache, progress=False), ("train", "val", "test"))
    print(f"copies of unit norm: {time.perf_counter() - began:.1f} s")
    for name, split in data.splits.items():
        print(f"{name}: {tuple(split.x.shape)} {split.x.dtype}")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    print(f"memory that is not mapped: {int(status['RssAnon'].split()[0]) / 1e6:.1f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
