import copy

import torch
from torch.nn.functional import cross_entropy, normalize

from cbm.layers import AssociationHead, ConceptBottleneck
from cbm.solvers import AssociationAdam


def make(seed: int = 0, classes: int = 4, concepts: int = 30, dims: int = 8):
    g = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(concepts, dims, generator=g), dim=1)
    model = ConceptBottleneck(
        text, AssociationHead(torch.randn(classes, concepts, generator=g)), scale=20.0, learn_scale=True
    ).double()
    x = normalize(torch.randn(60, dims, generator=g).double(), dim=1)
    return model, x, torch.randint(classes, (60,), generator=g)


def parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_training_is_that_of_adam():
    model, x, y = make()
    other = copy.deepcopy(model)
    ours = AssociationAdam(model.head, parameters(model), lr=0.05)
    theirs = torch.optim.Adam(parameters(other), lr=0.05)
    for rows in torch.arange(60).split(20) * 4:
        for each, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            cross_entropy(each(x[rows]), y[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(model.head.logits, other.head.logits)
    torch.testing.assert_close(model.log_scale, other.log_scale)
    assert model.head.logits.grad is None
    mine, known = ours.state[model.head.logits], theirs.state[other.head.logits]  # checkpoints say the same
    assert mine.keys() == known.keys()
    for key in known:
        torch.testing.assert_close(mine[key], known[key])


def test_micro_batches_add_up():
    model, x, y = make()
    other = copy.deepcopy(model)
    whole, parts = (AssociationAdam(m.head, parameters(m), lr=0.05) for m in (model, other))
    for _ in range(3):
        cross_entropy(model(x), y).backward()
        whole.step()
        whole.zero_grad()
        for rows in torch.arange(60).split(15):
            (cross_entropy(other(x[rows]), y[rows]) / 4).backward()
        parts.step()
        parts.zero_grad()
    torch.testing.assert_close(model.head.logits, other.head.logits)


def test_a_closure_may_clear_gradients_between_its_passes():
    """Lightning's closure goes forward, clears the gradients, and goes backward."""
    model, x, y = make()
    other = copy.deepcopy(model)
    ours, theirs = (AssociationAdam(m.head, parameters(m), lr=0.05) for m in (model, other))

    def closure():
        loss = cross_entropy(model(x), y)
        ours.zero_grad()
        loss.backward()
        return loss

    for _ in range(3):
        ours.step(closure)
        cross_entropy(other(x), y).backward()
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(model.head.logits, other.head.logits)


def test_going_on_from_a_state_is_going_on():
    model, x, y = make()
    ours = AssociationAdam(model.head, parameters(model), lr=0.05)

    def train(model, optimizer, steps):
        for _ in range(steps):
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    train(model, ours, 2)
    other = copy.deepcopy(model)
    resumed = AssociationAdam(other.head, parameters(other), lr=0.05)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    train(model, ours, 2)
    train(other, resumed, 2)
    assert torch.equal(model.head.logits, other.head.logits)


def test_what_is_only_looked_at_waits_for_no_gradient():
    model, x, _ = make()
    AssociationAdam(model.head, parameters(model), lr=0.05)
    with torch.no_grad():
        model(x)
    assert model.head.pending == []
    before = model(x)
    assert len(model.head.pending) == 1
    torch.testing.assert_close(before, model.logits(x))
