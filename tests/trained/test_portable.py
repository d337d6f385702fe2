import pytest
import torch
from small_bottleneck import C, D, K, bottleneck

from cbm.errors import UserError
from cbm.layers import Cube, EnergyBottleneck, Largest, LinearProbe, Sigmoid, TopK, UnitCode, Valued
from cbm.solvers.concept_blocks import ConceptBlocks
from cbm.trained.portable import PortableModel

OFFSET = torch.linspace(-0.3, 0.3, K)
ATOMS, MEAN, LEAST = torch.eye(K, D), torch.full((D,), 0.1), torch.linspace(0, 0.2, K)
UNITS = [UnitCode(OFFSET, MEAN, LEAST, ATOMS, 3), UnitCode(OFFSET, MEAN, LEAST, ATOMS, 3, LEAST),
         UnitCode(OFFSET, MEAN, LEAST, ATOMS, 0, LEAST), UnitCode(OFFSET, MEAN, LEAST, ATOMS, K + 5)]  # fmt: skip
# values that stand apart, numbers and steps; values alone; numbers alone
NUMBER, GROUP = torch.tensor([k in (2, 6) for k in range(K)]), torch.tensor([0, -1, -1, 1, 0, 1, -1, 0, -1])
KINDS = [(NUMBER, GROUP), (torch.zeros(K, dtype=torch.bool), torch.arange(K) % 2), (torch.ones(K) > 0, -torch.ones(K))]
VALUED = [Valued(OFFSET, number, group.long()) for number, group in KINDS]
ACTIVATIONS = [None, TopK(OFFSET, 3), Largest(OFFSET), Cube(OFFSET), Sigmoid(OFFSET), *VALUED, *UNITS]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_logits_and_concepts_are_those_of_the_model(activation, residual: bool):
    model, x = bottleneck(activation)
    if residual:
        model.residual = LinearProbe(torch.randn(C, D), torch.randn(C)).requires_grad_(False)
    lengths = torch.rand(len(x), 1) + 0.5
    torch.testing.assert_close(PortableModel(model)(lengths * x), model.logits(x))
    logits, values, indices = PortableModel(model, top_k=5)(lengths * x)
    torch.testing.assert_close(logits, model.logits(x))
    scores = model.scores(x) - (0 if activation is None else activation.offset)
    assert indices.tolist() == scores.topk(5).indices.tolist()
    torch.testing.assert_close(values, model.activations(x).gather(1, indices))


def test_a_linear_bottleneck_becomes_its_class_vectors():
    module = PortableModel(bottleneck()[0])
    assert {name: list(t.shape) for name, t in module.state_dict().items()} == {"bias": [C], "vectors": [C, D]}


def test_a_linear_probe_has_no_concepts():
    probe = LinearProbe(torch.randn(C, D), torch.randn(C))
    x = torch.nn.functional.normalize(torch.randn(6, D), dim=1)
    torch.testing.assert_close(PortableModel(probe)(x), probe(x).detach())
    with pytest.raises(UserError, match="no concepts"):
        PortableModel(probe, top_k=2)


def test_what_cannot_be_had():
    with pytest.raises(UserError, match=f"top_k={K + 1}: expected 1 to {K}"):
        PortableModel(bottleneck()[0], top_k=K + 1)
    blocks = ConceptBlocks(2, torch.tensor([[0.0], [1.0]]).expand(2, 2, 1), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(UserError, match="EnergyBottleneck decides by inference"):
        PortableModel(EnergyBottleneck(D, C, blocks, hidden=4))
