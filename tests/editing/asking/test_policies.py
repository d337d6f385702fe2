"""Which concept is asked about next."""

import math

import pytest
import torch
from small_bottleneck import K, bottleneck

from cbm.editing import POLICIES, ask_in_turn
from cbm.editing.apply import level
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.activations import Sigmoid

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


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(value - max(z)) for value in z]
    return [power / sum(powers) for power in powers]


def entropy(q: list[float]) -> float:
    return -sum(value * math.log(value) for value in q if value > 0)


def published(policy: str, c: list[float], weights: list[list[float]], bias: list[float], j: int) -> float:
    """A policy's score of concept j by its paper's formula, from probabilities ``c`` and a linear head, in float64.

    Shin et al., ICML 2023, section 3.2: contribution sum_k |c_j df_k/dc_j|; the other two as expectations over the
    answers 0 and 1 with probabilities 1 - c_j and c_j, the answer put in for c_j. Chauhan et al., AAAI 2023, with unit
    weights and a cost of 1: binary entropy + |E p(yhat | answer) - p(yhat)| - cost.
    """

    def predict(values: list[float]) -> list[float]:
        return softmax([b + sum(w * v for w, v in zip(row, values)) for row, b in zip(weights, bias)])

    if policy == "cctp":
        return sum(abs(c[j] * row[j]) for row in weights)
    now = predict(c)
    after = [predict([*c[:j], answer, *c[j + 1 :]]) for answer in (0.0, 1.0)]
    chances = (1 - c[j], c[j])
    if policy == "ectp":
        return sum(p * sum(a * math.log(a / n) for a, n in zip(q, now)) for p, q in zip(chances, after))
    if policy == "eudtp":
        return entropy(now) - sum(p * entropy(q) for p, q in zip(chances, after))
    best = max(range(len(now)), key=now.__getitem__)
    expected = sum(p * q[best] for p, q in zip(chances, after))
    uncertain = entropy([c[j], 1 - c[j]]) / math.log(2)
    return uncertain + abs(expected - now[best]) - 1.0


@pytest.mark.parametrize("policy", ["cctp", "ectp", "eudtp", "coop"])
@pytest.mark.parametrize("groups", [SINGLE, [[0, 3, 5], [1, 2], [4], [6, 7, 8]]], ids=["single", "groups"])
@pytest.mark.parametrize("seed", range(2))
def test_probabilities_are_asked_as_the_papers_say(policy: str, groups: list[list[int]], seed: int):
    """All questions about all images: the same ones in the same order, and the head then reads 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    steep = Sigmoid(torch.randn(K, generator=g))
    model, x = bottleneck(steep)
    truth = (torch.rand(len(x), K, generator=g) > 0.5).float()
    weights, bias = model.weights().double().tolist(), model.head.bias.double().tolist()
    curve = ask_in_turn(model, x, torch.zeros(len(x), dtype=torch.long), truth, groups, policy)
    for n, own in enumerate(model.activations(x).double().tolist()):
        order, open_ = [], list(range(len(groups)))
        while open_:
            scores = {
                u: sum(published(policy, own, weights, bias, j) for j in groups[u]) / len(groups[u]) for u in open_
            }
            best = max(open_, key=scores.__getitem__)
            order.append(best)
            open_.remove(best)
            for j in groups[best]:
                own[j] = float(truth[n, j])
        assert curve.asked[n].tolist() == order


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
