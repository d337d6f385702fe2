"""Which concept is asked about next."""

import math

import pytest
import torch
from small_bottleneck import K, bottleneck

from cbm.editing import POLICIES, ask_in_turn
from cbm.editing.apply import level
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead

SINGLE = [[k] for k in range(K)]


def two_concepts() -> tuple[ConceptBottleneck, torch.Tensor]:
    """Only the second concept decides; the first is the more uncertain."""
    model = ConceptBottleneck(
        torch.eye(2), LinearHead(torch.tensor([[0.0, 4.0], [0.0, -4.0]]), torch.zeros(2)), spread=torch.ones(2)
    )
    return model.requires_grad_(False), torch.tensor([[0.0, 0.6]])


def test_what_can_change_the_decision_is_asked_first():
    model, x = two_concepts()
    y, truth = torch.tensor([1]), torch.tensor([[1.0, 0.0]])
    first = {
        name: int(ask_in_turn(model, x, y, truth, [[0], [1]], name, questions=1).asked[0, 0])
        for name in POLICIES if name not in ("random", "eudtp")
    }  # fmt: skip
    assert first == {"ucp": 0, "cctp": 1, "ectp": 1, "coop": 1, "oracle": 1}
    curve = ask_in_turn(model, x, y, truth, [[0], [1]], "ectp")
    assert curve.accuracy.tolist() == [0, 1, 1]
    assert curve.asked.tolist() == [[1, 0]]
    assert curve.area == 0.75


def by_hand(policy: str, model, a: torch.Tensor, logits: torch.Tensor) -> list[float]:
    """One picture, one concept, one answer after the other, in float64."""
    scores = []
    now = logits.double().softmax(0)
    for k in range(len(a)):
        low, high = level(model, k, "absent"), level(model, k, "present")
        p = 1 / (1 + math.exp(-math.log(19) * (float(a[k]) - (low + high) / 2) / ((high - low) / 2)))
        after = [(logits.double() + model.weights()[:, k].double() * (v - float(a[k]))).softmax(0) for v in (low, high)]
        entropy = -sum(q * math.log2(q) for q in (p, 1 - p))
        chances = (1 - p, p)
        if policy == "ucp":
            scores.append(entropy)
        elif policy == "cctp":
            scores.append(p * float(model.weights()[:, k].abs().sum()) * (high - low))
        elif policy == "ectp":
            scores.append(sum(c * float((q * (q / now).log()).sum()) for c, q in zip(chances, after)))
        elif policy == "eudtp":
            uncertain = [-float((q * q.log()).sum()) for q in (now, *after)]
            scores.append(uncertain[0] - chances[0] * uncertain[1] - chances[1] * uncertain[2])
        else:
            best = int(now.argmax())
            expected = sum(c * float(q[best]) for c, q in zip(chances, after))
            scores.append(entropy + abs(expected - float(now[best])) - 1.0)
    return scores


@pytest.mark.parametrize("policy", ["ucp", "cctp", "ectp", "eudtp", "coop"])
def test_scores_are_what_a_loop_says(policy, monkeypatch):
    monkeypatch.setattr("cbm.editing.asking.policies.LOGITS_AT_ONCE", 100)  # a picture at a time
    model, x = bottleneck()
    truth = (torch.rand(len(x), K, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    asked = ask_in_turn(model, x, model(x).argmax(1), truth, SINGLE, policy, questions=2).asked
    a = model.activations(x)
    for n in range(len(x)):
        state, logits, open_ = a[n].clone(), model(x)[n], set(range(K))
        for step in range(2):
            scores = by_hand(policy, model, state, logits)
            best = max(open_, key=lambda k: scores[k])
            assert int(asked[n, step]) == best
            open_.discard(best)
            value = level(model, best, "present" if truth[n, best] else "absent")
            logits = logits + model.weights()[:, best] * (value - state[best])
            state[best] = value


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_asked_twice_and_unknown_answers_change_nothing(policy):
    model, x = bottleneck()
    answers = (torch.rand(len(x), K, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    answers[:, 4] = torch.nan
    answers[3] = torch.nan
    y = model(x).argmax(1)
    units = [[0, 1], [2], [3, 5, 6], [4], [7, 8]]
    curve = ask_in_turn(model, x, y, answers, units, policy, costs=torch.tensor([1.0, 2, 3, 100, 5]))
    for n, asked in enumerate(curve.asked.tolist()):
        assert sorted(asked) == ([-1] * 5 if n == 3 else [-1, 0, 1, 2, 4])
    assert curve.accuracy[0] == 1
    assert float(curve.cost[-1]) == pytest.approx(11 * (len(x) - 1) / len(x))
    told = torch.where(answers.isnan(), model.activations(x), answers)
    for k in range(K):
        ends = [level(model, k, v) for v in ("absent", "present")]
        told[:, k] = torch.where(answers[:, k].isnan(), told[:, k], torch.where(answers[:, k] == 1, ends[1], ends[0]))
    end = torch.nn.functional.linear(told, model.weights(), model.head.bias).argmax(1)
    assert float(curve.accuracy[-1]) == pytest.approx(float((end == y).double().mean()))


def test_good_questions_are_worth_more_than_random_ones():
    """Classes are decided by few of many concepts, which the picture shows badly."""
    g = torch.Generator().manual_seed(0)
    n, k, c = 600, 30, 6
    truth = (torch.rand(n, k, generator=g) < 0.5).float()
    weights = torch.randn(c, k, generator=g) * (torch.arange(k) < 6) * 2 + 0.1 * torch.randn(c, k, generator=g)
    y = (truth @ weights.T).argmax(1)
    x = torch.nn.functional.normalize(truth + 0.6 * torch.randn(n, k, generator=g), dim=1)
    model = ConceptBottleneck(torch.eye(k), LinearHead(weights, torch.zeros(c)), scale=5.0).calibrate(x)
    areas = {
        name: ask_in_turn(model, x, y, truth, [[i] for i in range(k)], name, questions=10).area for name in POLICIES
    }
    for name in ("cctp", "ectp", "eudtp", "coop"):
        assert areas[name] > areas["random"] + 0.02, areas


def test_unknown_policy():
    model, x = bottleneck()
    with pytest.raises(UserError, match="unknown policy 'etcp': did you mean 'ectp'"):
        ask_in_turn(model, x, torch.zeros(len(x)), torch.ones(len(x), K), SINGLE, "etcp")
