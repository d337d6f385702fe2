"""Blood cells (WBCAtt) of two sites, one of which has warmer light and goes with some classes in training only.

    python benchmarks/planted_site.py WBCATT FOLDER [--shots 60] [--tested 100] [--seed 0]
    python train.py dataset=csv dataset.root=FOLDER dataset.args.groups=[site] method=posthoc concepts=cav \
        encoder.model=local-dir:effnet-minilm nec=[] controls=false run_dir=runs/site
    python -m cbm rebalance runs/site

Basophils, eosinophils and neutrophils come from the warm site in 95 % of the training and validation images, the other
cells in 5 %; of the test images half of every class do. The light is a concept with labels, "warm light", that the data
set names as spurious. ``docs/guides/rebalance.md`` has the numbers.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from cbm.config import load_card
from cbm.data.encoded import read_images
from cbm.files import write_atomically

WARM = ("basophil", "eosinophil", "neutrophil")
LIGHT = np.array([1.12, 1.0, 0.82])
"""Factors on red, green and blue at the warm site, chosen by looking at the cells before anything was measured."""


def warm(picture: Image.Image) -> Image.Image:
    """The picture in warmer light."""
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.float64) * LIGHT, 0, 255).round().astype(np.uint8))


def write(root: Path, folder: Path, shots: int, tested: int, seed: int) -> None:
    """Draw images of every class and write them, with a table that says what each shows.

    Args:
        root: folder of WBCAtt.
        folder: folder of the new set.
        shots: images per class for training; two thirds as many for validation.
        tested: images per class for testing.
        seed: random seed for the draw and the sites.
    """
    card = load_card("wbcatt")
    card.root = str(root)
    cells, generator = read_images(card, folder / "cache"), np.random.default_rng(seed)
    names = [name for name in cells.concept_names if name not in {spec.name for spec in cells.specs}]
    columns = [cells.concept_names.index(name) for name in names]
    rows: list[list[str]] = [["path", "label", "split", "site", "spurious", "warm light", *names]]
    for split, count, share in (("train", shots, 0.95), ("val", 2 * shots // 3, 0.95), ("test", tested, 0.5)):
        part = cells.splits[split]
        assert part.concepts is not None
        for label, name in enumerate(cells.classes):
            own = generator.permutation(np.flatnonzero(part.labels == label))[:count]
            for row in own.tolist():
                goes = generator.random() < share
                is_warm = goes == (name.lower() in WARM)
                picture = part.images.open(row)
                buffer, path = io.BytesIO(), f"{split}/{name}/{row}.png"
                (warm(picture) if is_warm else picture).save(buffer, format="PNG")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / path, buffer.getvalue())
                shown = [str(int(part.concepts[row, k])) for k in columns]
                rows.append([path, name, split, "warm" if is_warm else "cold", "warm light", str(int(is_warm)), *shown])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_atomically(folder / "images.csv", text.getvalue().encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", type=int, default=60)
    parser.add_argument("--tested", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.root, given.folder, given.shots, given.tested, given.seed)
