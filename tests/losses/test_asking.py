"""What a network that learns to ask is trained on: the best question, whole units, nothing told twice."""

import math

import torch

from cbm.losses.asking import ask_and_tell, open_questions, tell


def drawn(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(40, 6, generator=generator)
    concepts = (torch.rand(40, 6, generator=generator) < 0.5).float()
    concepts[torch.rand(40, 6, generator=generator) < 0.2] = math.nan
    member = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    return p, concepts, torch.randn(40, 6, generator=generator), member


def test_the_target_is_the_question_that_raises_the_true_logit_most():
    p, concepts, slope, member = drawn()
    scores = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    _, missed = ask_and_tell(lambda q, told: scores, p, concepts, slope, torch.zeros(40, 6), member, 1)
    losses = []
    for i in range(40):
        gain, can = [], []
        for unit in member:
            columns = [k for k in range(6) if unit[k] and not concepts[i, k].isnan()]
            can.append(bool(columns))
            gain.append(sum(float((concepts[i, k] - p[i, k]) * slope[i, k]) for k in columns))
        if any(can):
            best = max((g, u) for u, g in enumerate(gain) if can[u])[1]
            among = sum(math.exp(float(scores[i, u])) for u in range(4) if can[u])
            losses.append(math.log(among) - float(scores[i, best]))
    assert abs(float(missed) - sum(losses) / len(losses)) < 1e-5


def test_told_stays_yes_or_no_and_what_was_handed_in_is_left():
    p, concepts, slope, member = drawn()
    start = (torch.rand(40, 6, generator=torch.Generator().manual_seed(2)) < 0.3).float() * ~concepts.isnan()
    before = start.clone()
    weight = torch.zeros(4, requires_grad=True)
    told, missed = ask_and_tell(lambda q, known: weight + torch.zeros(40, 4), p, concepts, slope, start, member, 3)
    assert torch.equal(start, before)
    assert set(told.detach().unique().tolist()) == {0.0, 1.0}
    assert bool((told[concepts.isnan()] == 0).all())
    assert bool((told >= before).all())
    (told.sum() + missed).backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def test_enough_questions_tell_everything_that_is_known():
    p, concepts, slope, member = drawn()
    told, _ = ask_and_tell(lambda q, known: torch.zeros(40, 4), p, concepts, slope, torch.zeros(40, 6), member, 6)
    assert torch.equal(told.detach() > 0.5, ~concepts.isnan())
    assert not bool(open_questions(told, concepts, member).any())


def test_a_question_told_twice_changes_nothing():
    _, concepts, _, member = drawn()
    picked = torch.eye(4)[torch.arange(40) % 4]
    once = tell(torch.zeros(40, 6), picked, concepts, member)
    assert torch.equal(tell(once, picked, concepts, member), once)


def test_nothing_known_costs_nothing():
    p, concepts, slope, member = drawn()
    told, missed = ask_and_tell(lambda q, known: torch.zeros(40, 4), p, concepts * math.nan, slope, torch.zeros(40, 6),
                                member, 2)  # fmt: skip
    assert float(missed) == 0.0
    assert not bool(told.any())
