"""A bottleneck with random weights, small enough to be checked by hand."""

import torch

from cbm.concepts import Concept, ConceptBank
from cbm.layers import ConceptBottleneck, LinearHead

N, D, K, C = 30, 12, 9, 4
CLASSES = ["ant", "bee", "cat", "dog"]


def bank(count: int = K) -> ConceptBank:
    return ConceptBank("planted", "test", tuple(Concept(f"concept {k}") for k in range(count)))


def bottleneck(activation=None, n=N, k=K, d=D) -> tuple[ConceptBottleneck, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    concepts = torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1)
    head = LinearHead(torch.randn(C, k, generator=g), torch.randn(C, generator=g))
    reference, spread = 0.3 * torch.randn(k, generator=g), 0.1 + torch.rand(k, generator=g)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    model = ConceptBottleneck(concepts, head, scale=3.0, reference=reference, spread=spread, activation=activation)
    return model.requires_grad_(False), x
