"""Error slices: every z by hand, a planted slice is found and confirmed, and nothing where nothing is."""

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact

from cbm.metrics.paired import holm
from cbm.metrics.slices import ENOUGH, LEVEL, Decided, Literal, _standing_out, error_slices

K = 50


def pictures(n: int, generator: np.random.Generator, *, planted: bool) -> Decided:
    """Scores of 50 concepts; errors in .15, and in .60 where concept 3 is high and 7 low (one in 16 pictures)."""
    scores = generator.normal(size=(n, K))
    inside = (scores[:, 3] > 0.6745) & (scores[:, 7] < -0.6745)
    wrong = generator.random(n) < np.where(inside & planted, 0.6, 0.15)
    return Decided(scores, wrong, np.full((n, K), np.nan))


def test_every_z_is_counted_picture_by_picture():
    generator = np.random.default_rng(0)
    member, wrong = generator.random((300, 6)) < 0.3, generator.random(300) < 0.2
    as_float = member.astype(np.float32)
    z = _standing_out(as_float, as_float.T @ as_float, wrong)
    for a in range(6):
        for b in range(6):
            inside = [i for i in range(300) if member[i, a] and member[i, b]]
            outside = [i for i in range(300) if not (member[i, a] and member[i, b])]
            if b < a or len(inside) < ENOUGH or len(outside) < ENOUGH:
                assert z[a, b] == -np.inf
                continue
            rates = [sum(bool(wrong[i]) for i in rows) / len(rows) for rows in (inside, outside)]
            e = sum(bool(w) for w in wrong) / 300
            error = (e * (1 - e) * (1 / len(inside) + 1 / len(outside))) ** 0.5
            assert z[a, b] == pytest.approx((rates[0] - rates[1]) / error, rel=1e-5)


def test_a_planted_slice_is_found_and_confirmed():
    hits = confirmed = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        val, test = (pictures(1000, generator, planted=True) for _ in range(2))
        found = error_slices(val, test, seed=seed)
        if found and {(each.concept, each.shown) for each in found[0].literals} == {(3, True), (7, False)}:
            hits += 1
            confirmed += found[0].confirmed
            assert found[0].said([f"c{k}" for k in range(K)]) == "'c3' is high and 'c7' is low"
    assert hits >= 18
    assert confirmed >= 18


def test_where_errors_have_nothing_to_do_with_concepts_nothing_is_found():
    alarms = 0
    for seed in range(50):
        generator = np.random.default_rng(1000 + seed)
        val = pictures(200, generator, planted=False)
        alarms += bool(error_slices(val, val, seed=seed))
    assert alarms <= binom.ppf(0.99, 50, LEVEL)


def test_labels_name_the_slice_where_there_are_any():
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(2):
        truth = (generator.random((800, 4)) < 0.4).astype(float)
        wrong = generator.random(800) < np.where((truth[:, 0] == 1) & (truth[:, 2] == 0), 0.6, 0.1)
        truth[generator.random((800, 4)) < 0.1] = np.nan
        parts.append(Decided(generator.normal(size=(800, 4)), wrong, truth))
    first = error_slices(*parts)[0]
    assert first.literals == (Literal(0, True, None), Literal(2, False, None))
    assert first.said(["water", "", "long beak", ""]) == "'water' is present and 'long beak' is absent"
    unknown = np.isnan(parts[0].truth[:, 0])
    assert not first.holds(parts[0])[unknown].any()


def test_the_test_pictures_use_the_cuts_of_the_validation_pictures_and_fishers_test():
    generator = np.random.default_rng(5)
    val, test = pictures(1000, generator, planted=True), pictures(700, generator, planted=True)
    found = error_slices(val, test)
    p_values = []
    covered = np.zeros(1000, dtype=bool)
    for each in found:
        inside = np.ones(700, dtype=bool)
        for literal in each.literals:
            edge = np.quantile(val.scores[:, literal.concept], 0.75 if literal.shown else 0.25)
            score = test.scores[:, literal.concept]
            inside &= score >= edge if literal.shown else score <= edge
        assert each.tested.count == inside.sum()
        assert each.tested.inside == pytest.approx(test.wrong[inside].mean())
        assert each.tested.outside == pytest.approx(test.wrong[~inside].mean())
        counts = [[(inside & test.wrong).sum(), (inside & ~test.wrong).sum()],
                  [(~inside & test.wrong).sum(), (~inside & ~test.wrong).sum()]]  # fmt: skip
        p_values.append(fisher_exact(counts, alternative="greater")[1])
        assert each.p <= LEVEL
        mine = each.holds(val)
        assert covered[mine].mean() <= 0.5
        covered |= mine
    assert [each.test_p for each in found] == pytest.approx(holm(p_values))


def test_too_few_errors_have_no_slices():
    generator = np.random.default_rng(0)
    val = pictures(300, generator, planted=False)
    few = np.zeros(300, dtype=bool)
    few[: ENOUGH - 1] = True
    assert error_slices(Decided(val.scores, few, val.truth), val) == []
    flat = Decided(np.zeros((300, K)), val.wrong, val.truth)
    assert error_slices(flat, flat) == []
