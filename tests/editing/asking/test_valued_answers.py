"""Questions about values that exclude each other, levels and numbers, against loops over the possible answers."""

import math

import pytest
import torch
from small_bottleneck import K, bottleneck

from cbm.editing import POLICIES, ask_in_turn
from cbm.layers import ConceptBottleneck, Valued

COLOURS, SHAPES, STEPS, NUMBERS = [0, 1, 2], [3, 4], [5, 6], [7, 8]
UNITS = [COLOURS, SHAPES, STEPS, [7], [8]]


def valued(link: str = "softmax") -> tuple[ConceptBottleneck, torch.Tensor]:
    number, group = torch.zeros(K, dtype=torch.bool), torch.full((K,), -1)
    number[NUMBERS], group[COLOURS], group[SHAPES] = True, 0, 1
    model, x = bottleneck(Valued(torch.linspace(-0.2, 0.2, K), number, group))
    model.link = link
    model = model.calibrate(x)
    model.spread[NUMBERS] = torch.tensor([0.6, 0.9])
    return model, x


def truths(n: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(4)
    truth = torch.zeros(n, K)
    for group in (COLOURS, SHAPES):
        truth[torch.arange(n), torch.tensor(group)[torch.randint(len(group), (n,), generator=g)]] = 1
    truth[:, STEPS] = (torch.randint(3, (n, 1), generator=g) >= torch.tensor([1, 2])).float()
    truth[:, NUMBERS] = torch.randn(n, len(NUMBERS), generator=g)
    return truth


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_told_everything_the_head_reads_the_truth(policy: str, link: str):
    """Whatever comes first: numbers as they are, in deviations, and 0 or 1 of the others."""
    model, x = valued(link)
    truth, seen = truths(len(x)), []
    y = torch.zeros(len(x), dtype=torch.long)
    ask_in_turn(model, x, y, truth, UNITS, policy, quality=lambda z, _: (seen.append(z.clone()), torch.tensor(0.0))[1])
    by_hand = [
        [
            float(model.head.bias[c]) + sum(float(w) * v for w, v in zip(model.weights()[c].double(), row))
            for c in range(len(model.weights()))
        ]
        for row in truth.double().tolist()
    ]
    assert torch.allclose(seen[-1].double(), torch.tensor(by_hand, dtype=torch.float64), atol=1e-5)
    assert torch.equal(seen[0], model(x))


def chances(z: list[float], many: bool) -> list[list[float]]:
    """The distributions that logits stand for: one over the classes, or there and not there of every label."""
    if many:
        return [[1 / (1 + math.exp(-v)), 1 / (1 + math.exp(v))] for v in z]
    powers = [math.exp(v - max(z)) for v in z]
    return [[power / sum(powers) for power in powers]]


def possible(a: list[float], unit: list[int], open_: list[float]) -> list[list[tuple[float, list[float]]]]:
    """What may be answered about a unit, with its probability, as whole activations; steps each by themselves."""

    def put(values: dict[int, float]) -> list[float]:
        return [values.get(k, v) for k, v in enumerate(a)]

    if unit[0] in NUMBERS:
        (k,) = unit
        return [[(0.5, put({k: a[k] - open_[k]})), (0.5, put({k: a[k] + open_[k]}))]]
    if unit == STEPS:
        return [[(1 - a[k], put({k: 0.0})), (a[k], put({k: 1.0}))] for k in unit]
    return [[(a[k], put({j: float(j == k) for j in unit})) for k in unit]]


def score(policy: str, model: ConceptBottleneck, a: list[float], unit: list[int], many: bool) -> float:
    """A policy's score of one unit, from the definition."""
    weights, bias = model.weights().double().tolist(), model.head.bias.double().tolist()
    open_ = [math.sqrt(max(0.0, 1 - s * s)) for s in model.spread.double().tolist()]

    def predict(values: list[float]) -> list[list[float]]:
        return chances([b + sum(w * v for w, v in zip(row, values)) for row, b in zip(weights, bias)], many)

    def entropy(values: list[float], base: float) -> float:
        return -sum(v * math.log(v) for v in values if v > 0) / math.log(base)

    def kl(after: list[list[float]], before: list[list[float]]) -> float:
        return sum(p * math.log(p / q) for a_, b_ in zip(after, before) for p, q in zip(a_, b_))

    if unit[0] in NUMBERS:
        uncertain = open_[unit[0]]
    elif unit == STEPS:
        uncertain = sum(entropy([a[k], 1 - a[k]], 2) for k in unit) / len(unit)
    else:
        uncertain = entropy([a[k] for k in unit], len(unit))
    if policy == "ucp":
        return uncertain
    if policy == "cctp":
        size = {k: abs(a[k] - float(model.reference[k])) if k in NUMBERS else a[k] for k in unit}
        return sum(size[k] * sum(abs(row[k]) for row in weights) for k in unit) / len(unit)
    now, found = predict(a), []
    for answers in possible(a, unit, open_):
        after = [(p, predict(values)) for p, values in answers]
        if policy == "ectp":
            found.append(sum(p * kl(q, now) for p, q in after))
        elif policy == "eudtp":
            found.append(
                sum(entropy(q, math.e) for q in now)
                - sum(p * sum(entropy(q, math.e) for q in all_) for p, all_ in after)
            )
        elif many:
            found.append(sum(abs(sum(p * q[i][0] for p, q in after) - now[i][0]) for i in range(len(now))))
        else:
            best = now[0].index(max(now[0]))
            found.append(abs(sum(p * q[0][best] for p, q in after) - now[0][best]))
    mean = sum(found) / len(found)
    return mean if policy in ("ectp", "eudtp") else uncertain + mean - 1.0


@pytest.mark.parametrize("policy", ["ucp", "cctp", "ectp", "eudtp", "coop"])
@pytest.mark.parametrize("many", [False, True], ids=["classes", "labels"])
def test_questions_come_in_the_order_that_a_loop_over_the_answers_says(policy: str, many: bool):
    model, x = valued("sigmoid" if many else "softmax")
    truth = truths(len(x))
    asked = ask_in_turn(model, x, torch.zeros(len(x)), truth, UNITS, policy, quality=lambda z, y: z.sum()).asked
    for n, a in enumerate(model.activations(x).double().tolist()):
        left, order = dict(enumerate(UNITS)), []
        while left:
            scores = {u: score(policy, model, a, unit, many) for u, unit in left.items()}
            order.append(max(scores, key=scores.__getitem__))
            for k in left.pop(order[-1]):
                a[k] = float(truth[n, k])
        assert asked[n].tolist() == order


def test_the_oracle_asks_about_the_number_that_is_furthest_off():
    model, x = valued()
    truth = model.activations(x).clone()
    truth[:, 8] += 3.0
    assert set(
        ask_in_turn(model, x, torch.zeros(len(x)), truth, UNITS, "oracle", questions=1).asked[:, 0].tolist()
    ) == {4}


def test_a_number_that_is_told_moves_what_goes_with_it_by_the_regression():
    """Two numbers that always agree: told one, the other follows to the same place, in deviations of its own."""
    model, x = valued()
    covariance = torch.eye(K, dtype=torch.float64)
    covariance[7, 8] = covariance[8, 7] = 0.999
    truth = torch.full((len(x), K), math.nan)
    truth[:, 7] = 2.0
    seen = []
    ask_in_turn(
        model, x, torch.zeros(len(x)), truth, UNITS, "random", covariance=covariance, questions=1,
        quality=lambda z, _: (seen.append(z.double()), torch.tensor(0.0))[1],
    )  # fmt: skip
    a, own = model.activations(x).double(), 1.645 * model.spread.double()  # 1.645 deviations are log 19 on that scale
    moved = 0.999 * (2.0 - a[:, 7]) / own[7] * own[8]
    expected = a.clone()
    expected[:, 7], expected[:, 8] = 2.0, a[:, 8] + moved
    by_hand = expected @ model.weights().double().T + model.head.bias.double()
    assert torch.allclose(seen[1], by_hand, atol=1e-4)
