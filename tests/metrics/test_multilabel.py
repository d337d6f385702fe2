"""Metrics of many labels a picture: against sklearn, slow references and planted truths."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    hamming_loss,
    log_loss,
    roc_auc_score,
)

from cbm.metrics.bootstrap import BINS, auroc_interval
from cbm.metrics.multilabel import (
    ENOUGH,
    LabelTest,
    auroc,
    auroc_macro_difference,
    auroc_macro_interval,
    average_precision,
    best_cut,
    brier,
    choose_thresholds,
    ece,
    f1,
    known,
    label_table,
    label_tests,
    macro_auroc,
    multilabel_metrics,
    positives,
    prevalence,
    scored,
)
from cbm.metrics.paired import holm

NAN = float("nan")


def pictures(n: int = 400, labels: int = 5, seed: int = 0, missing: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in steps of a quarter (so many are equal), their labels, some of them unknown."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, labels, generator=g) * 1.5 - torch.linspace(0, 1.5, labels)
    y = (torch.rand(n, labels, generator=g) < logits.sigmoid()).float()
    y[torch.rand(n, labels, generator=g) < missing] = NAN
    return (logits * 4).round() / 4, y


def entries(logits: torch.Tensor, y: torch.Tensor):
    """Known logits and labels of every label, in numpy."""
    for k in range(y.shape[1]):
        rows = ~y[:, k].isnan()
        yield logits[rows, k].double().numpy(), y[rows, k].long().numpy()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_every_label_is_sklearns():
    logits, y = pictures()
    cuts = torch.tensor([0.1, -0.4, 0.0, 0.6, -1.1])
    areas, steps, scores = auroc(logits, y), average_precision(logits, y), f1(logits, y, cuts)
    squares = brier(logits, y)
    for k, (z, target) in enumerate(entries(logits, y)):
        assert len(np.unique(z)) < len(z) / 3  # ties
        assert float(areas[k]) == pytest.approx(roc_auc_score(target, z), abs=1e-12)
        assert float(steps[k]) == pytest.approx(average_precision_score(target, z), abs=1e-12)
        assert float(scores[k]) == pytest.approx(f1_score(target, z > float(cuts[k])), abs=1e-12)
        assert float(squares[k]) == pytest.approx(brier_score_loss(target, sigmoid(z)), abs=1e-9)
        assert (int(known(y)[k]), int(positives(y)[k])) == (len(target), target.sum())
        assert float(prevalence(y)[k]) == pytest.approx(target.mean())


def test_means_and_pooled_numbers_are_sklearns():
    logits, y = pictures(seed=1)
    cuts = torch.tensor([0.1, -0.4, 0.05, 0.6, -1.1])
    values = multilabel_metrics(logits, y, cuts)
    columns = list(entries(logits, y))
    said = [(z > cut).astype(int) for (z, _), cut in zip(columns, cuts.tolist())]
    pooled = [np.concatenate(each) for each in zip(*((z, t, s) for (z, t), s in zip(columns, said)))]
    expected = {
        "auroc_macro": np.mean([roc_auc_score(t, z) for z, t in columns]),
        "auroc_micro": roc_auc_score(pooled[1], pooled[0]),
        "map": np.mean([average_precision_score(t, z) for z, t in columns]),
        "f1_macro": np.mean([f1_score(t, s) for (_, t), s in zip(columns, said)]),
        "f1_micro": f1_score(pooled[1], pooled[2]),
        "f1_macro_half": np.mean([f1_score(t, z > 0) for z, t in columns]),
        "balanced_accuracy_macro": np.mean([balanced_accuracy_score(t, s) for (_, t), s in zip(columns, said)]),
        "brier_macro": np.mean([brier_score_loss(t, sigmoid(z)) for z, t in columns]),
        "hamming": hamming_loss(pooled[1], pooled[2]),
        "loss": np.mean([log_loss(t, sigmoid(z)) for z, t in columns]),
        "labels_scored": 5,
    }
    rows = ~y.isnan().any(dim=1)
    wholly = [all((z > c) == (t == 1) for z, t, c in zip(*row)) for row in zip(logits[rows], y[rows], [cuts] * 400)]
    expected["exact_match"] = np.mean(wholly)
    assert 0 < expected["exact_match"] < 1
    for key, value in expected.items():
        assert values.pop(key) == pytest.approx(value, abs=1e-7), key
    assert values.keys() == {"ece_macro"}


def test_the_table_says_the_same_as_the_means():
    logits, y = pictures(seed=2)
    y[:, 4] = torch.where(y[:, 4] == 1, NAN, y[:, 4])  # no positive
    cuts, names = torch.tensor([0.1, -0.4, 0.0, 0.6, -1.1]), list("abcde")
    rows, values = label_table(logits, y, cuts, names), multilabel_metrics(logits, y, cuts)
    assert [row["name"] for row in rows] == names
    assert list(rows[0]) == [
        "name", "known", "positives", "prevalence", "auroc", "ap", "f1", "threshold", "ece", "brier", "sensitivity",
        "specificity",
    ]  # fmt: skip
    for column, key in (("auroc", "auroc_macro"), ("ap", "map"), ("f1", "f1_macro"), ("ece", "ece_macro")):
        assert np.mean([row[column] for row in rows[:4]]) == pytest.approx(values[key])
    balanced = [(row["sensitivity"] + row["specificity"]) / 2 for row in rows[:4]]
    assert np.mean(balanced) == pytest.approx(values["balanced_accuracy_macro"])
    assert rows[4]["positives"] == rows[4]["prevalence"] == 0
    assert all(math.isnan(rows[4][key]) for key in ("auroc", "ap", "f1", "ece", "brier", "sensitivity"))
    assert rows[4]["specificity"] == pytest.approx(((logits[:, 4] <= cuts[4]) & (y[:, 4] == 0)).sum() / known(y)[4])
    with pytest.raises(ValueError, match="zip"):
        label_table(logits, y, cuts, names[:4])


def test_constants_have_an_area_of_exactly_one_half():
    _, y = pictures()
    constant = torch.full(y.shape, 0.3)
    assert auroc(constant, y).tolist() == [0.5] * 5
    values = multilabel_metrics(constant, y, torch.zeros(5))
    assert values["auroc_macro"] == values["auroc_micro"] == values["balanced_accuracy_macro"] == 0.5
    assert average_precision(constant, y).tolist() == pytest.approx(prevalence(y).tolist())


def test_a_label_without_both_values_is_skipped_and_counted():
    logits, y = pictures()
    spoiled = torch.cat([y, torch.zeros(400, 1), torch.ones(400, 1), torch.full((400, 1), NAN)], dim=1)
    wider = torch.cat([logits, torch.randn(400, 3)], dim=1)
    values, less = multilabel_metrics(wider, spoiled, torch.zeros(8)), multilabel_metrics(logits, y, torch.zeros(5))
    assert scored(spoiled).tolist() == [True] * 5 + [False] * 3
    assert values["labels_scored"] == less["labels_scored"] == 5
    for key in less.keys() - {"exact_match", "hamming", "loss"}:  # these need no positive
        assert values[key] == less[key], key
    assert "exact_match" not in values  # of the last label nothing is known
    assert values["hamming"] != less["hamming"]
    assert not any(math.isnan(value) for value in values.values())


def test_nothing_known_is_no_number_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert multilabel_metrics(torch.zeros(3, 2), torch.full((3, 2), NAN), torch.zeros(2)) == {"labels_scored": 0}
        assert all(math.isnan(end) for end in auroc_macro_interval(torch.zeros(3, 2), torch.zeros(3, 2)))
        assert auroc_macro_difference(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2)) is None
        one_of_each = torch.tensor([[0.0], [1.0]])  # a draw takes one of them
        assert auroc_macro_interval(one_of_each, one_of_each) == pytest.approx((0.342, 1), abs=1e-3)
        assert auroc_macro_difference(one_of_each, one_of_each, one_of_each) is None


def test_every_label_weighs_the_same_in_the_loss_however_few_of_its_entries_are_known():
    logits, y = torch.zeros(100, 2), torch.zeros(100, 2)
    logits[:, 1] = 3.0
    y[5:, 1] = NAN
    expected = (math.log(2) + math.log1p(math.exp(3))) / 2
    assert multilabel_metrics(logits, y, torch.zeros(2))["loss"] == pytest.approx(expected)


def slow_cut(z: np.ndarray, target: np.ndarray) -> float:
    """Of all cuts, by trying them."""
    values = np.unique(z)
    cuts = [values[0] - 1, *((values[1:] + values[:-1]) / 2)]
    found = [f1_score(target, z > cut) for cut in cuts]
    return max(cut for cut, value in zip(cuts, found) if value == max(found))


def test_thresholds_have_the_highest_f1_and_are_the_highest_of_these():
    logits, y = pictures(seed=3)
    found = choose_thresholds(logits, y)
    assert positives(y).min() >= ENOUGH
    for k, (z, target) in enumerate(entries(logits, y)):
        assert float(found[k]) == slow_cut(z, target)
    z, target = torch.tensor([3.0, 2, 1, 0]), torch.tensor([True, False, False, True])
    assert [f1_score(target, z > cut) for cut in (2.5, -1)] == [2 / 3, 2 / 3]
    assert best_cut(z, target) == 2.5


def test_rare_labels_share_a_threshold():
    logits, y = pictures(n=400, labels=4, seed=4)
    for k, keep in ((2, 12), (3, 0)):
        rows = (y[:, k] == 1).nonzero().flatten()[keep:]
        y[rows, k] = NAN
    found, own = choose_thresholds(logits, y), choose_thresholds(logits[:, :2], y[:, :2])
    assert found[:2].tolist() == own.tolist()
    columns = list(entries(logits, y))
    pooled = slow_cut(*(np.concatenate(each) for each in zip(*columns[2:])))
    assert found[2:].tolist() == [pooled, pooled]
    y[y[:, 2] == 1, 2] = NAN  # now none of the rare ones has a positive: over all labels
    pooled = slow_cut(*(np.concatenate(each) for each in zip(*entries(logits, y))))
    assert choose_thresholds(logits, y).tolist() == [*own.tolist(), pooled, pooled]
    assert choose_thresholds(logits, torch.zeros_like(y)).tolist() == [0.0] * 4


def test_a_threshold_between_neighbouring_numbers_still_divides_them():
    for dtype in (torch.float32, torch.float16):
        for start in (1.0, 1.0 + torch.finfo(dtype).eps):  # rounding to even goes down for one and up for the other
            low = torch.tensor(start, dtype=dtype)
            logits = torch.stack([low, torch.nextafter(low, torch.tensor(2.0, dtype=dtype))])[:, None].repeat(30, 1)
            y = torch.tensor([[0.0], [1.0]]).repeat(30, 1)
            cuts = choose_thresholds(logits, y)
            assert cuts.dtype == dtype
            assert f1(logits, y, cuts).tolist() == [1.0]


def test_other_test_labels_leave_the_thresholds():
    logits, y = pictures(seed=5)
    cuts = choose_thresholds(logits[:200], y[:200])
    before = cuts.clone()
    test, truth = logits[200:], y[200:]
    mixed = truth[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    rows, shuffled = (label_table(test, each, cuts, list("abcde")) for each in (truth, mixed))
    assert [row["threshold"] for row in shuffled] == [row["threshold"] for row in rows] == before.tolist()
    assert cuts.equal(before)
    assert (
        multilabel_metrics(test, mixed, cuts)["auroc_macro"]
        < 0.6
        < multilabel_metrics(test, truth, cuts)["auroc_macro"]
    )
    best = multilabel_metrics(test, truth, choose_thresholds(test, truth))["f1_macro"]
    assert multilabel_metrics(test, truth, cuts)["f1_macro"] < best  # those of the test images would look better


def drawn_ece(z: np.ndarray, target: np.ndarray, subjects: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """The calibration error and the mean over draws of subjects, in bins of equally many by the rank."""
    order = np.argsort(z, kind="stable")
    part = np.empty(len(z), dtype=int)
    part[order] = (np.arange(len(z)) + 0.5) * BINS // len(z)
    surplus = np.zeros((len(z), BINS))
    surplus[np.arange(len(z)), part] = sigmoid(z) - target
    names, member = np.unique(subjects, return_inverse=True)
    units = len(names)
    sums, sizes = np.zeros((units, BINS)), np.bincount(member)
    np.add.at(sums, member, surplus)
    weights = np.random.default_rng(0).multinomial(units - 1, np.full(units, 1 / units), draws)
    found = np.abs(weights @ sums).sum(axis=1) / (weights @ sizes)
    return np.abs(surplus.mean(axis=0)).sum(), found.mean()


@pytest.mark.parametrize("slope", [1.0, 1.8])
def test_the_calibration_error_is_freed_of_noise_as_by_draws(slope: float):
    g = torch.Generator().manual_seed(6)
    logits = torch.randn(200, 3, generator=g, dtype=torch.float64) - torch.tensor([0, 1, 2.5])
    y = (torch.rand(200, 3, generator=g) < logits.sigmoid()).float().repeat_interleave(3, 0)  # alike within a subject
    logits = logits.repeat_interleave(3, 0) * slope + 1e-6 * torch.randn(600, 3, generator=g)
    y[:100, 1] = NAN
    subjects = np.arange(600) // 3
    alone, together = ece(logits, y), ece(logits, y, subjects)
    for k, (z, target) in enumerate(entries(logits, y)):
        rows = ~y[:, k].isnan().numpy()
        # thirteen subjects a bin are few for a normal number
        for found, units, near in ((alone, np.arange(rows.sum()), 0.0015), (together, subjects[rows], 0.004)):
            error, drawn = drawn_ece(z, target, units)
            assert drawn - error > 0.003  # there is something to take away
            assert float(found[k]) == pytest.approx(max(0.0, 2 * error - drawn), abs=near)


def test_the_calibration_error_of_two_equal_logits_is_that_of_the_formula():
    """One bin with surpluses of -.1 and .9: the mean .4, and its standard error .5."""
    drawn = 0.5 * math.sqrt(2 / math.pi) * math.exp(-0.32) + 0.4 * math.erf(0.8 / math.sqrt(2))
    logits = torch.full((2, 1), math.log(9), dtype=torch.float64)
    assert float(ece(logits, torch.tensor([[1.0], [0.0]]))) == pytest.approx(0.8 - drawn)


def test_a_calibrated_model_has_less_error_than_its_noise_and_an_uncalibrated_one_keeps_it():
    g = torch.Generator().manual_seed(7)
    logits = torch.randn(500, 40, generator=g)
    y = (torch.rand(500, 40, generator=g) < logits.sigmoid()).float()
    plain = np.mean([drawn_ece(z, t, np.arange(500), 1)[0] for z, t in entries(logits, y)])
    assert plain > 0.05
    assert float(ece(logits, y).mean()) == pytest.approx((2 - math.sqrt(2)) * plain, rel=0.1)  # draws: sqrt(2) times
    assert float(ece(torch.full_like(logits, 1.0), y).mean()) == pytest.approx(1 / (1 + math.exp(-1)) - 0.5, abs=0.01)


def test_weighted_areas_are_those_of_repeated_images():
    logits, y = pictures(n=60, labels=3, seed=8)
    y[:, 2] = torch.where(y[:, 2] == 1, NAN, y[:, 2])
    y[7, 2] = 1.0
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 4, (20, 60))
    counts[:10, 7] = 0  # the only positive of the last label is not drawn
    found = macro_auroc(logits, y)(counts.astype(np.float32))
    for row, value in zip(counts, found):
        rows = np.repeat(np.arange(60), row)
        assert value == pytest.approx(float(auroc(logits[rows], y[rows]).nanmean()), abs=1e-12)
    assert np.isnan(macro_auroc(logits, y)(np.zeros((1, 60), dtype=np.float32))).all()


def test_the_interval_is_near_that_of_placements():
    logits, y = pictures(n=1500, labels=4, seed=9)
    for subjects in (None, np.arange(1500) // 30):
        found = auroc_macro_interval(logits, y, subjects)
        assert found == pytest.approx(auroc_interval(logits.numpy(), y.numpy(), subjects), abs=0.004)
    assert auroc_macro_interval(logits, y) != auroc_macro_interval(logits, y, seed=1)


def test_the_interval_of_perfect_ranking_has_a_width():
    y = torch.arange(50).remainder(2)[:, None].float()
    low, high = auroc_macro_interval(y, y)
    assert 0.9 < low < high == 1


def test_coverage_over_images_and_over_subjects():
    """Of two labels that go together, and of forty subjects whose five images are nearly alike."""
    generator, found = np.random.default_rng(10), {"images": 0, "subjects": 0, "ignored": 0}
    truth = 0.5 * (1 + math.erf(1 / 2))  # positives lie one standard deviation higher
    for _ in range(200):
        for name, count, each in (("images", 200, 1), ("subjects", 40, 5)):
            y = (generator.random((count, 1)) < [0.5, 0.3]).astype(np.float32)
            centre = y + generator.normal(0, 0.95, (count, 2)) if each > 1 else y + generator.normal(0, 1, (count, 2))
            y, centre = np.repeat(y, each, axis=0), np.repeat(centre, each, axis=0)
            z = centre + (generator.normal(0, math.sqrt(1 - 0.95**2), centre.shape) if each > 1 else 0)
            pair, subjects = (torch.tensor(z), torch.tensor(y)), np.arange(len(y)) // each
            for key, units in ((name, subjects), *([("ignored", None)] if each > 1 else [])):
                low, high = auroc_macro_interval(*pair, units, draws=300)
                found[key] += low <= truth <= high
    assert 0.90 <= found["images"] / 200 <= 0.985
    assert 0.86 <= found["subjects"] / 200 <= 0.985
    assert found["ignored"] / 200 < 0.75


def test_equal_models_are_called_unequal_in_five_per_cent_and_a_better_one_is_found():
    g, wrong, widths = torch.Generator().manual_seed(11), 0, []
    for _ in range(200):
        y = (torch.rand(150, 2, generator=g) < 0.4).float()
        shared = y + torch.randn(150, 2, generator=g)
        one, other = (shared + 0.5 * torch.randn(150, 2, generator=g) for _ in range(2))
        found = auroc_macro_difference(one, other, y, draws=300)
        assert found.low <= found.value <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high) or 0.02 < found.p < 0.08
        wrong += found.p < 0.05
        widths.append(found.high - found.low)
    assert 0.01 <= wrong / 200 <= 0.09
    alone = auroc_macro_interval(one, y, draws=300)
    assert np.mean(widths) < alone[1] - alone[0]  # paired: what the two share does not count
    better = auroc_macro_difference(shared, torch.randn(150, 2, generator=g), y)
    assert better.low > 0.05
    assert better.p < 0.01
    worse = auroc_macro_difference(torch.randn(150, 2, generator=g), shared, y)
    assert worse.high < -0.05
    assert worse.p < 0.01


def test_mcnemar_of_every_label_is_the_binomial_test_with_holm():
    g = torch.Generator().manual_seed(12)
    y = (torch.rand(300, 4, generator=g) < 0.4).float()
    y[torch.rand(300, 4, generator=g) < 0.3] = NAN
    y[:, 3] = NAN
    one, other = ((y == 1) ^ (torch.rand(300, 4, generator=g) < share) for share in (0.1, 0.2))
    found = label_tests(one, other, y)
    p_values = []
    for k in range(3):
        rows = ~y[:, k].isnan()
        right, also = one[rows, k] == (y[rows, k] == 1), other[rows, k] == (y[rows, k] == 1)
        gained, lost = int((right & ~also).sum()), int((also & ~right).sum())
        assert (found[k].only_one, found[k].only_other) == (gained, lost)
        p_values.append(binomtest(gained, gained + lost).pvalue)
    assert [each.p for each in found[:3]] == pytest.approx(p_values)
    assert [each.p_holm for each in found[:3]] == pytest.approx(holm(p_values))
    assert found[3] == LabelTest(0, 0, 1.0, 1.0)


def test_images_of_one_subject_are_one_piece_of_evidence():
    y, subjects = torch.ones(60, 1), np.arange(60) // 10
    one, other = torch.ones(60, 1, dtype=torch.bool), torch.zeros(60, 1, dtype=torch.bool)
    assert label_tests(one, other, y)[0].p < 1e-15
    assert label_tests(one, other, y, subjects)[0].p == pytest.approx(2 / 2**6)
    y[:5] = NAN
    assert label_tests(one, other, y, subjects)[0].p == pytest.approx(2 / 2**6)


@st.composite
def small(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    n = draw(st.integers(2, 14))
    z = draw(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=n, max_size=n))
    y = draw(st.lists(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=2, max_size=2), min_size=n, max_size=n))
    return torch.tensor(z, dtype=torch.float32), torch.tensor(y)


@settings(deadline=None, max_examples=60)
@given(small())
def test_only_the_order_matters_and_the_reverse_order_is_the_complement(problem):
    logits, y = problem
    area = auroc(logits, y)
    torch.testing.assert_close(auroc(logits.double().exp() * 5 - 2, y), area, equal_nan=True)
    torch.testing.assert_close(auroc(-logits, y), 1 - area, equal_nan=True)
    torch.testing.assert_close(auroc(logits, 1 - y), 1 - area, equal_nan=True)
    assert area.isnan().tolist() == (~scored(y)).tolist()


@settings(deadline=None, max_examples=60)
@given(small())
def test_no_cut_has_a_higher_f1(problem):
    logits, y = problem
    for z, target in entries(logits, y):
        if target.sum():
            assert best_cut(torch.tensor(z), torch.tensor(target == 1)) == slow_cut(z, target)


@settings(deadline=None, max_examples=60)
@given(small(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(problem, random):
    logits, y = problem
    order = list(range(len(y)))
    random.shuffle(order)
    cuts = choose_thresholds(logits, y)
    assert choose_thresholds(logits[order], y[order]).tolist() == cuts.tolist()
    expected = multilabel_metrics(logits, y, cuts)
    assert multilabel_metrics(logits[order], y[order], cuts) == pytest.approx(expected, abs=1e-9)
    shares = {key: value for key, value in expected.items() if key not in ("loss", "labels_scored")}
    assert all(0 <= value <= 1 for value in shares.values())
