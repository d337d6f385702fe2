import math
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tensors import LargeTensors
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch.nn.functional import normalize

from cbm.solvers import Codes, penalty_for_count, sparse_code

LAMS = (0.4, 0.2, 0.08)


def random(n, d, k, seed=0, dtype=torch.float32):
    """Unit pictures and words without structure."""
    g = torch.Generator().manual_seed(seed)
    x, words = (normalize(torch.randn(rows, d, generator=g, dtype=torch.float64), dim=1) for rows in (n, k))
    return x.to(dtype), words.to(dtype)


def correlated(k, d, seed=0):
    """Centred unit words in clusters: nearest neighbours have a cosine of about 0.6, as those of a vocabulary have."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k // 8, d, generator=g)
    words = centres.repeat_interleave(8, 0) + torch.randn(k // 8 * 8, d, generator=g)
    return normalize(words - words.mean(0), dim=1)


def planted(words, n, k, noise, seed=0):
    """Sums of k words with weights from 0.5 to 1.5 and noise of a share of the norm: unit pictures and the words."""
    g = torch.Generator().manual_seed(seed)
    true = torch.stack([torch.randperm(len(words), generator=g)[:k] for _ in range(n)])
    clean = ((0.5 + torch.rand(n, k, 1, generator=g)) * words[true]).sum(1)
    errors = normalize(torch.randn(clean.shape, generator=g), dim=1) * clean.norm(dim=1, keepdim=True)
    return normalize(clean + noise * errors, dim=1), true


def by_sklearn(x, words, lam, signed=False, weights=None):
    """Scikit-learn's optimum in float64, one picture at a time."""
    scaled = words.double() if weights is None else words.double() / weights.double()[:, None]
    design = np.asfortranarray(scaled.numpy().T)
    model = Lasso(alpha=lam / x.shape[1], positive=not signed, fit_intercept=False, tol=1e-12, max_iter=100_000)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-12 is not always reached in float64
        for row in x.double().numpy():
            rows.append(model.fit(design, row).coef_.copy())
    z = torch.from_numpy(np.stack(rows))
    return z if weights is None else z / weights.double()


def objective(x, words, z, lam, weights=1.0):
    z = z.double()
    return 0.5 * (x.double() - z @ words.double()).square().sum(1) + lam * (weights * z.abs()).sum(1)


def true_gap(x, words, z, lam, signed=False):
    """The duality gap, densely and in float64."""
    z, e = z.double(), x.double() - z.double() @ words.double()
    pull = e @ words.double().T
    highest = (pull.abs() if signed else pull).amax(1).clamp(min=1e-30)
    scale = torch.minimum((x.double() * e).sum(1) / e.square().sum(1).clamp(min=1e-30), lam / highest)
    dual = 0.5 * x.double().square().sum(1) - 0.5 * (x.double() - scale[:, None] * e).square().sum(1)
    return objective(x, words, z, lam) - dual


def no_word_twice(codes: Codes) -> bool:
    return all(len(set(used)) == len(used) for row in codes.columns.tolist() for used in [[c for c in row if c >= 0]])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("lam", LAMS)
def test_optimum_of_scikit_learn_in_float64(lam, signed):
    x, words = random(40, 64, 500, dtype=torch.float64)
    codes = sparse_code(x, words, lam=lam, sign="free" if signed else "nonnegative", tol=1e-12)
    z, best = codes.dense(500), by_sklearn(x, words, lam, signed)
    assert float((objective(x, words, z, lam) - objective(x, words, best, lam)).abs().max()) < 1e-8
    assert float((z - best).abs().max()) < 1e-5
    assert torch.equal(z.abs() > 1e-9, best.abs() > 1e-9)
    assert torch.equal(z.sign(), torch.where(best.abs() > 1e-9, best.sign(), 0.0))
    assert float(codes.gap.max()) <= 1e-12


@pytest.mark.parametrize("lam", LAMS)
def test_optimum_in_float32_and_its_certificate(lam):
    x, words = random(40, 64, 500)
    codes = sparse_code(x, words, lam=lam)
    z, best = codes.dense(500), by_sklearn(x, words, lam)
    assert float((objective(x, words, z, lam) - objective(x, words, best, lam)).abs().max()) < 1e-6
    assert torch.equal(z > 1e-4, best > 1e-4)
    truth = true_gap(x, words, z, lam)
    assert bool((codes.gap >= truth - 1e-7).all())
    assert float(codes.gap.max()) <= 1e-6
    pull = (x.double() - z.double() @ words.double()) @ words.double().T
    assert float(pull.max()) <= lam + 1e-5
    assert float((pull - lam)[z > 0].abs().max()) <= 1e-5


@pytest.mark.parametrize("size", [100, 20, 3])
def test_few_words_and_none_twice(size):
    x, words = random(60, 64, size)
    codes = sparse_code(x, words, lam=0.05)
    assert no_word_twice(codes)
    assert bool((codes.values[codes.columns >= 0] > 0).all())
    assert not codes.values[codes.columns < 0].any()
    assert float(true_gap(x, words, codes.dense(size), 0.05).max()) <= 1e-6 + 1e-7


def test_empty_codes():
    x, words = random(30, 32, 200)
    x[3] = 0
    highest = (x @ words.T).amax(1)
    codes = sparse_code(x, words, lam=float(highest.max()) * 1.0001)
    assert codes.values.shape == codes.columns.shape == (30, 0)
    assert not codes.gap.any()
    assert not codes.dense(200).any()
    assert not codes.reconstruct(words).any()
    some = sparse_code(x, words, lam=float(highest.median()))
    assert torch.equal(some.count == 0, highest <= highest.median())
    assert int(sparse_code(x, words, k=4).count[3]) == 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 9), d=st.integers(1, 20), k=st.integers(1, 60),
    lam=st.sampled_from([0.01, 0.1, 0.5]), signed=st.booleans(), twins=st.booleans(),
)  # fmt: skip
def test_any_problem(seed, n, d, k, lam, signed, twins):
    x, words = random(n, d, k, seed, torch.float64)
    if twins:
        words = torch.cat([words, words, torch.zeros(2, d)])
    codes = sparse_code(x, words, lam=lam, sign="free" if signed else "nonnegative", tol=1e-9)
    assert no_word_twice(codes)
    truth = true_gap(x, words, codes.dense(len(words)), lam, signed)
    assert float(truth.max()) <= 1e-9
    assert bool((codes.gap >= truth - 1e-12).all())
    assert signed or bool((codes.values >= 0).all())
    assert not (codes.columns >= k).any()  # of two equal words the first


def test_chunks_orders_and_repetitions():
    x, words = random(60, 48, 600)
    for setting in ({"lam": 0.15}, {"k": 6}, {"lam": 0.15, "sign": "free"}, {"lam": 0.15, "refit": True}):
        codes = sparse_code(x, words, **setting)
        again = sparse_code(x, words, **setting)
        assert torch.equal(codes.values, again.values)
        assert torch.equal(codes.columns, again.columns)
        assert torch.equal(codes.gap.nan_to_num(), again.gap.nan_to_num())
        z = codes.dense(600)
        g = torch.Generator().manual_seed(1)
        rows, order = torch.randperm(60, generator=g), torch.randperm(600, generator=g)
        for other in (
            sparse_code(x, words, chunk=13, **setting).dense(600),
            sparse_code(x[rows], words, **setting).dense(600)[rows.argsort()],
            sparse_code(x, words[order], **setting).dense(600)[:, order.argsort()],
        ):
            assert float((other - z).abs().max()) < 2e-5


def test_mapped_half_precision_equals_its_copy(tmp_path):
    x, words = random(90, 32, 300)
    np.save(tmp_path / "x.npy", x.half().numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    codes, copy = (sparse_code(each, words, lam=0.2, chunk=32) for each in (mapped, x.half().float()))
    assert torch.equal(codes.values, copy.values)
    assert torch.equal(codes.columns, copy.columns)
    assert codes.values.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gaussian", "words"])
@pytest.mark.parametrize("k", [3, 5, 10])
def test_planted_words_are_found(kind, k):
    words = correlated(2000, 384) if kind == "words" else random(1, 384, 2000)[1]
    for noise in (0.3, 0.0):
        x, true = planted(words, 100, k, noise)
        hidden = torch.zeros(100, 2000, dtype=torch.bool).scatter_(1, true, True)
        codes = sparse_code(x, words, lam=0.03 if k == 10 else 0.05)
        z = codes.dense(2000)
        assert float((z > 0)[hidden].double().mean()) >= (0.99 if noise else 0.98)
        top = torch.zeros_like(hidden).scatter_(1, codes.columns[:, :k].clamp(min=0), True)
        assert float(hidden[top].double().mean()) >= 0.98
        pursued = sparse_code(x, words, k=k).dense(2000) > 0
        at_least = 0.97 if k == 10 else 0.98
        assert float(pursued[hidden].double().mean()) >= at_least
        assert float(hidden[pursued].double().mean()) >= at_least


def test_pursuit_finds_planted_words_among_ten_thousand():
    words = correlated(10_000, 384)
    x, true = planted(words, 60, 5, 0.3)
    columns = sparse_code(x, words, k=5).columns
    found = (columns[:, :, None] == true[:, None, :]).any(2)
    assert float(found.double().mean()) >= 0.97


@pytest.mark.parametrize(("name", "value"), [("_START", 3), ("_START", 60), ("_ADD", 1), ("_ADD", 64)])
def test_size_of_working_sets_does_not_matter(monkeypatch, name, value):
    x, words = random(30, 48, 600)
    z = sparse_code(x, words, lam=0.12).dense(600)
    monkeypatch.setattr(sys.modules["cbm.solvers.sparse_code"], name, value)
    assert float((sparse_code(x, words, lam=0.12).dense(600) - z).abs().max()) < 2e-5


def pursuit_by_nnls(row, words, k, signed=False):
    """Orthogonal matching pursuit of one picture in float64: weights [K] after every step."""
    used, residual, steps = [], row, []
    for _ in range(4 * k):
        pull = words @ residual
        best = int(np.argmax(np.abs(pull) if signed else pull))
        if len(used) == k or best in used:
            break
        used.append(best)
        w = np.linalg.lstsq(words[used].T, row, rcond=None)[0] if signed else nnls(words[used].T, row)[0]
        used, w = [u for u, value in zip(used, w) if value != 0], w[w != 0]
        residual = row - w @ words[used]
        steps.append(np.zeros(len(words)))
        steps[-1][used] = w
    return steps


@pytest.mark.parametrize("signed", [False, True])
def test_pursuit_is_a_loop_of_nnls(signed):
    x, words = random(12, 48, 400, dtype=torch.float64)
    sign = "free" if signed else "nonnegative"
    for k in (1, 4, 12):
        codes = sparse_code(x, words, k=k, sign=sign)
        best = np.stack([pursuit_by_nnls(row, words.numpy(), k, signed)[-1] for row in x.numpy()])
        assert float((codes.dense(400) - torch.from_numpy(best)).abs().max()) < 1e-6
        assert (codes.count == k).all()
        assert codes.gap.isnan().all()
        left = (x - codes.reconstruct(words)) @ words.T
        assert float((codes.violation - (left.abs() if signed else left).amax(1)).abs().max()) < 1e-9
    single = sparse_code(x.float(), words.float(), k=12, sign=sign)
    assert float((single.dense(400) - codes.dense(400)).abs().max()) < 1e-5


def test_residuals_fall_with_every_word_and_pursuit_stops_at_the_rank():
    x, words = random(20, 10, 80)
    norms = torch.stack([(x - sparse_code(x, words, k=k).reconstruct(words)).norm(dim=1) for k in range(1, 9)])
    assert bool((norms[1:] <= norms[:-1] + 1e-6).all())
    many = sparse_code(x, words, k=40)
    assert int(many.count.max()) <= 10
    assert float((x - many.reconstruct(words)).norm(dim=1).max()) < 1e-5


@pytest.mark.parametrize("sign", ["nonnegative", "free"])
def test_refit_stays_on_the_support_and_never_raises_the_error(sign):
    x, words = random(40, 64, 500)
    codes = sparse_code(x, words, lam=0.1, sign=sign)
    again = sparse_code(x, words, lam=0.1, sign=sign, refit=True)
    z, refitted = codes.dense(500), again.dense(500)
    assert not refitted[z == 0].any()
    assert sign == "free" or bool((refitted >= 0).all())
    errors = [(x - c.reconstruct(words)).norm(dim=1) for c in (codes, again)]
    assert bool((errors[1] < errors[0]).all())
    if sign == "nonnegative":
        for row, weights, before in zip(x.double().numpy(), refitted, z):
            used = before.nonzero()[:, 0]
            best = nnls(words[used].double().numpy().T, row)[0]
            assert float((weights[used].double() - torch.from_numpy(best)).abs().max()) < 1e-4
    assert torch.equal(codes.gap, again.gap)


def test_allowed_equals_a_dictionary_without_the_word():
    x, words = random(40, 32, 200)
    used = sparse_code(x, words, lam=0.15)
    banned = used.columns[:, 0].unique()
    allowed = torch.ones(200, dtype=torch.bool)
    allowed[banned] = False
    for setting in ({"lam": 0.15}, {"k": 5}, {"lam": 0.1, "sign": "free"}):
        z = sparse_code(x, words, allowed=allowed, **setting).dense(200)
        assert not z[:, ~allowed].any()
        assert (
            float((z[:, allowed] - sparse_code(x, words[allowed], **setting).dense(int(allowed.sum()))).abs().max())
            < 1e-5
        )
    none = sparse_code(x, words, lam=0.1, allowed=torch.zeros(200, dtype=torch.bool))
    assert not none.count.any()
    assert not sparse_code(x, words, k=3, allowed=torch.zeros(200, dtype=torch.bool)).count.any()


@pytest.mark.parametrize("signed", [False, True])
def test_penalties_per_word(signed):
    x, words = random(25, 40, 150, dtype=torch.float64)
    sign = "free" if signed else "nonnegative"
    g = torch.Generator().manual_seed(3)
    weights = 0.5 + torch.rand(150, generator=g, dtype=torch.float64)
    codes = sparse_code(x, words, lam=0.15, penalty=weights, sign=sign, tol=1e-10)
    best = by_sklearn(x, words, 0.15, signed, weights)
    assert float((codes.dense(150) - best).abs().max()) < 1e-5
    assert float(codes.gap.max()) <= 1e-10

    weights[:3], weights[3:40] = 0.0, torch.inf
    codes = sparse_code(x, words, lam=0.15, penalty=weights, sign=sign, tol=1e-10)
    z = codes.dense(150)
    assert not z[:, 3:40].any()
    assert float(codes.gap.max()) <= 1e-10
    if signed:  # free words: least squares on what the others leave
        away = torch.linalg.qr(words[:3].T).Q
        rest = [m - m @ away @ away.T for m in (x, words[40:])]
        best = by_sklearn(*rest, 0.15, True, weights[40:])
        assert float((z[:, 40:] - best).abs().max()) < 1e-5
    pull = (x - z @ words) @ words.T
    assert float((pull[:, :3].abs() if signed else pull[:, :3]).max()) < 1e-9
    assert float(pull[:, :3][z[:, :3] != 0].abs().max()) < 1e-9


def test_hundreds_of_signed_words_in_use():
    """What Z-CBM's penalty leads to: sets grow with what is in use."""
    words = correlated(1024, 256)
    x = normalize(torch.randn(2, 256, generator=torch.Generator().manual_seed(2)), dim=1)
    codes = sparse_code(x, words, lam=0.01, sign="free")
    assert int(codes.count.min()) > 150
    assert codes.passes < 30
    best = by_sklearn(x, words, 0.01, signed=True)
    worse = objective(x, words, codes.dense(1024), 0.01) - objective(x, words, best, 0.01)
    assert float(worse.max()) < 2e-6
    assert float(true_gap(x, words, codes.dense(1024), 0.01, True).max()) < 5e-6


def test_nothing_is_as_large_as_pictures_times_words():
    x, words = random(3000, 16, 5000)
    with LargeTensors(3000 * 5000 // 4, x, words) as large:
        sparse_code(x, words, lam=0.4)
    assert not large.made


def test_penalty_for_a_number_of_words():
    x, words = random(300, 64, 800)
    for count in (3, 12):
        lam = penalty_for_count(x, words, count)
        assert lam == penalty_for_count(x, words, count)
        assert abs(float(sparse_code(x, words, lam=lam).count.double().mean()) - count) <= 0.02 * count
    assert penalty_for_count(x, words, 3) > lam
    with pytest.raises(ValueError, match="count is 0"):
        penalty_for_count(x, words, 0)
    with pytest.raises(ValueError, match="no word correlates"):
        penalty_for_count(torch.zeros(3, 4), torch.eye(4), 1)


def test_reconstruction_and_shapes():
    x, words = random(50, 32, 100)
    codes = sparse_code(x, words, lam=0.2)
    assert len(codes) == 50
    assert torch.equal(codes.count, (codes.dense(100) > 0).sum(1))
    assert bool((codes.values[:, 1:] <= codes.values[:, :-1]).all())
    assert float((codes.reconstruct(words) - codes.dense(100) @ words).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="the codes use column"):
        codes.dense(int(codes.columns.max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "lam is None and k is None"),
        ({"lam": 0.1, "k": 2}, "expected exactly one"),
        ({"lam": 0.0}, "lam is 0.0"),
        ({"lam": math.nan}, "lam is nan"),
        ({"k": 0}, "k is 0"),
        ({"k": 21}, "k is 21"),
        ({"lam": 0.1, "sign": "positive"}, "sign is 'positive'"),
        ({"lam": 0.1, "tol": -1.0}, "tol is -1.0"),
        ({"lam": 0.1, "chunk": 0}, "chunk is 0"),
        ({"lam": 0.1, "allowed": torch.ones(20)}, "allowed has shape"),
        ({"lam": 0.1, "penalty": torch.ones(19)}, "penalty has shape"),
        ({"lam": 0.1, "penalty": -torch.ones(20)}, "penalty reaches down to -1"),
        ({"k": 3, "penalty": torch.ones(20)}, "penalty is given with k"),
        ({"lam": 0.1, "x": torch.ones(5, 9)}, "dictionary has shape"),
        ({"lam": 0.1, "x": torch.full((5, 8), torch.nan)}, "x has a NaN"),
        ({"lam": 0.1, "dictionary": torch.full((20, 8), torch.inf)}, "dictionary has a NaN"),
    ],
)
def test_what_is_not_accepted_is_named(change, message):
    x, words = random(5, 8, 20)
    given_ = {"x": x, "dictionary": words} | change
    with pytest.raises(ValueError, match=message):
        sparse_code(given_.pop("x"), given_.pop("dictionary"), **given_)


def test_gap_is_never_below_zero_where_rounding_turns_the_residual_round():
    """With almost no penalty the residual is rounding; scaled by a negative number it is no dual point."""
    generator = torch.Generator().manual_seed(0)
    x, words = (normalize(torch.randn(50, 2, generator=generator), dim=1) for _ in range(2))
    for sign in ("nonnegative", "free"):
        assert float(sparse_code(x, words, lam=1e-8, sign=sign).gap.min()) > -1e-12
