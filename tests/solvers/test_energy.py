import pytest
import torch
from ising import ising
from torch.nn.functional import normalize

from cbm.layers.energy import EnergyBottleneck
from cbm.losses.energy import complete_states, concept_loss, conditional_loss, disturb, pseudo_likelihood
from cbm.solvers.concept_blocks import concept_blocks, exclusive_groups
from cbm.solvers.concept_distribution import from_joint, from_labels, from_pictures
from cbm.solvers.energy import JointEnergy, _direct, _free_energy, _Picture, _relaxed, infer

NAN = float("nan")


def problem(groups=(), optional=(), k=6, m=3, h=10, n=7, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    blocks = concept_blocks(k, groups, optional)
    joint = JointEnergy(*(torch.randn(s, generator=g, dtype=dtype) for s in ((k, h), (h,), (m, h))), blocks)
    scores, logits = torch.randn(n, m, generator=g, dtype=dtype), torch.randn(n, k, generator=g, dtype=dtype)
    return scores, logits, joint.times(0.4)


def brute(class_score, concept_logit, joint, clamp=None):
    """p(y | x), p(c_k | x) and the lowest energy, by a loop over everything in float64."""
    n, m = class_score.shape
    classes, concepts, lowest = torch.zeros(n, m).double(), torch.zeros_like(concept_logit).double(), []
    for i in range(n):
        scores, keys = [], []
        for c in joint.blocks.all_vectors():
            if clamp is not None and any(a == a and a != b for a, b in zip(clamp[i].tolist(), c.tolist())):
                continue
            hidden = (joint.origin + sum(c[k] * joint.steps[k] for k in range(len(c)))).double().relu()
            for y in range(m):
                energy = float(hidden @ joint.classes[y].double())
                scores.append(float(class_score[i, y] + (c * concept_logit[i]).sum()) - energy)
                keys.append((c, y))
        for p, (c, y) in zip(torch.tensor(scores).double().softmax(0), keys):
            classes[i, y] += p
            concepts[i] += p * c.double()
        lowest.append(-max(scores))
    return classes, concepts, torch.tensor(lowest)


GROUPS = {"single concepts": ((), ()), "groups": (((0, 2, 4), (1, 5)), (False, True))}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("clamped", [False, True])
def test_every_method_comes_to_the_answer_of_enumeration(kind, clamped):
    scores, logits, joint = problem(*GROUPS[kind])
    clamp = None
    if clamped:
        clamp = torch.full_like(logits, NAN)
        clamp[:, 3], clamp[::2, 1], clamp[1, 4] = 1.0, 0.0, 1.0
    classes, concepts, lowest = brute(scores, logits, joint, clamp)
    exact = infer(scores, logits, joint, method="enumerate", clamp=clamp)
    torch.testing.assert_close(exact.class_probability.double(), classes, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.concept_probability.double(), concepts, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.energy, lowest, atol=1e-4, rtol=1e-5)
    for method, setting in (("importance", {"samples": 4096}), ("gibbs", {"sweeps": 800})):
        found = infer(scores, logits, joint, method=method, clamp=clamp, **setting)
        assert (found.class_probability - exact.class_probability).abs().max() < 0.03, method
        assert (found.concept_probability - exact.concept_probability).abs().max() < 0.03, method
    direct = infer(scores, logits, joint, method="direct", clamp=clamp)
    for method in ("direct", "icm", "relaxed", "importance", "gibbs"):
        found = infer(scores, logits, joint, method=method, clamp=clamp)
        assert (found.energy >= exact.energy - 1e-4).all(), method
        torch.testing.assert_close(found.class_probability.sum(1), torch.ones(7))
        if method == "icm":
            assert (found.energy <= direct.energy + 1e-5).all()
        if clamp is not None:
            known = ~clamp.isnan()
            assert torch.equal(found.concept_probability[known], clamp[known])
            assert torch.equal(found.concepts[known], clamp[known])


def test_mean_field_ends_below_where_it_began():
    scores, logits, joint = problem(n=40)
    picture = _Picture(scores, joint.blocks.of_values(logits), joint)
    began = _free_energy(picture, picture.value_logit, _direct(picture)[0].log())
    classes, values, _, _ = _relaxed(picture)
    ended = _free_energy(picture, values.log(), classes.log())
    assert (ended <= began + 1e-4).all()
    assert (ended < began - 0.01).float().mean() > 0.5


@pytest.mark.parametrize("method", ["auto", "direct", "importance", "gibbs", "relaxed"])
def test_half_precision_agrees(method):
    torch.manual_seed(0)
    model = EnergyBottleneck(32, 5, concept_blocks(20, []), hidden=16).eval()
    x = torch.randn(40, 32)
    whole = model.infer(x, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.infer(x, method=method)
    assert half.class_probability.isfinite().all()
    assert (half.class_probability - whole.class_probability).abs().mean() < 0.02
    assert (half.concept_probability - whole.concept_probability).abs().mean() < 0.02


def test_without_a_global_energy_every_method_is_the_direct_readout():
    scores, logits, joint = problem()
    direct = infer(scores, logits, joint.times(0), method="direct")
    torch.testing.assert_close(direct.concept_probability, logits.sigmoid())
    assert torch.equal(direct.classes, scores.argmax(1))
    for method, close in (("icm", None), ("relaxed", 1e-3), ("enumerate", 1e-5), ("importance", 0.05), ("gibbs", 1e-5)):
        found = infer(scores, logits, joint.times(0), method=method)
        if method in ("icm", "relaxed", "enumerate"):
            assert torch.equal(found.classes, direct.classes)
            assert torch.equal(found.concepts, direct.concepts)
        if close:
            assert (found.concept_probability - direct.concept_probability).abs().max() < close, method
            assert (found.class_probability - direct.class_probability).abs().max() < 0.05, method


@pytest.mark.parametrize("method", ["direct", "importance", "gibbs", "icm", "relaxed", "enumerate"])
def test_a_picture_does_not_know_its_batch(method, monkeypatch):
    scores, logits, joint = problem(n=9)
    whole = infer(scores, logits, joint, method=method)
    order = torch.tensor([4, 1, 8])
    part = infer(scores[order], logits[order], joint, method=method)
    torch.testing.assert_close(part.concept_probability, whole.concept_probability[order])
    torch.testing.assert_close(part.class_probability, whole.class_probability[order])
    monkeypatch.setattr("cbm.solvers.energy.HIDDEN_AT_ONCE", 1)  # a picture at a time
    alone = infer(scores, logits, joint, method=method)
    torch.testing.assert_close(alone.concept_probability, whole.concept_probability)


def test_only_the_given_vectors_are_considered_and_the_nearest_one_stands_in():
    scores, logits, joint = problem()
    vectors = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]])
    found = infer(scores, logits, joint, vectors=vectors)
    assert all(row in vectors.tolist() for row in found.concepts.tolist())
    clamp = torch.full_like(logits, NAN)
    clamp[:, :3] = torch.tensor([1.0, 0.0, 1.0])  # no vector is like that; the first misses one concept only
    found = infer(scores, logits, joint, vectors=vectors, clamp=clamp)
    assert found.concepts.tolist() == [[1, 0, 1, 1, 0, 0]] * len(logits)


def test_what_cannot_be_asked():
    scores, logits, joint = problem(((0, 1, 2),))
    clamp = torch.full_like(logits, NAN)
    clamp[2, :2] = 1
    with pytest.raises(ValueError, match="row 2 contradicts itself among concepts 0, 1, 2"):
        infer(scores, logits, joint, clamp=clamp)
    with pytest.raises(ValueError, match="expected one of auto, direct"):
        infer(scores, logits, joint, method="guess")
    for wrong in ((scores, logits[:, :4]), (scores[:, :2], logits), (scores[:3], logits)):
        with pytest.raises(ValueError, match="do not fit"):
            infer(*wrong, joint)
    with pytest.raises(ValueError, match="to enumerate"):
        infer(*problem(k=13), method="enumerate")
    with pytest.raises(ValueError, match="do not divide"):
        concept_blocks(4, [[0, 1], [1, 2]])


def test_groups_are_what_the_labels_say():
    c = torch.tensor([[1.0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0]])
    assert exclusive_groups(c, [[0, 1], [2, 3], [4]]) == ([[0, 1]], [False])
    c[0, 0] = 0
    assert exclusive_groups(c, [[0, 1]]) == ([[0, 1]], [True])
    blocks = concept_blocks(5, [[0, 1]], [True])
    assert blocks.size == 3 * 2**3
    assert torch.equal(blocks.concepts(blocks.states(c)), c)
    assert len(blocks.all_vectors().unique(dim=0)) == blocks.size


def test_the_fast_energies_are_the_published_ones():
    torch.manual_seed(0)
    m = EnergyBottleneck(5, 4, concept_blocks(3), hidden=8).eval()
    m.class_table.data[1] = 0  # a vector without a direction
    x, c = torch.randn(6, 5), torch.tensor([1.0, 0, 1])
    u, v = normalize(m.class_table, dim=1), normalize(m.concept_table, dim=2)
    a_class, a_concept = m.to_class(x), m.to_concept(x)
    e_class = torch.stack([(a_class + a_class * u[j]).relu() @ m.class_scorer for j in range(4)], 1)
    torch.testing.assert_close((-m.class_scores(x)).diff(dim=1), e_class.diff(dim=1), atol=1e-5, rtol=1e-5)
    e = [[(a_concept + a_concept * v[k, j]).relu() @ m.concept_scorer[k] for j in (0, 1)] for k in range(3)]
    logits = torch.stack([absent - present for absent, present in e], 1)
    torch.testing.assert_close(m.concept_logits(x), logits, atol=1e-5, rtol=1e-5)
    p = m.origin + c @ m.steps
    e_global = torch.stack([(p + p * u[j]).relu() @ m.joint_scorer for j in range(4)])
    torch.testing.assert_close(m.joint()(c), e_global, atol=1e-5, rtol=1e-5)


def test_losses_are_what_a_loop_says_and_leave_labels_alone():
    torch.manual_seed(0)
    scores, logits, joint = problem(((0, 1, 2),), (False,), n=4)
    blocks = joint.blocks
    y, c = torch.tensor([0, 2, 1, 1]), blocks.all_vectors()[[0, 5, 9, 17]]
    total = 0.0
    for i in range(4):
        total -= len(blocks.values) * float((-joint(c[i])).log_softmax(0)[y[i]])
        for row, allowed in zip(blocks.values.tolist(), blocks.allowed.tolist()):
            options = [k for k, fine in zip(row, allowed) if fine]
            energies = []
            for k in options:
                tried = torch.cat([c[i], torch.zeros(1)])
                tried[options] = 0.0
                tried[k] = 1.0
                energies.append(-joint(tried[:6])[y[i]])
            own = [j for j, k in enumerate(options) if k < 6 and c[i, k] == 1] or [options.index(6)]
            total -= float(torch.stack(energies).log_softmax(0)[own[0]])
    states = complete_states(c, logits, blocks)
    assert float(pseudo_likelihood(joint, states, y)) == pytest.approx(total / 4, rel=1e-5)

    known = c.clone()
    known[0, 3], known[1, :2] = NAN, NAN
    before = known.clone()
    loss = concept_loss(logits, known, blocks)
    p, q = logits[:, :3].softmax(1), logits[:, 3:].sigmoid()
    terms = []
    for i in range(4):
        allowed = [k for k in range(3) if known[i, k] == 1] or [k for k in range(3) if known[i, k] != 0]
        terms.append(p[i, allowed].sum().log())
        terms += [
            (q[i, k] if known[i, 3 + k] == 1 else 1 - q[i, k]).log() for k in range(3) if not known[i, 3 + k].isnan()
        ]
    assert float(loss) == pytest.approx(-float(torch.stack(terms).sum()) / 16, rel=1e-5)
    for dtype in (torch.int64, torch.float32, torch.bool):
        labels = c.to(dtype)
        conditional_loss(joint, labels.float(), y)
        assert torch.equal(labels, c.to(dtype))
    assert torch.equal(known.nan_to_num(7), before.nan_to_num(7))
    assert torch.equal(disturb(states, blocks, 0.0), states)
    assert not (disturb(states, blocks, 1.0) == states).any()


def test_conditional_probabilities_agree_with_each_other_and_with_sampling():
    _, logits, joint = problem(((0, 1, 2),), (True,))
    exact, drawn = from_joint(joint), from_joint(joint, samples=8000, enumerable=0)
    a, b = exact.concept_given_class(), drawn.concept_given_class()
    assert (a - b).abs().max() < 0.03
    for m in range(3):
        pairs = exact.pairs_given_class(m)
        torch.testing.assert_close(pairs.diagonal(), torch.ones(6))
        torch.testing.assert_close(pairs * a[m][:, None], (pairs * a[m][:, None]).T)  # p(i) p(j | i) is symmetric
        assert (pairs - drawn.pairs_given_class(m)).abs().max() < 0.08
        vectors, p = exact.vectors_given_class(m, top=1000)
        torch.testing.assert_close(p @ vectors, a[m])
    torch.testing.assert_close(exact.class_probability() @ a, exact.concept_probability())
    assert exact.pairs()[0, 1] == 0  # a group excludes
    seen = from_pictures(logits, joint.times(0), samples=4000)
    alone = torch.cat([torch.cat([torch.zeros(7, 1), logits[:, :3]], 1).softmax(1)[:, 1:], logits[:, 3:].sigmoid()], 1)
    assert (seen.concept_probability() - alone.mean(0)).abs().max() < 0.01
    counted = from_labels(torch.tensor([[1, 0], [1, 1], [0, 1]]), torch.tensor([0, 0, 1]), 2)
    assert counted.concept_given_class().tolist() == [[1.0, 0.5], [0.0, 1.0]]
    assert counted.pairs()[0].tolist() == [1.0, 0.5]


def fitted(seed: int, objective: str, steps: int, lr: float, rows: int) -> EnergyBottleneck:
    x, c, y = ising(seed).draw(8000, seed)
    torch.manual_seed(seed)
    model = EnergyBottleneck(16, 4, concept_blocks(8), hidden=64, mean=x.mean(0), std=x.std(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (rows,))
        logits = model.concept_logits(x[chosen])
        loss = torch.nn.functional.cross_entropy(model.class_scores(x[chosen]), y[chosen])
        loss = loss + concept_loss(logits, c[chosen], model.blocks)
        if objective == "joint":
            loss = loss + pseudo_likelihood(model.joint(), complete_states(c[chosen], logits, model.blocks), y[chosen])
        else:
            loss = loss + conditional_loss(model.joint(), c[chosen], y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trained_together_concepts_move_their_partners_and_trained_as_released_they_do_not_know_each_other(seed):
    world = ising(seed)
    truth = (world.log_prior - world.log_prior.logsumexp(0)).exp().T.float()  # p(c | y) [M, U]
    order = (world.vectors @ 2.0 ** torch.arange(8)).long()
    distance = {}
    models = {
        "joint": fitted(seed, "joint", steps=300, lr=1.5e-2, rows=256),
        "conditional": fitted(seed, "conditional", steps=200, lr=5e-3, rows=512),
    }
    for name, model in models.items():
        learned = from_joint(model.joint())
        mine = (learned.weights / learned.weights.sum(1, keepdim=True))[
            :, (learned.vectors @ 2.0 ** torch.arange(8)).long().argsort()
        ][:, order]
        distance[name] = float((mine - truth).abs().sum(1).mean() / 2)
    assert distance["joint"] < 0.10
    assert distance["conditional"] > 0.5

    model = models["joint"]
    x, c, _ = world.draw(500, 99)
    free = model.infer(x)
    for (known, partner), sign in {(0, 1): 1, (4, 5): -1}.items():
        clamp = torch.full_like(c, NAN)
        clamp[:, known] = c[:, known]
        told = model.infer(x, clamp=clamp)
        move = (told.concept_probability - free.concept_probability)[:, partner]
        true_move = world.posterior(x, clamp)[0] - world.posterior(x)[0]
        should = true_move[:, partner]
        # concepts 6 and 7 are coupled to none: they move by way of the class alone, as they truly do and by no more
        apart = (told.concept_probability - free.concept_probability)[:, 6:].abs().mean()
        assert apart < true_move[:, 6:].abs().mean() + 0.01
        assert apart < move.abs().mean() / 3
        drawn = [model.infer(x, method="importance", samples=1024, clamp=c_) for c_ in (None, clamp)]
        sampled = (drawn[1].concept_probability - drawn[0].concept_probability)[:, partner]
        assert ((sampled > 0) == (move > 0)).float().mean() >= 0.95
        assert ((move > 0) == (should > 0)).float().mean() >= 0.95
        assert ((move > 0) == (sign * (c[:, known] - 0.5) > 0)).float().mean() >= 0.95
        right = [(p.concepts[:, partner] == c[:, partner]).float().mean() for p in (free, told)]
        assert right[1] >= right[0] + 0.02
        clamp[:, known] = 1 - c[:, known]
        lied = (model.infer(x, clamp=clamp).concept_probability - free.concept_probability)[:, partner]
        assert ((lied > 0) != (should > 0)).float().mean() >= 0.95
    everything = model.infer(x, clamp=c, leaky=True)
    assert torch.equal(everything.classes, (model.class_scores(x) - model.joint()(c)).argmax(1))
