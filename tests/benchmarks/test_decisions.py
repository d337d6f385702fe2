"""Decisions of the results pages: kept, read again, and their intervals over images."""

import importlib
import json

import numpy as np
import pytest
import torch
from conftest import PROJECT


@pytest.fixture
def decisions(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    return importlib.import_module("decisions")


def test_decisions_are_read_as_they_were_written_and_nothing_is_measured_twice(decisions, tmp_path):
    right = torch.rand(13, generator=torch.Generator().manual_seed(0)) < 0.5
    assert np.array_equal(decisions.unpack(decisions.pack(right)), right.numpy().astype(float))
    rows = decisions.Rows(tmp_path / "rows.jsonl", ("what", "seed"))
    rows.add(("probe", 0), right=decisions.pack(right))
    again = decisions.Rows(tmp_path / "rows.jsonl", ("what", "seed"))
    assert ("probe", 0) in again
    assert ("probe", 1) not in again
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == again.where(what="probe")[0]


def test_intervals_against_formulas(decisions):
    newcombe = (0.2553, 0.3662)  # 81 of 263, Newcombe (1998)
    assert decisions.wilson(np.repeat([1.0, 0.0], [81, 182])) == pytest.approx(newcombe, abs=1e-4)
    assert decisions.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    images = decisions.Images(labels)
    values = (generator.random((3, 1000)) < np.array([0.9, 0.6, 0.3])[labels]).astype(float)
    each = values.mean(axis=0)
    for macro in (False, True):
        shares = [each[labels == c] for c in range(3)]
        mean = np.mean([share.mean() for share in shares]) if macro else each.mean()
        error = np.sqrt(sum(s.var() / len(s) for s in shares)) / 3 if macro else each.std() / np.sqrt(1000)
        assert images.mean(values, macro) == pytest.approx(mean)
        expected = (mean - 1.96 * error, mean + 1.96 * error)
        assert images.interval(values, macro) == pytest.approx(expected, abs=0.15 * error)
    # three runs that agree are one: seeds of a deterministic method are no sample
    assert images.interval(np.repeat(values[:1], 3, axis=0)) == decisions.wilson(values[0])


def test_a_paired_difference_is_seen_that_intervals_of_both_would_hide(decisions):
    one = np.tile([1.0, 1.0, 0.0, 1.0], 100)
    other = one.copy()
    other[:12] = 0.0  # nine decisions lost, none gained
    images = decisions.Images(np.tile([0, 1], 200))
    low, high = images.interval(other[None] - one[None])
    assert low < high < 0
    assert images.interval(other[None])[1] > images.interval(one[None])[0]
    assert images.p_value(other[None] - one[None]) < 0.01
    assert images.p_value(one[None] - one[None]) == 1.0
