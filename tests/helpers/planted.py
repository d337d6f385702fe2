"""Data in which the right concepts are known."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import normalize

from cbm.concepts import ConceptBank, merge_duplicates
from cbm.data import FeatureData, FeatureSplit
from cbm.methods import Built

CLASSES, PER_CLASS, DIM = 5, 8, 24


def planted(seed: int = 0, n: int = 200) -> tuple[FeatureData, ConceptBank]:
    """Classes along axes, concepts near their class's axis, all texts moved by a large shared vector as in CLIP."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.eye(DIM)[:CLASSES]
    text_mean = torch.randn(DIM, generator=g)
    concepts = axes.repeat_interleave(PER_CLASS, 0) + 0.5 * torch.randn(CLASSES * PER_CLASS, DIM, generator=g) * 0.5
    names = [f"class {c}" for c in range(CLASSES)]
    phrases = [(f"phrase {k}", (names[k // PER_CLASS],), None) for k in range(len(concepts))]
    bank = replace(merge_duplicates("b", "b", phrases), embeddings=normalize(concepts + 0.8 * text_mean, dim=1))
    splits = {}
    for name in ("train", "val", "test"):
        y = torch.arange(n) % CLASSES
        x = normalize(axes[y] + 0.25 * torch.randn(n, DIM, generator=g), dim=1)
        splits[name] = FeatureSplit(x, y, [f"{name}{i}" for i in range(n)])
    return FeatureData(splits, names), bank


def parts(built: Built) -> tuple[Any, ConceptBank | None]:
    """Model and bank of what a method built."""
    return built.model, built.bank
