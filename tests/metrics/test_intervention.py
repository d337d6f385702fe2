import math

import pytest
import torch

from cbm.metrics import concept_probability_metrics, intervention_curve
from cbm.metrics.intervention import told_together

NAN = float("nan")


def test_more_is_told_group_by_group_and_only_the_rest_is_asked():
    torch.manual_seed(0)
    concepts = (torch.rand(50, 6) < 0.5).float()
    concepts[3, 0] = NAN
    y = torch.arange(50) % 2
    told_so_far, shares = torch.zeros(50, 6, dtype=torch.bool), []

    def answer(told):
        known = ~told.isnan()
        assert (known | ~told_so_far).all()  # nested
        told_so_far.copy_(known)
        assert not known[3, 0]  # what is unknown cannot be told
        rows = [r for r in range(50) if r != 3]
        assert torch.equal(known[rows, 0], known[rows, 4])  # a group is told together
        assert torch.equal(told[known], concepts[known])
        shares.append(known.float().mean(1))
        scores = torch.nn.functional.one_hot(torch.where(known.sum(1) >= 3, y, 1 - y), 2)
        return scores, torch.where(known, told, 0.0)

    curve = intervention_curve(answer, concepts, y, [[0, 4]], ratios=[0, 0.4, 1.0])
    assert curve.class_accuracy[0] == 0
    assert curve.class_accuracy[-1] == 1
    asked = ~concepts.isnan()
    assert curve.others_accuracy[0] == pytest.approx(float((concepts[asked] == 0).float().mean()))
    assert math.isnan(curve.others_accuracy[-1])
    assert curve.area == pytest.approx(0.2 * curve.class_accuracy[1] + 0.3 * (curve.class_accuracy[1] + 1))
    assert len(shares[1].unique()) > 1  # every picture has an order of its own
    assert curve.metrics()["intervention_accuracy_40"] == curve.class_accuracy[1]


def test_the_order_depends_on_the_seed_alone():
    concepts = torch.ones(20, 5)
    seen = {}
    for number, seed in enumerate((0, 0, 1)):
        masks = []
        intervention_curve(lambda told, m=masks: (m.append(told), (told, told))[1], concepts, torch.zeros(20), [],
                           ratios=[0.4], seed=seed)  # fmt: skip
        seen[number] = masks[0].isnan()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_concept_probabilities_are_held_against_what_is_known():
    truth = torch.tensor([[1.0, 0.0], [0.0, NAN], [1.0, 1.0]])
    probability = torch.tensor([[1.0 + 1e-6, 0.2], [0.3, 0.9], [0.4, 0.9]])
    found = concept_probability_metrics(probability, truth)
    assert found["concept_accuracy"] == pytest.approx(4 / 5)
    assert found["all_concepts_accuracy"] == pytest.approx(2 / 3)
    assert found["concept_auroc"] == 1.0
    assert found["concept_ece"] == pytest.approx((0 + 0.2 + 0.3 + 0.6 + 0.1) / 5, abs=1e-4)


def test_numbers_are_told_but_are_not_right_or_wrong():
    concepts = torch.tensor([[1.0, 0.2], [0.0, 1.7]])
    seen: list[torch.Tensor] = []

    def answer(told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(told)
        return torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.9, 0.0], [0.1, 0.0]])

    curve = intervention_curve(answer, concepts, torch.tensor([0, 1]), [], numbers=[1], ratios=[0, 1])
    assert curve.others_accuracy[0] == 1.0  # of the yes or no alone: 0.2 against 0 is no mistake
    assert torch.equal(seen[1], concepts)


def test_what_nobody_knows_is_not_told():
    concepts = torch.tensor([[1.0, float("nan"), 0.0, 1.0], [0.0, float("nan"), 1.0, float("nan")]])
    assert told_together(concepts, [[2, 3]]) == [[2, 3], [0]]
