"""Planted pictures of ten classes that own six of thirty concepts each, and the tables of a detector that errs 10 %.

A concept is present with probability .65 in a class that owns it and .35 elsewhere, so that the true concepts tell the
class in under half of the pictures; the class has directions of its own in the features.
"""

import csv
import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.data import FeatureData, FeatureSplit

CLASSES, COUNT, DIM, ERROR = 10, 30, 64, 0.1
NAMES = [f"thing {k}" for k in range(COUNT)]


@functools.cache
def detected(n: int = 1500) -> tuple[FeatureData, ConceptBank]:
    """Encoded splits whose pictures are called ``train/0.png`` and so on, with the true concepts, and the bank."""
    own, axes = _planted()
    splits = {}
    for seed, (name, count) in enumerate({"train": n, "val": n // 3, "test": n}.items()):
        draw = torch.Generator().manual_seed(seed + 1)
        y = torch.randint(0, CLASSES, (count,), generator=draw)
        c = (torch.rand(count, COUNT, generator=draw) < torch.where(own[y], 0.65, 0.35)).float()
        x = 1.2 * (2 * c - 1) @ axes[:COUNT] + 2.5 * axes[COUNT + y] + torch.randn(count, DIM, generator=draw)
        splits[name] = FeatureSplit(x, y, [f"{name}/{i}.png" for i in range(count)], c)
    classes = [f"class {c}" for c in range(CLASSES)]
    concepts = tuple(
        Concept(name, tuple(classes[c] for c in own[:, k].nonzero().flatten().tolist())) for k, name in enumerate(NAMES)
    )
    return FeatureData(splits, classes, concept_names=NAMES), ConceptBank("things", "test", concepts)


def _planted() -> tuple[Tensor, Tensor]:
    """Which class owns which concept ``[C, K]``, and the axes ``[K + C, D]`` of concepts and classes."""
    generator = torch.Generator().manual_seed(0)
    own = torch.zeros(CLASSES, COUNT, dtype=torch.bool)
    for c in range(CLASSES):
        own[c, torch.randperm(COUNT, generator=generator)[:6]] = True
    own[0, ~own.any(dim=0)] = True  # nothing is general
    return own, torch.linalg.qr(torch.randn(DIM, COUNT + CLASSES, generator=generator)).Q.T


@functools.cache
def spoken(n: int = 1500) -> tuple[FeatureData, ConceptBank]:
    """``detected`` as CLIP sees it: unit features and texts that all share one large vector, so that raw cosines are
    large and nearly parallel; a text has a part of its own, larger for some concepts than for others."""
    data, bank = detected(n)
    common = normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(9)), dim=0)
    own_part = 0.3 + 0.5 * torch.randn(COUNT, generator=torch.Generator().manual_seed(10)).abs()
    texts = normalize(common + own_part[:, None] * _planted()[1][:COUNT], dim=1)
    splits = {name: replace(split, x=normalize(split.x + 15 * common, dim=1)) for name, split in data.splits.items()}
    return replace(data, splits=splits, encoder="clip"), replace(bank, embeddings=texts, encoder="clip")


def write_table(file: Path, *, gated: bool, asked: bool, n: int = 1500) -> Path:
    """What the detector says: about the concepts of a picture's class (``gated``) or about all.

    Args:
        file: file to write.
        gated: whether it is asked about the concepts of the picture's class only.
        asked: whether the table says so, with an empty score for what was looked for and not found.
        n: number of training pictures (``detected``).
    """
    data, bank = detected(n)
    owners = bank.owners(data.classes)
    draw = torch.Generator().manual_seed(3)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "concept", "score", *["asked"] * asked])
        for name in ("train", "val"):
            split = data.splits[name]
            wrong = torch.rand(split.concepts.shape, generator=draw) < ERROR
            seen = (split.concepts == 1) ^ wrong
            looked = owners[split.y] if gated else torch.ones_like(seen)
            for i, path in enumerate(split.names):
                writer.writerow([path, "", "", *["1"] * asked])
                for k in looked[i].nonzero().flatten().tolist():
                    if seen[i, k]:
                        writer.writerow([path, NAMES[k], "0.8", *["1"] * asked])
                    elif asked:
                        writer.writerow([path, NAMES[k], "", "1"])
    return file
