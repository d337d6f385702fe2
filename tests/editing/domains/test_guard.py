"""The check that every correction passes: its p-values, its losses, and what it lets through."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from cbm.editing.domains.guard import (
    balanced_weights,
    by_subject,
    folds,
    in_units,
    judge,
    judge_both,
    largest_sum_p,
    losses_by_temperature,
    sign_flip_p,
    tempered_losses,
    too_few,
)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_signs_are_all_flipped(n: int):
    gains = torch.randn(n, generator=torch.Generator().manual_seed(n)).double()
    sums = [sum(s * float(g) for s, g in zip(signs, gains)) for signs in itertools.product((1, -1), repeat=n)]
    slow = np.mean([value >= float(gains.sum()) - 1e-12 for value in sums])
    assert sign_flip_p(gains) == pytest.approx(slow, abs=1e-12)
    assert sign_flip_p(7.5 * gains) == sign_flip_p(gains)


def test_many_differences_are_drawn_and_agree_with_the_exact_ones():
    gains = torch.randn(36, generator=torch.Generator().manual_seed(3)).double() + 0.2
    exact = sign_flip_p(gains)
    more = sign_flip_p(torch.cat([gains, torch.zeros(4, dtype=torch.float64)]))  # zeros change nothing
    assert more == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 50_000) ** 0.5 + 1e-4)
    assert sign_flip_p(torch.ones(100)) == pytest.approx(1 / 50_001)
    assert sign_flip_p(torch.zeros(5)) == 1.0


def test_without_an_effect_small_p_values_are_as_rare_as_they_say():
    g = torch.Generator().manual_seed(0)
    found = [sign_flip_p(torch.randn(12, generator=g).double().pow(3)) for _ in range(400)]  # heavy tails, symmetric
    assert kstest(found, "uniform").pvalue > 0.001
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_losses_at_every_temperature():
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([0, 1, 2, 0, 1, 0])
    table = losses_by_temperature(z, y)
    for row, factor in ((0, 0.0), (1, 2.0**-4), (-1, 4.0)):
        torch.testing.assert_close(table[row], torch.nn.functional.cross_entropy(factor * z, y, reduction="none"))
    share = balanced_weights(y)
    assert float(share.sum()) == pytest.approx(1)
    torch.testing.assert_close(share[y == 0].sum(), share[y == 1].sum())
    for i in range(6):  # the temperature of an image is chosen by the others
        rest = [j for j in range(6) if j != i]
        best = min(range(len(table)), key=lambda t: float((share[rest] * table[t, rest]).sum()))
        assert float(tempered_losses(z, y)[i]) == pytest.approx(float(table[best, i]))


def test_a_model_that_is_only_less_certain_gains_nothing():
    g = torch.Generator().manual_seed(2)
    y = torch.arange(20) % 4
    z = 6 * torch.randn(20, 4, generator=g) + 2 * torch.nn.functional.one_hot(y, 4)
    blunt = judge(z, 0.05 * z, y)
    assert blunt.p > 0.4
    assert not blunt.accepted
    assert blunt.accuracy[0] == blunt.accuracy[1]
    torch.testing.assert_close(in_units(0.05 * z), in_units(z))
    scaled = judge(100 * z, z, y)
    assert scaled.loss[0] == pytest.approx(scaled.loss[1])


def test_every_class_weighs_the_same():
    y = torch.tensor([0] * 12 + [1] * 3)
    good, bad = torch.tensor([[3.0, 0.0], [0.0, 3.0]])[y], torch.tensor([[3.0, 0.0]]).expand(15, 2)
    found = judge(bad, good, y)
    assert found.accuracy == (0.5, 1.0)
    assert found.reason.startswith("left out, 12 of 15 labelled pictures are right before, 15 after")


def test_few_labelled_pictures_prove_nothing():
    assert "8 labelled pictures of 4 classes are too few" in (too_few(torch.arange(8) % 4) or "")
    assert too_few(torch.arange(12) % 4) is None
    assert too_few(torch.tensor([3] * 5 + [1] * 1)) is None  # six of two classes


def test_folds_leave_every_picture_out_once_and_spread_the_classes():
    y = torch.arange(50) % 5
    parts = folds(y, 10)
    assert sorted(torch.cat([out for out, _ in parts]).tolist()) == list(range(50))
    for out, rest in parts:
        assert not set(out.tolist()) & set(rest.tolist())
        assert torch.bincount(y[rest], minlength=5).min() >= 8
    assert len(folds(torch.zeros(7, dtype=torch.long))) == 7


def test_two_corrections_are_judged_together():
    g = torch.Generator().manual_seed(5)
    gains = torch.randn(2, 10, generator=g).double() + torch.tensor([[0.3], [0.1]])
    size = gains.square().sum(1).sqrt()
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=10))).double()
    largest = ((signs @ gains.T) / size).max(dim=1).values
    slow = float((largest >= (gains.sum(1) / size).max() - 1e-12).double().mean())
    assert largest_sum_p(gains) == pytest.approx(slow, abs=1e-12)
    assert largest_sum_p(gains[:1]) == pytest.approx(sign_flip_p(gains[0]))
    assert largest_sum_p(torch.stack([gains[0], gains[0]])) == pytest.approx(sign_flip_p(gains[0]))
    assert largest_sum_p(torch.zeros(2, 5)) == 1.0
    drawn = largest_sum_p(torch.cat([gains, torch.zeros(2, 10).double()], dim=1))
    assert drawn == pytest.approx(slow, abs=0.01)
    y = torch.arange(12) % 3
    right, wrong = 4.0 * torch.eye(3)[y], 4.0 * torch.eye(3)[(y + 1) % 3]
    good, bad = judge_both(wrong, (right, wrong), y)
    assert good.accepted
    assert not bad.accepted
    assert good.p >= judge(wrong, right, y).p


def test_one_of_two_is_made_by_chance_no_more_often_than_one():
    g, made = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        shared, own = torch.randn(2, 12, generator=g).double()
        gains = torch.stack([shared, 0.7 * shared + 0.7 * own])
        made += any(max(largest_sum_p(gains), sign_flip_p(d)) <= 0.05 for d in gains)
    assert made / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_images_of_one_subject_are_left_out_together_and_count_as_one():
    y, subjects = torch.arange(24) % 4, np.array([f"patient {i // 2}" for i in range(24)])
    for out, rest in folds(y, subjects=subjects):
        assert not set(subjects[out]) & set(subjects[rest])
    assert len(folds(y, subjects=subjects)) == 12
    gains = torch.randn(24, generator=torch.Generator().manual_seed(0)).double()
    slow = torch.stack([gains[subjects == subject].sum() for subject in np.unique(subjects)])
    torch.testing.assert_close(by_subject(gains, subjects), slow)
    z = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    better = z + 3 * torch.nn.functional.one_hot(y, 4)
    alone, together = judge(z, better, y), judge(z, better, y, subjects=subjects)
    assert together.p > alone.p  # half as many differences
    same = judge(z, better, y, subjects=np.arange(24))
    assert same.p == alone.p
