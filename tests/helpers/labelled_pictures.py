"""Pictures of the planted Ising model as encoded splits with concept columns, and a method fitted on them."""

import torch
from ising import ising

from cbm.concepts.bank import Concept, ConceptBank
from cbm.data import FeatureData, FeatureSplit
from cbm.methods import create_method
from cbm.training import ConceptBottleneckModule, fit

NAMES = [f"concept {k}" for k in range(8)]
CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}


def planted(seed: int = 0, unknown: float = 0.0) -> FeatureData:
    world = ising(seed)
    splits = {}
    for number, (name, n) in enumerate({"train": 3000, "val": 500, "test": 1000}.items()):
        x, c, y = world.draw(n, 100 * seed + number)
        c[torch.rand(c.shape, generator=torch.Generator().manual_seed(number)) < unknown] = float("nan")
        splits[name] = FeatureSplit(x, y, [f"{name} {i}" for i in range(n)], c)
    return FeatureData(splits, list("abcd"), concept_names=NAMES)


def fitted(data: FeatureData, name: str = "energy", epochs: int = 60, **settings):
    torch.manual_seed(0)
    method = create_method({"name": name, "patience": 8, **settings})
    built = method.build(data, ConceptBank("planted", "planted", tuple(map(Concept, NAMES))), 1.0)
    module = ConceptBottleneckModule(built.model, method.optimizer, method.loss, method.validate)
    fit(
        module, data, batch_size=built.batch_size, targets=built.targets, patience=method.config.patience,
        max_epochs=epochs, trainer=CPU,
    )  # fmt: skip
    built.model.eval().requires_grad_(False)
    return method, method.finish(built, data), built.bank
