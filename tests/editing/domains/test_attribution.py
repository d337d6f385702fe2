"""Test-time editing on a planted shift: classes with known concepts, some of which another camera distorts."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from cbm.editing import EditSet, load_edits
from cbm.editing.domains.attribution import (
    Change,
    Plan,
    _ShiftTest,
    applied,
    interaction,
    plan_edits,
    shift_attribution,
)
from cbm.editing.domains.closed_forms import mean_shift
from cbm.editing.domains.concept_head import ConceptHead, EmbeddingConceptHead, LinearConceptHead
from cbm.editing.domains.source_card import source_statistics
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
        self.head = LinearConceptHead(self.weight, self.bias)
        self.source = source_statistics(*self.draw(2000), self.head)

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
        return plan_edits(a, y, self.head, self.source, **{"pivot": "zero", **settings})

    def accuracy(self, a, y, changes=()) -> float:
        return float((self.head(applied(a.double(), changes)).argmax(1) == y).double().mean())


@cache
def world(seed: int, heavy: bool = False) -> World:
    return World(seed, heavy)


def fresh(seed: int, draw: int, heavy: bool = False) -> World:
    """A known world, its next pictures drawn from another seed."""
    known = world(seed, heavy)
    known.generator.manual_seed(1000 + draw)
    return known


def test_errors_are_paid_for_by_the_shift():
    w = fresh(0, 0)
    a, y = w.draw(60, "shifted")
    a, row = a.double(), torch.arange(60)
    rival, delta = shift_attribution(a, y, w.head, w.source)
    z, usual = w.head(a), w.head(w.source.mean)
    expected = (usual[y, rival] - usual[y, y]) + delta.sum(1)
    torch.testing.assert_close(z[row, rival] - z[row, y], expected, rtol=0, atol=1e-10)
    assert not (rival == y).any()
    same = shift_attribution(a, y, ConceptHead(w.head), w.source)  # by occlusion
    torch.testing.assert_close(same, (rival, delta), rtol=0, atol=1e-10)
    assert interaction(a, y, ConceptHead(w.head), w.source) < 1e-10


def test_any_head_gets_the_plan_that_its_closed_form_gets_and_heads_that_mix_concepts_get_none():
    w = fresh(3, 7, heavy=True)
    a, y = w.draw(4 * C, "pinned")
    plan = w.plan(a, y)
    assert plan.changes
    assert plan_edits(a, y, ConceptHead(w.head), w.source, pivot="zero") == plan

    def products(p):  # decides by pairs of concepts alone
        sign = 2 * p - 1
        return 5 * torch.stack([sign[:, 2 * c] * sign[:, 2 * c + 1] for c in range(C)], dim=1)

    # classes c and concepts that agree in pairs: no concept says anything by itself
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % C
    first = torch.rand(400, C, generator=g) < 0.5
    second = torch.where(torch.nn.functional.one_hot(labels, C).bool(), first, ~first)
    p = torch.stack([first, second], dim=2).reshape(400, 2 * C).double() * 0.8 + 0.1
    head = ConceptHead(products)
    source = source_statistics(p, labels, head)
    moved = p[:20].clone()
    moved[:, 0] = 1.0
    plan = plan_edits(moved, labels[:20], head, source)
    assert plan.changes == ()
    assert plan.reason == "concepts cannot be blamed one by one: the head mixes them"


def test_without_a_shift_nothing_is_edited():
    identity = 0
    for seed in range(50):
        w = fresh(seed % 5, seed)
        identity += not w.plan(*w.draw(4 * C)).changes
    assert identity >= 45


def test_a_shift_is_taken_back():
    gains, masks = [], []
    for seed in range(20):
        w = fresh(seed, seed)
        support, test = w.draw(4 * C, "shifted"), w.draw(2000, "shifted")
        plan = w.plan(*support, guard="lenient")
        gains.append(w.accuracy(*test, plan.changes) - w.accuracy(*test))
        bad = {*w.raised.tolist(), *w.damped.tolist()}
        masks += [c.concepts[0] in bad for c in plan.changes if c.op == "mask"]
        assert plan.n == 20
        assert plan.hits[1] >= plan.hits[0] or not plan.changes
    assert sum(gains) / len(gains) >= 0.05
    assert sum(g < 0 for g in gains) <= 2
    assert len(masks) >= 10
    assert sum(masks) / len(masks) >= 0.75


@pytest.mark.parametrize(("guard", "least"), [("default", 16), ("strict", 18)])
def test_labels_that_say_nothing_are_not_believed(guard, least):
    identity = 0
    for seed in range(20):
        w = fresh(seed, 50 + seed)
        a, y = w.draw(4 * C, "shifted")
        identity += not w.plan(a, y[torch.randperm(len(y), generator=w.generator)], guard=guard).changes
    assert identity >= least


@pytest.mark.parametrize(("kind", "op"), [("pinned", "mask"), ("weak", "amplify")])
def test_the_concept_that_changed_is_the_one_that_is_edited(kind, op):
    plans = []
    for seed in range(20):
        w = fresh(seed, seed, heavy=True)
        plans.append(w.plan(*w.draw(4 * C, kind), guard="lenient"))
    made = [plan for plan in plans if plan.changes]
    assert len(made) >= 10
    assert {(plan.changes[0].op, plan.changes[0].concepts) for plan in made} == {(op, (0,))}


def test_scale_and_order_do_not_matter():
    w = fresh(3, 0, heavy=True)
    a, y = w.draw(4 * C, "pinned")
    plan = w.plan(a, y)
    assert plan.changes[0].op == "mask"
    louder = LinearConceptHead(10 * w.weight, 10 * w.bias)
    second = plan_edits(a, y, louder, source_statistics(w.source.a, w.source.y, louder), pivot="zero")
    assert [(c.op, c.concepts, c.gain) for c in second.changes] == [(c.op, c.concepts, c.gain) for c in plan.changes]
    # samples, concepts and classes in another order
    rows, columns, classes = (torch.randperm(n, generator=w.generator) for n in (len(a), K, C))
    head = LinearConceptHead(w.weight[classes][:, columns], w.bias[classes])
    place = classes.argsort()
    source = source_statistics(w.source.a[:, columns], place[w.source.y], head)
    third = plan_edits(a[rows][:, columns], place[y[rows]], head, source, pivot="zero")
    assert {(c.op, int(columns[c.concepts[0]]), c.gain) for c in third.changes} == {
        (c.op, c.concepts[0], c.gain) for c in plan.changes
    }
    protected = w.plan(a, y, protect=plan.changes[0].concepts)
    assert (plan.changes[0].op, plan.changes[0].concepts) not in [(c.op, c.concepts) for c in protected.changes]


def test_few_labels_and_missing_classes_are_flagged():
    w = fresh(1, 0)
    a, y = w.draw(4 * C, "shifted")
    assert w.plan(a, y).flags == ()
    assert w.plan(a[:C], y[:C]).flags == ("weak",)
    assert w.plan(a[y < 3], y[y < 3]).flags == ("classes missing",)
    assert w.plan(a[:1], y[:1]).changes == ()
    with pytest.raises(UserError, match="class 4 has 0 pictures in the source domain"):
        source_statistics(a[y < 4], y[y < 4], w.head)
    with pytest.raises(UserError, match="unknown guard 'strikt': did you mean 'strict'"):
        w.plan(a, y, guard="strikt")


def test_more_pictures_than_folds():
    w = fresh(3, 1, heavy=True)
    support = w.draw(60, "pinned")
    plan = w.plan(*support)
    assert (plan.changes[0].op, plan.changes[0].concepts) == ("mask", (0,))
    assert plan.hits[1] > plan.hits[0]
    assert not w.plan(*support, per_class=True).changes  # some class loses a picture by it


def test_the_approximate_shift_test_finds_what_the_exact_one_does(monkeypatch):
    w = fresh(2, 0, heavy=True)
    a, y = w.draw(8 * C, "pinned")
    a = a.double()
    exact = _ShiftTest(y, w.source, 0)
    monkeypatch.setattr("cbm.editing.domains.attribution.ROUND_NUMBERS", 0)
    rough = _ShiftTest(y, w.source, 0)
    assert rough.approximate
    assert not exact.approximate
    assert bool(rough.moved(a, y, rough.whole)[0])
    assert bool(exact.moved(a, y, exact.whole)[0])
    home = w.draw(8 * C)
    assert int(rough.moved(home[0].double(), home[1], rough.whole).sum()) <= 2
    assert w.plan(a, y).flags == ("approximate",)


def test_groups_are_edited_as_one_and_their_probabilities_still_sum_to_one():
    g = torch.Generator().manual_seed(0)
    groups = [[0, 1, 2], [3, 4, 5, 6], [7, 8]]
    base = torch.randn(C, 9, generator=g) * 1.5

    def draw(count, shift=0.0):
        y = torch.arange(count) % C
        logit = base[y] + 0.5 * torch.randn(count, 9, generator=g)
        logit[:, 4] += shift
        return torch.cat([logit[:, group].softmax(1) for group in groups], dim=1).double(), y

    a, y = draw(2000)
    centred = torch.linalg.lstsq(
        torch.cat([a, torch.ones(len(a), 1)], dim=1).double(), torch.nn.functional.one_hot(y, C).double()
    ).solution
    head = LinearConceptHead(20 * centred[:9].T, 20 * centred[9])
    source = source_statistics(*draw(1000), head)
    b, target = draw(8 * C, shift=5.0)
    plan = plan_edits(b, target, head, source, groups=groups, guard="lenient")
    assert plan.changes
    for change in plan.changes:
        assert list(change.concepts) in groups
    after = applied(b, plan.changes)
    for group in groups:
        torch.testing.assert_close(after[:, group].sum(1), torch.ones(len(b)).double(), rtol=0, atol=1e-6)


def test_a_masked_embedding_says_nothing_of_the_picture():
    g = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 6, K, 3, generator=g, dtype=torch.float64)
    matrix = torch.randn(C, K * 3, generator=g, dtype=torch.float64)
    p = torch.rand(6, K, generator=g, dtype=torch.float64)
    head = EmbeddingConceptHead(positive, negative, lambda e: e.flatten(1) @ matrix.T)
    by_hand = torch.stack(
        [
            sum(
                matrix[:, 3 * k : 3 * k + 3] @ (p[i, k] * positive[i, k] + (1 - p[i, k]) * negative[i, k])
                for k in range(K)
            )
            for i in range(6)
        ]
    )
    torch.testing.assert_close(head(p), by_hand)
    mean = 0.5 * (positive + negative).mean(dim=0)[[2]]
    other = positive.clone()
    other[:, 2] += 100.0
    before = EmbeddingConceptHead(other, negative, head.classifier)
    assert not torch.allclose(before(p), head(p))
    q = p.clone()
    q[:, 2] = 0.9
    assert torch.equal(before.masked([2], mean)(q), head.masked([2], mean)(p))
    some = head.take(torch.tensor([4, 1]))(p[[4, 1]])
    torch.testing.assert_close(some, head(p)[[4, 1]], rtol=1e-12, atol=1e-12)  # products of other sizes round otherwise


def test_a_plan_as_edits_gives_the_same_activations(tmp_path):
    w = fresh(3, 3, heavy=True)
    a, y = w.draw(4 * C, "weak")
    plan = w.plan(a, y, guard="lenient", pivot="target")
    edits = plan.edits([f"c{k}" for k in range(K)], "other camera")
    assert plan.changes
    assert isinstance(edits, EditSet)
    assert edits.domains == {"other camera"}
    edits.save(tmp_path / "edits.yaml")
    assert load_edits(tmp_path / "edits.yaml") == edits
    edited = a.clone().double()
    for edit in edits.edits:
        k = int(edit.concept[1:])
        edited[:, k] = {"set": edit.number, "scale": edited[:, k] * edit.number, "shift": edited[:, k] + edit.number}[
            edit.op
        ]
    torch.testing.assert_close(edited, applied(a.double(), plan.changes))


def test_changes_by_hand():
    a = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    mask = Change("mask", (0, 2), 0.0, (0.0, 0.0), (5.0, 6.0))
    double = Change("amplify", (1,), 2.0, (1.5,), (1.0,))
    assert applied(a, [mask, double]).tolist() == [[5.0, 2.0, 6.0]]
    assert [str(edit) for edit in double.edits(["x", "y", "z"], None, "why")] == [
        "scale 'y' to 2",
        "shift 'y' to -2",
    ]


def test_recentring_takes_back_the_mean():
    w = fresh(3, 4, heavy=True)
    a, y = w.draw(4 * C, "weak")
    centred = a + mean_shift(a, y, w.source.mean)
    means = torch.stack([centred[y == c].mean(0) for c in range(C)]).mean(0)
    torch.testing.assert_close(means, w.source.reference)
    many = [w.draw(count) for count in (100, 10_000)]
    few, more = (mean_shift(*each, w.source.mean).abs().max() for each in many)
    assert more < few
    assert more < 0.05
