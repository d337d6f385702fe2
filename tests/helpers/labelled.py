"""Images with three labels: 60 for training, 60 for validation, 60 to test, of which the right concepts are known."""

from dataclasses import replace

import torch
from torch.nn.functional import normalize

from cbm.concepts import ConceptBank, merge_duplicates
from cbm.data import FeatureData, FeatureSplit

LABELS = ["wet", "tall", "old"]
PER_LABEL, DIM = 4, 16
SPLITS = ("train", "val", "test")


def labelled(n: int = 60, seed: int = 0, unknown: float = 0.1, noise: float = 0.25) -> tuple[FeatureData, ConceptBank]:
    """Labels along axes of the features, four concepts near each, whose truth is the label's; some labels unknown."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.eye(DIM)[: len(LABELS)]
    mean = 0.5 * torch.randn(DIM, generator=g)
    near = axes.repeat_interleave(PER_LABEL, 0) + 0.15 * torch.randn(len(LABELS) * PER_LABEL, DIM, generator=g)
    phrases = [(f"{LABELS[k // PER_LABEL]} sign {k}", (LABELS[k // PER_LABEL],), None) for k in range(len(near))]
    bank = replace(merge_duplicates("b", "b", phrases), embeddings=normalize(near + mean, dim=1))
    splits = {}
    for name in SPLITS:
        y = (torch.rand(n, len(LABELS), generator=g) < torch.tensor([0.5, 0.35, 0.25])).float()
        y[:4], y[4:8] = 1, 0
        x = normalize((2 * y - 1) @ axes + noise * torch.randn(n, DIM, generator=g) + mean, dim=1)
        concepts = y.repeat_interleave(PER_LABEL, 1)
        known = y.clone()
        known[8:][torch.rand(n - 8, len(LABELS), generator=g) < unknown] = torch.nan
        splits[name] = FeatureSplit(x, known, [f"{name}{i}" for i in range(n)], concepts)
    there, absent = (normalize(sign * axes + mean, dim=1) for sign in (1, -1))
    return FeatureData(
        splits, list(LABELS), concept_names=bank.texts, class_embeddings=there, negative_embeddings=absent
    ), bank


def class_bank(data: FeatureData) -> ConceptBank:
    """A concept a label: its sentence."""
    phrases = [(name, (name,), None) for name in data.classes]
    return replace(merge_duplicates("classes", "classes", phrases), embeddings=data.class_embeddings)
