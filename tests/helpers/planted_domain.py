"""A small planted task and another camera's images of it, for the tests of editors."""

import torch
from torch.nn.functional import normalize

from cbm.data import FeatureSplit
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.probe import LinearProbe

C, K, D = 4, 6, 24
TEXTS = [f"concept {k}" for k in range(K)]
CLASSES = ["ant", "bee", "cat", "dog"]


def pictures(count: int, seed: int, shift: float = 0.0) -> FeatureSplit:
    """Every class shows its own three concepts; the other camera raises concept 0 everywhere."""
    shown = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 1]]).float()
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % C
    x = torch.zeros(count, D)
    x[:, :K] = shown[y] + 0.45 * torch.randn(count, K, generator=g)
    x[:, 0] += shift
    x[:, K:] = 0.1 * torch.randn(count, D - K, generator=g)
    x[:, -1] = 3.0 + 0.2 * shift  # norms hardly differ, and the camera is seen
    return FeatureSplit(normalize(x, dim=1), y, [f"{i}.png" for i in range(count)])


def bottleneck() -> ConceptBottleneck:
    train = pictures(2000, 0)
    concepts = torch.eye(D)[:K]
    head = LinearProbe(torch.zeros(C, K), torch.zeros(C))
    a = train.x @ concepts.T
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(a), train.y) + 1e-5 * head.matrix.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    model = ConceptBottleneck(concepts, LinearHead(head.matrix.detach(), head.bias.detach()))
    return model.calibrate(train.x).requires_grad_(False)


def right(model, split: FeatureSplit) -> float:
    return float((model.logits(split.x).argmax(1) == split.y).double().mean())
