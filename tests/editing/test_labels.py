"""Edits and questions where an image has any number of labels."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from labels_run import CUTS, label_model
from sklearn.metrics import roc_auc_score
from small_bottleneck import CLASSES, K, bank

from cbm.editing import edited_logits, label_counterfactual, label_margin_edits
from cbm.editing.apply import level, levels, told_levels
from cbm.editing.asking.policies import POLICIES, SCORES, CoopWeights, Situation, beliefs
from cbm.editing.asking.propagation import source_covariance, to_activations, to_logits
from cbm.editing.asking.questions import ask_in_turn
from cbm.errors import UserError
from cbm.layers import Sigmoid, Valued
from cbm.run.intervene import label_quality

TEXTS = bank().texts


def most(model, x, label: int, budget: int, frozen=()) -> int | None:
    """Fewest concepts within the training range that carry the logit past its threshold: every subset."""
    a, ends = model.activations(x[None])[0].double(), levels(model).double()
    w = model.weights()[label].double()
    lead = float(w @ a + model.biases()[label]) - float(CUTS[label])
    goal = -math.copysign(1, lead)
    low, high = torch.minimum(ends[0], a), torch.maximum(ends[1], a)
    free = [k for k in range(len(a)) if k not in frozen]
    for size in range(1, budget + 1):
        for chosen in combinations(free, size):
            reach = sum(max(goal * float(w[k] * (v - a[k])) for v in (low[k], high[k])) for k in chosen)
            if reach >= abs(lead) + 1e-3:
                return size
    return None


@pytest.mark.parametrize("frozen", [(), (0, 3)])
@pytest.mark.parametrize("kind", ["linear", "sigmoid"])
def test_the_fewest_concepts_change_what_is_said_of_a_label(frozen, kind: str):
    model, x = label_model(Sigmoid(torch.zeros(8)) if kind == "sigmoid" else None, k=8)
    sizes = []
    for picture in x[:12]:
        for label in range(4):
            found = label_counterfactual(model, picture, label, budget=5, frozen=frozen)
            assert (found and len(found.columns)) == most(model, picture, label, 5, frozen)
            if found is None:
                continue
            sizes.append(len(found.columns))
            a = model.activations(picture[None])[0].clone()
            before = bool(model(picture[None])[0, label] > CUTS[label])
            a[found.columns] = torch.tensor(found.values)
            logit = float(model.weights()[label] @ a + model.biases()[label])
            assert (logit > CUTS[label]) != before
            assert abs(logit - float(CUTS[label])) == pytest.approx(1e-3, abs=2e-4)  # just past the threshold
            assert (found.before, found.after) == (int(before), int(not before))
            assert not set(found.columns) & set(frozen)
    assert len(set(sizes)) > 1


def test_a_margin_is_the_distance_from_the_threshold():
    model, x = label_model()
    away = (model.activations(x) - model.reference).abs() / model.spread
    for label in range(4):
        for present, margin in ((True, 0.2), (False, 0.7)):
            row, column = 2 * label + int(present), int(away[2 * label + int(present)].argmax())
            edits = label_margin_edits(
                model, x[row], label, column, TEXTS, CLASSES, present=present, margin=margin, why="seen"
            )
            assert len(edits) == 1
            assert edits.edits[0].classes == (CLASSES[label],)
            after = edited_logits(model, edits, bank(), CLASSES, x)
            lead = float(after[row, label] - CUTS[label])
            assert lead == pytest.approx(margin if present else -margin, abs=1e-4)
            others = [k for k in range(4) if k != label]
            torch.testing.assert_close(after[:, others], model(x)[:, others])
    several = x[:5]
    edits = label_margin_edits(model, several, 1, 2, TEXTS, CLASSES, margin=0.3)
    shift = (model.activations(several)[:, 2] - model.reference[2]).double()
    usable = shift.abs() >= 0.1 * float(model.spread[2])
    wanted = ((0.3 - (model(several)[:, 1].double() - CUTS[1])) / shift)[usable].mean()
    change = edits.edits[0].value / float(model.spread[2]) - float(model.weights()[1, 2])
    assert change == pytest.approx(float(wanted), rel=1e-4)
    middle = model.concepts[:1] * 0 + x[:1]
    model.reference[4] = model.activations(middle)[0, 4]
    with pytest.raises(UserError, match="'concept 4' is within 0.1 standard deviations of its average"):
        label_margin_edits(model, middle, 0, 4, TEXTS, CLASSES)


def told(model, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Logits with every concept at what the head reads of the truth, concept by concept."""
    said = told_levels(model)
    a = model.activations(x).clone()
    for i in range(len(x)):
        for k in range(K):
            if not math.isnan(truth[i, k]):
                a[i, k] = said[int(truth[i, k]), k]
    return a @ model.weights().T + model.biases()


def questions(activation=None):
    model, x = label_model(activation, n=80)
    g = torch.Generator().manual_seed(9)
    truth = (torch.rand(80, K, generator=g) < 0.5).float()
    truth[torch.rand(80, K, generator=g) < 0.1] = math.nan
    logits = model(x)
    y = (logits - logits.mean(dim=0) + 2 * logits.std(dim=0) * torch.randn(80, 4, generator=g) > 0).float()
    y[torch.rand(80, 4, generator=g) < 0.2] = math.nan
    return model, x, y, truth


def slow_auroc(logits: torch.Tensor, y: torch.Tensor) -> float:
    found = []
    for label in range(4):
        known = ~y[:, label].isnan().numpy()
        found.append(roc_auc_score(y[known, label].numpy(), logits[known, label].numpy()))
    return float(np.mean(found))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["linear", "sigmoid"])
def test_questions_end_at_the_auroc_of_concepts_that_are_told(policy: str, kind: str):
    model, x, y, truth = questions(Sigmoid(torch.zeros(K)) if kind == "sigmoid" else None)
    units = [[0, 1], [2], [3, 4, 5], [6], [7], [8]]
    curve = ask_in_turn(model, x, y, truth, units, policy, quality=label_quality)
    assert len(curve.accuracy) == len(units) + 1
    assert float(curve.accuracy[0]) == pytest.approx(slow_auroc(model(x), y), abs=1e-9)
    assert float(curve.accuracy[-1]) == pytest.approx(slow_auroc(told(model, x, truth), y), abs=1e-3)
    assert float(curve.accuracy[-1]) != pytest.approx(float(curve.accuracy[0]), abs=1e-3)


def test_policies_of_labels_by_hand():
    model, x, _, truth = questions(Sigmoid(torch.zeros(K)))
    a = model.activations(x[:3]).double()
    logits = model(x[:3]).double()
    said = told_levels(model).double()
    now = Situation(
        model, a, logits, beliefs(model, a), said, truth[:3].double(), CoopWeights(), x[:3], torch.zeros_like(a).bool()
    )
    w = model.weights().double()
    for i in range(3):
        for k in range(K):
            p = float(a[i, k])
            kl = drop = moved = 0.0
            for label in range(4):
                before = 1 / (1 + math.exp(-float(logits[i, label])))
                after = [1 / (1 + math.exp(-float(logits[i, label] + w[label, k] * (v - a[i, k])))) for v in (0.0, 1.0)]
                entropy = [-(q * math.log(q) + (1 - q) * math.log(1 - q)) for q in (before, *after)]
                for chance, q in zip((1 - p, p), after):
                    kl += chance * (q * math.log(q / before) + (1 - q) * math.log((1 - q) / (1 - before)))
                drop += entropy[0] - (1 - p) * entropy[1] - p * entropy[2]
                moved += abs((1 - p) * after[0] + p * after[1] - before)
            doubt = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
            assert float(SCORES["ectp"](now)[i, k]) == pytest.approx(kl, rel=1e-6, abs=1e-9)
            assert float(SCORES["eudtp"](now)[i, k]) == pytest.approx(drop, rel=1e-6, abs=1e-9)
            assert float(SCORES["coop"](now)[i, k]) == pytest.approx(doubt + moved, rel=1e-6)


# --------------------------------------------------------------------------------------------------------- values


def valued() -> Valued:
    number = torch.zeros(K, dtype=torch.bool)
    number[4] = True
    return Valued(torch.zeros(K), number, torch.tensor([0, 0, 0, -1, -1, -1, -1, -1, -1]))


def test_levels_of_numbers_are_those_of_the_training_images():
    model, x = label_model(valued())
    a = model.activations(x)
    mean, sd = float(a[:, 4].mean()), float(a[:, 4].std(correction=0))
    for value, sign in (("absent", -1), ("present", 1)):
        assert level(model, 4, value) == pytest.approx(mean + sign * 1.6449 * sd, rel=0.02, abs=0.02)
        assert level(model, 3, value) == pytest.approx(0.95 if sign > 0 else 0.05)
    assert float(told_levels(model)[1, 3]) == 1.0
    assert float(told_levels(model)[1, 4]) == pytest.approx(level(model, 4, "present"))


def test_numbers_have_no_log_odds():
    """What goes with an answer moves numbers on their own scale: none is squeezed between 0 and 1."""
    model, x = label_model(valued())
    a = model.activations(x)
    assert bool((a[:, 4] < 0).any())
    back = to_activations(model, to_logits(model, a))
    torch.testing.assert_close(back, a, rtol=1e-4, atol=1e-4)
    spread = to_logits(model, a)[:, 4]
    assert len(spread.unique()) == len(x)
    covariance = source_covariance(to_logits(model, a))
    truth = torch.full((len(x), K), math.nan)
    truth[:, 5] = 1.0
    y = (model(x) > model(x).mean(dim=0)).float()
    curve = ask_in_turn(model, x, y, truth, [[5]], "random", covariance=covariance, quality=label_quality)
    assert math.isfinite(float(curve.accuracy[-1]))
