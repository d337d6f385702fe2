"""Merging concepts that score alike: against a slow reference, and what is promised whatever the scores are."""

import pytest
import torch

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.sharing import covering_merges, score_likeness, share_concepts


def slow_merges(likeness, owners, cutoff):
    """The published order, written out: the concept that covers most others that are left takes them."""
    left = [k for k in range(len(likeness)) if owners[:, k].any()]
    found = []
    while left:
        covered = {k: [j for j in left if j != k and likeness[k, j] >= cutoff] for k in left}
        head = max(left, key=lambda k: (len(covered[k]), -k))
        if not covered[head]:
            break
        found.append((head, sorted(covered[head], key=lambda j: (-float(likeness[head, j]), j))))
        left = [k for k in left if k != head and k not in covered[head]]
    return found


def random_problem(seed, count=24, classes=5):
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(60, 6, generator=draw)
    scores = base[:, torch.randint(0, 6, (count,), generator=draw)] + 0.4 * torch.randn(60, count, generator=draw)
    owners = torch.zeros(classes, count, dtype=torch.bool)
    owners[torch.randint(0, classes, (count,), generator=draw), torch.arange(count)] = True
    owners[:, 0] = False
    owners[1, 1], owners[2, 1] = True, True
    return score_likeness(scores, centred=True), owners


@pytest.mark.parametrize("seed", range(20))
def test_the_order_is_that_of_the_slow_reference(seed):
    likeness, owners = random_problem(seed)
    assert covering_merges(likeness, owners, 0.8, keep_own=False) == slow_merges(likeness, owners, 0.8)


def own_concepts(owners, gone):
    kept = [k for k in range(owners.shape[1]) if k not in gone]
    return [any(owners[c, k] and owners[:, k].sum() == 1 for k in kept) for c in range(len(owners))]


@pytest.mark.parametrize("seed", range(20))
def test_no_class_loses_the_last_concept_of_its_own(seed):
    likeness, owners = random_problem(seed, count=12)
    after, gone = owners.clone(), set()
    for head, members in covering_merges(likeness, owners, 0.5, keep_own=True):
        after[:, head] |= after[:, members].any(dim=1)
        gone |= set(members)
    for before, now in zip(own_concepts(owners, set()), own_concepts(after, gone)):
        assert now or not before


def test_the_guard_matters_on_these_problems():
    """Without it classes do lose their last: the property above can fail."""
    lost = 0
    for seed in range(20):
        likeness, owners = random_problem(seed, count=12)
        after, gone = owners.clone(), set()
        for head, members in covering_merges(likeness, owners, 0.5, keep_own=False):
            after[:, head] |= after[:, members].any(dim=1)
            gone |= set(members)
        lost += own_concepts(after, gone) != own_concepts(owners, set())
    assert lost >= 10


def test_likeness_is_a_correlation_or_the_published_cosine():
    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 30
    torch.testing.assert_close(score_likeness(scores, centred=True), torch.corrcoef(scores.T))
    raw = score_likeness(scores, centred=False)
    assert float(raw.min()) > 0.995  # whatever the concepts are
    constant = torch.cat([scores, torch.ones(50, 1)], dim=1)
    assert score_likeness(constant, centred=True)[4].tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_a_class_keeps_few_of_its_own_and_all_that_it_shares():
    texts = {"a1": ("A",), "a2": ("A",), "a3": ("A",), "both": ("A", "B"), "b1": ("B",), "all": ()}
    bank = ConceptBank("b", "b", tuple(Concept(text, owners) for text, owners in texts.items()))
    shown = torch.tensor([[1.0, 3.0, 2.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1, 1.0, 0.0]])
    shared = share_concepts(bank, ["A", "B"], torch.eye(6), shown, cutoff=0.9, own=1, keep_own=True)
    assert shared.texts == ["a2", "both", "b1", "all"]
    assert {one.text for one in shared.dropped} == {"a1", "a3"}
    assert shared.dropped[0].reason == "'A' has 1 concepts of its own that its pictures show better"
    assert shared.concepts[0].provenance["filters"] == ["sharing"]
