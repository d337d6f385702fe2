"""Test-time editing on a planted shift: classes with known concepts, some of which another camera distorts."""

from dataclasses import dataclass

import pytest
import torch

from cbm.editing import EditSet
from cbm.editing.test_time import Plan, plan_edits, recentre, shift_attribution, source_card
from cbm.errors import UserError

C, K = 5, 20


@dataclass
class World:
    """Logits of concepts are 1.5 (2c - 1) + noise; p(c | class) is .25 or .75 (.05 or .95 of the heavy concept 0); a
    head fitted on probabilities. The shift is of concepts that the head reads."""

    seed: int
    heavy: bool = False

    def __post_init__(self):
        g = self.generator = torch.Generator().manual_seed(self.seed)
        self.p = torch.where(torch.rand(C, K, generator=g) < 0.5, 0.25, 0.75)
        if self.heavy:
            self.p[:, 0] = torch.tensor([0.05, 0.95])[torch.randperm(C, generator=g) % 2]
        self.factor = 0.3 + 1.2 * torch.rand(3, generator=g)
        x, y = self.draw(4000)
        head = torch.nn.Linear(K, C)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            head.reset_parameters()
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(x), y) + 1e-4 * head.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.weight, self.bias = head.weight.detach(), head.bias.detach()
        chosen = self.weight.abs().sum(dim=0).argsort(descending=True)[:8][torch.randperm(8, generator=g)]
        self.raised, self.damped = chosen[:3], chosen[3:6]
        self.card = source_card(*self.draw(2000), self.weight, self.bias)

    def draw(self, count: int, kind: str = "source"):
        g = self.generator
        y = torch.arange(count) % C
        concepts = (torch.rand(count, K, generator=g) < self.p[y]).float()
        logit = 1.5 * (2 * concepts - 1) + torch.randn(count, K, generator=g)
        if kind == "shifted":
            logit[:, self.raised] += 3.5
            logit[:, self.damped] *= self.factor
        a = logit.sigmoid()
        if kind == "pinned":
            a[:, 0] = 1.0
        if kind == "weak":
            a[:, 0] *= 0.2
        return a, y

    def plan(self, a, y, **settings) -> Plan:
        return plan_edits(a, y, self.weight, self.bias, self.card, **{"pivot": "zero", **settings})

    def accuracy(self, a, y, changes=()) -> float:
        edited = a.clone().double()
        for c in changes:
            edited[:, c.concept] = c.gain * (edited[:, c.concept] - c.pivot) + c.level
        return float(((edited @ self.weight.double().T + self.bias.double()).argmax(1) == y).double().mean())


def test_errors_are_paid_for_by_the_shift():
    world = World(0)
    a, y = world.draw(60, "shifted")
    a, weight, bias = a.double(), world.weight.double(), world.bias.double()
    rival, delta, _ = shift_attribution(a, y, weight, bias, world.card)
    z, row = a @ weight.T + bias, torch.arange(60)
    usual = world.card.mean @ weight.T + bias
    expected = (usual[y, rival] - usual[y, y]) + delta.sum(1)
    torch.testing.assert_close(z[row, rival] - z[row, y], expected, rtol=0, atol=1e-10)
    assert not (rival == y).any()
    for j in range(K):  # by occlusion: the concept at the mean of the true class
        at_mean = a.clone()
        at_mean[:, j] = world.card.mean[y, j]
        z_ = at_mean @ weight.T + bias
        by_occlusion = (z[row, rival] - z[row, y]) - (z_[row, rival] - z_[row, y])
        torch.testing.assert_close(delta[:, j], by_occlusion, rtol=0, atol=1e-10)


def test_without_a_shift_nothing_is_edited():
    nothing = 0
    for seed in range(20):
        world = World(seed % 5)
        world.generator.manual_seed(1000 + seed)
        nothing += not world.plan(*world.draw(4 * C)).changes
    assert nothing >= 18


def test_a_shift_is_taken_back_and_labels_that_say_nothing_are_not_believed():
    gains, masks, identity = [], [], 0
    for seed in range(12):
        world = World(seed)
        support, test = world.draw(4 * C, "shifted"), world.draw(2000, "shifted")
        plan = world.plan(*support, guard="lenient")
        gains.append(world.accuracy(*test, plan.changes) - world.accuracy(*test))
        bad = {*world.raised.tolist(), *world.damped.tolist()}
        masks += [c.concept in bad for c in plan.changes if c.op == "mask"]
        assert plan.n == 20
        assert plan.hits[1] >= plan.hits[0] or not plan.changes
        shuffled = support[1][torch.randperm(20, generator=world.generator)]
        identity += not world.plan(support[0], shuffled).changes
    assert sum(gains) / len(gains) >= 0.05
    assert sum(g < 0 for g in gains) <= 1
    assert len(masks) >= 5
    assert sum(masks) / len(masks) >= 0.75
    assert identity >= 10


@pytest.mark.parametrize(("kind", "op"), [("pinned", "mask"), ("weak", "amplify")])
def test_the_concept_that_changed_is_the_one_that_is_edited(kind, op):
    plans = []
    for seed in range(10):
        world = World(seed, heavy=True)
        plans.append(world.plan(*world.draw(4 * C, kind), guard="lenient"))
    made = [plan for plan in plans if plan.changes]
    for plan in made:
        assert plan.changes[0].concept == 0
    assert len(made) >= 5
    assert all(plan.changes[0].op == op for plan in made)


def test_scale_and_order_do_not_matter():
    world = World(3, heavy=True)
    a, y = world.draw(4 * C, "pinned")
    plan = world.plan(a, y)
    assert plan.changes[0].op == "mask"
    source = world.draw(2000)
    card = source_card(*source, world.weight, world.bias)
    louder = source_card(*source, 10 * world.weight, 10 * world.bias)
    first = plan_edits(a, y, world.weight, world.bias, card)
    second = plan_edits(a, y, 10 * world.weight, 10 * world.bias, louder)
    assert [(c.op, c.concept, c.gain) for c in first.changes] == [(c.op, c.concept, c.gain) for c in second.changes]
    order = torch.randperm(len(a), generator=world.generator)
    assert {(c.op, c.concept) for c in world.plan(a[order], y[order]).changes} == {
        (c.op, c.concept) for c in plan.changes
    }
    protected = world.plan(a, y, protect=[plan.changes[0].concept])
    assert (plan.changes[0].op, plan.changes[0].concept) not in [(c.op, c.concept) for c in protected.changes]


def test_few_labels_and_missing_classes():
    world = World(1)
    a, y = world.draw(4 * C, "shifted")
    world.plan(a[:C], y[:C])  # one picture each
    world.plan(a[y < 3], y[y < 3])
    assert world.plan(a[:1], y[:1]).changes == ()
    with pytest.raises(UserError, match="class 4 has 0 pictures in the source domain"):
        source_card(a[y < 4], y[y < 4], world.weight, world.bias)


def test_a_plan_as_edits_gives_the_same_activations_and_recentring_takes_back_the_mean():
    world = World(3, heavy=True)
    a, y = world.draw(4 * C, "weak")
    plan = world.plan(a, y, guard="lenient", pivot="target")
    edits = plan.edits([f"c{k}" for k in range(K)], "other camera")
    assert plan.changes
    assert isinstance(edits, EditSet)
    edited = a.clone().double()
    for edit in edits.edits:
        k = int(edit.concept[1:])
        edited[:, k] = {"set": edit.number, "scale": edited[:, k] * edit.number, "shift": edited[:, k] + edit.number}[
            edit.op
        ]
    by_hand = a.clone().double()
    for c in plan.changes:
        by_hand[:, c.concept] = c.gain * (by_hand[:, c.concept] - c.pivot) + c.level
    torch.testing.assert_close(edited, by_hand)
    centred = a + recentre(a, y, world.card)
    means = torch.stack([centred[y == c].mean(0) for c in range(C)]).mean(0)
    torch.testing.assert_close(means, world.card.reference)
