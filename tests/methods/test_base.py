"""What a method needs and does not get is named."""

import contextlib

import pytest
import torch
from planted import planted

from cbm.editing import Edit
from cbm.errors import UserError
from cbm.methods import create_method
from cbm.methods.base import METHODS
from cbm.metrics.evaluate import residual_metrics

NEEDS = sorted(name for name, kind in METHODS.items() if kind.concepts_from not in (None, "features"))


@pytest.mark.parametrize("name", NEEDS)
def test_a_method_without_concepts(name: str):
    data, _ = planted()
    needed = "learns from concept labels" if name == "stochastic" else "needs a concept bank, and got none"
    with pytest.raises(UserError, match=f"method={name} {needed}"):
        create_method({"name": name}).build(data, None, 1.0)


@pytest.mark.parametrize("name", ["energy", "supervised"])
def test_a_loss_without_concept_labels(name: str):
    method = create_method({"name": name})
    with pytest.raises(UserError, match=rf"method={name} needs concept labels \[B, K\], and got none"):
        method.loss(None, torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("objective", ["l1", "contrastive", "gumbel"])
@pytest.mark.parametrize("fidelity", ["repaired", "paper", "released"])
def test_objectives_of_a_learned_layer_without_one(objective: str, fidelity: str):
    data, bank = planted()
    settings = {"name": "sparse", "objective": objective, "mixing": "identity", "fidelity": fidelity}
    with contextlib.suppress(UserError):  # one line, or it works
        method = create_method(settings)
        built = method.build(data, bank, 1.0)
        method.loss(built.model, data.train.x[:8], data.train.y[:8])
        method.finish(built, data)


def test_numbers_and_residuals_that_are_not_there():
    with pytest.raises(UserError, match="set 'red wing': the value is 'present'; expected a number"):
        _ = Edit("set", "red wing", "present").number
    data, bank = planted()
    model = create_method({"name": "posthoc", "lam": 0.01}).build(data, bank, 1.0).model
    with pytest.raises(UserError, match="has no residual"):
        residual_metrics(model, data.test)
