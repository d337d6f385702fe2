"""A linear probe on 90 images of three classes: a fit that takes a moment."""

import torch
from torch.nn.functional import normalize

from cbm.data import FeatureData, FeatureSplit
from cbm.layers import LinearProbe
from cbm.training import ConceptBottleneckModule

TRAINER = {"accelerator": "cpu", "devices": 1}


def make_data(n: int = 90, seed: int = 0) -> FeatureData:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 8, generator=generator)
    splits = {}
    for name in ("train", "val", "test"):
        y = torch.arange(n) % 3
        x = normalize(centres[y] + 0.9 * torch.randn(n, 8, generator=generator), dim=1)
        splits[name] = FeatureSplit(x, y, [str(i) for i in range(n)])
    return FeatureData(splits, ["a", "b", "c"], seed=seed)


def make_module(lr: float = 0.05) -> ConceptBottleneckModule:
    model = LinearProbe(torch.zeros(3, 8), torch.zeros(3))
    return ConceptBottleneckModule(model, lambda model: torch.optim.Adam(model.parameters(), lr=lr))
