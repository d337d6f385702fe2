"""Concepts with values: against sklearn, scipy, and counting every pair."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import somersd
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from cbm.metrics.valued import (
    Measured,
    concordance,
    mae,
    off_by_one,
    quadratic_kappa,
    r2,
    value_accuracy,
    value_f1_macro,
)

NAN = float("nan")


def numbers(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions and true numbers, of which a fifth is unknown, and which are known."""
    g = torch.Generator().manual_seed(seed)
    true = torch.randn(n, generator=g) * 4 + 20
    predicted = true + torch.randn(n, generator=g) * 3
    rows = torch.rand(n, generator=g) > 0.2
    return predicted.round(), torch.where(rows, true.round(), NAN), rows  # rounded: ties


def levels(n: int = 300, count: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    true = torch.randint(count, (n,), generator=g)
    predicted = (true + torch.randint(-1, 3, (n,), generator=g)).clamp(0, count - 1)
    rows = torch.rand(n, generator=g) > 0.2
    return predicted, torch.where(rows, true.float(), NAN), rows


def test_errors_are_sklearns():
    predicted, true, rows = numbers()
    p, t = predicted[rows].double().numpy(), true[rows].double().numpy()
    assert mae(predicted, true) == pytest.approx((mean_absolute_error(t, p), len(t)))
    assert r2(predicted, true, t.mean()) == pytest.approx((r2_score(t, p), len(t)))


def test_the_training_mean_explains_nothing_whatever_the_test_mean_is():
    _, true, rows = numbers()
    assert r2(torch.full_like(true, 15.0), true, 15.0) == (0.0, int(rows.sum()))
    own = true.nanmean()
    assert r2(torch.full_like(true, float(own)), true, 15.0).value > 0.3  # sklearn's denominator would give 0
    assert r2(true, true, 15.0).value == 1
    assert r2(torch.full_like(true, 5.0), true, 15.0).value < 0


def slow_concordance(predicted: np.ndarray, true: np.ndarray) -> float:
    won = pairs = 0.0
    for i in range(len(true)):
        for j in range(len(true)):
            if true[i] > true[j]:
                pairs += 1
                won += 1.0 if predicted[i] > predicted[j] else 0.5 if predicted[i] == predicted[j] else 0.0
    return won / pairs


def test_concordance_counts_pairs():
    predicted, true, rows = numbers(200)
    p, t = predicted[rows].double().numpy(), true[rows].double().numpy()
    found = concordance(predicted, true)
    assert found == (pytest.approx(slow_concordance(p, t), abs=1e-14), len(t))
    assert found.value == pytest.approx((1 + somersd(t, p).statistic) / 2)


def test_concordance_of_two_values_is_the_area_under_the_curve():
    predicted, true, rows = numbers()
    high = torch.where(true.isnan(), true, (true > 22).float())
    assert concordance(predicted, high).value == pytest.approx(roc_auc_score(high[rows], predicted[rows]), abs=1e-14)


def test_concordance_at_its_ends_is_exact():
    true = torch.tensor([3.0, 1, 2, 2, NAN])
    assert concordance(true.nan_to_num(9.0), true).value == 1
    assert concordance(-true.nan_to_num(9.0), true).value == 0
    assert concordance(torch.ones(5), true) == (0.5, 4)
    assert math.isnan(concordance(true.nan_to_num(9.0), torch.full((5,), 2.0)).value)


def test_concordance_of_many_images_is_quick():
    """A hundred thousand have five thousand million pairs."""
    g = torch.Generator().manual_seed(0)
    true = torch.randn(100_000, generator=g)
    predicted = true + torch.randn(100_000, generator=g)
    start = time.perf_counter()
    found = concordance(predicted, true)
    assert time.perf_counter() - start < 20
    assert found.value == pytest.approx(0.75, abs=0.005)  # 1/2 + asin(r) / pi with r = sqrt(1/2)


def test_levels_are_sklearns():
    predicted, true, rows = levels()
    p, t = predicted[rows].numpy(), true[rows].long().numpy()
    assert quadratic_kappa(predicted, true) == (pytest.approx(cohen_kappa_score(t, p, weights="quadratic")), len(t))
    assert off_by_one(predicted, true) == (pytest.approx(np.mean(np.abs(p - t) <= 1)), len(t))
    assert 0.5 < off_by_one(predicted, true).value < 1
    assert value_accuracy(predicted, true) == (pytest.approx(accuracy_score(t, p)), len(t))
    assert value_f1_macro(predicted, true) == (pytest.approx(f1_score(t, p, average="macro")), len(t))


def test_a_value_that_no_image_has_is_no_part_of_the_mean():
    predicted, true, rows = levels(count=5)
    true[true == 4] = NAN
    rows = ~true.isnan()
    p, t = predicted[rows].numpy(), true[rows].long().numpy()
    assert (p == 4).any()
    assert value_f1_macro(predicted, true).value == pytest.approx(f1_score(t, p, labels=[0, 1, 2, 3], average="macro"))
    assert value_f1_macro(predicted, true).value > f1_score(t, p, average="macro") + 0.05


def test_planted_levels_agree_and_chance_does_not():
    g = torch.Generator().manual_seed(0)
    true = torch.randint(4, (4000,), generator=g).float()
    near = (true + (torch.rand(4000, generator=g) < 0.2)).clamp(max=3)
    assert quadratic_kappa(near, true).value > 0.9
    assert quadratic_kappa(true[torch.randperm(4000, generator=g)], true).value == pytest.approx(0, abs=0.06)
    assert quadratic_kappa(3 - true, true).value == pytest.approx(-1, abs=0.03)


MEASURES = [concordance, lambda p, t: r2(p, t, 1.0), mae, quadratic_kappa, off_by_one, value_accuracy, value_f1_macro]


@pytest.mark.parametrize("measure", MEASURES)
def test_unknown_truth_is_left_out_and_a_missing_prediction_is_not(measure):
    predicted, true = torch.tensor([0.0, 1, 2, 2, 0]), torch.tensor([0.0, 2, 1, 2, 0])
    whole = measure(predicted, true)
    assert isinstance(whole, Measured)
    assert not math.isnan(whole.value)
    more = torch.cat([predicted, torch.tensor([0.0, NAN])]), torch.cat([true, torch.full((2,), NAN)])
    assert measure(*more) == whole == (whole.value, 5)
    predicted[2] = NAN
    assert math.isnan(measure(predicted, true).value)
    nothing = measure(predicted, torch.full((5,), NAN))
    assert math.isnan(nothing.value)
    assert nothing.known == 0


values = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN])), min_size=2, max_size=25)


@settings(deadline=None, max_examples=80)
@given(values)
def test_concordance_of_the_reverse_is_the_complement(pairs):
    predicted, true = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs))
    found = concordance(predicted, true)
    rows = ~true.isnan()
    if len(true[rows].unique()) < 2:
        assert math.isnan(found.value)
        return
    assert found.value == pytest.approx(slow_concordance(predicted[rows].numpy(), true[rows].numpy()), abs=1e-14)
    assert concordance(-predicted, true).value == pytest.approx(1 - found.value)
    assert concordance(predicted.exp(), true) == found


@settings(deadline=None, max_examples=80)
@given(values)
def test_kappa_is_sklearns(pairs):
    predicted, true = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs))
    rows = ~true.isnan()
    found = quadratic_kappa(predicted, true)
    if len(torch.cat([predicted[rows], true[rows]]).unique()) < 2:
        assert math.isnan(found.value)
        return
    p, t = predicted[rows].long().numpy(), true[rows].long().numpy()
    expected = cohen_kappa_score(t, p, weights="quadratic", labels=list(range(-3, 4)))
    assert found.value == pytest.approx(expected, abs=1e-9)
