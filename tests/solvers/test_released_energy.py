import torch
from torch.nn.functional import normalize

from cbm.layers.energy import ReleasedEnergyBottleneck
from cbm.solvers.concept_blocks import concept_blocks
from cbm.solvers.released_energy import released_inference


def model(seed: int = 0) -> ReleasedEnergyBottleneck:
    torch.manual_seed(seed)
    return ReleasedEnergyBottleneck(5, 4, concept_blocks(6), hidden=8).eval().requires_grad_(False)


def literal(m, x, clamp=None):
    """The published loop with all its vectors, one batch."""
    b, a, count = torch.zeros(len(x), 4), torch.zeros(len(x), 6, 2), 0
    p = b.softmax(1)
    for weights in [(1, 1, 0.01)] + ([] if clamp is None else [(0, 0, 3)]):
        if count:
            a = torch.where(clamp.isnan()[..., None], a, torch.stack([5 - 10 * clamp, 10 * clamp - 5], 2))
            b = torch.zeros(len(x), 4)
        b.requires_grad_()
        a = a.detach().requires_grad_()
        optimizer = torch.optim.Adam([b, a], lr=0.1)
        best, waited = float("inf"), 0
        while waited < 10:
            p, q = b.softmax(1), a.softmax(2)
            u = normalize(p @ m.class_table, dim=1)
            v = normalize(torch.einsum("bkj,kjh->bkh", q, m.concept_table), dim=2)
            ay, ac = m.to_class(x), m.to_concept(x)
            e_class = ((ay * (1 + u)).relu() @ m.class_scorer).mean()
            e_concept = ((ac[:, None] * (1 + v)).relu() * m.concept_scorer).sum(2).mean(0).sum()
            hidden = m.joint().hidden((q[..., 1] > 0.5).float())
            e_both = ((hidden * (1 + u)).relu() @ m.joint_scorer).mean()
            optimizer.zero_grad()
            (weights[0] * e_class + weights[1] * e_concept + weights[2] * e_both).backward()
            optimizer.step()
            count += 1
            linear = (m.to_class(x).relu() * m.class_scorer * u).sum(1).mean().item()  # E_class but for its constant
            best, waited = (linear, 0) if linear < best - 1 else (best, waited + 1)
        a, b = a.detach(), b.detach()
    return b.softmax(1), a.softmax(2)[..., 1], count


def test_inner_products_make_the_same_steps_as_the_vectors():
    m, x = model(), torch.randn(9, 5)
    clamp = torch.full((9, 6), float("nan"))
    clamp[:, 2], clamp[::2, 4] = 1.0, 0.0
    for told in (None, clamp):
        classes, concepts, steps = released_inference(m.released_energies(x), told)
        reference = literal(m, x, told)
        assert steps == reference[2] >= (11 if told is None else 22)
        torch.testing.assert_close(classes, reference[0], atol=1e-4, rtol=1e-3)
        free = torch.ones(9, 6, dtype=torch.bool) if told is None else told.isnan()
        torch.testing.assert_close(concepts[free], reference[1][free], atol=1e-4, rtol=1e-3)


def test_what_is_told_moves_no_other_concept_and_the_class_is_then_that_of_the_global_energy():
    m, x = model(1), torch.randn(7, 5)
    clamp = torch.full((7, 6), float("nan"))
    clamp[:, :3] = (torch.rand(7, 3) < 0.5).float()
    free, told = m.infer(x), m.infer(x, clamp=clamp)
    assert torch.equal(free.concept_probability[:, 3:], told.concept_probability[:, 3:])
    assert torch.equal(told.concepts[:, :3], clamp[:, :3])
    repaired = m.infer(x, clamp=clamp, method="enumerate")  # any named method is that of the repaired energies
    assert not torch.equal(free.concept_probability[:, 3:], repaired.concept_probability[:, 3:])
    assert (m.joint()(told.concepts).argmin(1) == told.classes).float().mean() >= 0.5


def test_strict_is_told_from_the_concepts_alone():
    """Whatever the class energy says, also if no concept is known; as published it decides then."""
    m, x = model(2), torch.randn(30, 5)
    strict, published = m.infer(x, leaky=False), m.infer(x)
    assert torch.equal(published.class_probability, m.infer(x, leaky=True).class_probability)
    nothing = torch.full((30, 6), float("nan"))
    assert torch.equal(strict.class_probability, m.infer(x, clamp=nothing).class_probability)
    with torch.no_grad():
        m.class_scorer.mul_(-1)  # the opposite opinion of the image, and nothing else
    assert float((m.infer(x).class_probability - published.class_probability).abs().max()) > 0.01
    again = m.infer(x, leaky=False)
    same = (again.concepts == strict.concepts).all(1)
    assert same.sum() > 20
    torch.testing.assert_close(again.class_probability[same], strict.class_probability[same], atol=2e-3, rtol=0)
