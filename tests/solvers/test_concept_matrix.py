import math
import sys

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from cbm.solvers import ConceptMatrix, cms_scores, concept_matrix

RULES = ["similarity", "cubed", "max"]
NORMS = [("none", False), ("row", False), ("col", False), ("none", True)]
each_rule = pytest.mark.parametrize("rule", RULES)
each_norm = pytest.mark.parametrize(("norm", "center"), NORMS)


def clip_like(n, k, c, d=64, seed=0, dtype=torch.float32):
    """Unit rows in two narrow cones, one of pictures and one of texts, with the pictures near their classes."""
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).double() ** -0.4

    def draw(rows):
        return normalize(torch.randn(rows, d, generator=g).double() * spectrum, dim=1)

    common, gap = normalize(draw(2), dim=1)
    kinds = draw(c)
    texts, pictures = common, normalize(0.4 * common + gap, dim=0)
    classes, concepts = texts + 0.6 * kinds, texts + 0.7 * draw(k)
    x = pictures + 0.35 * kinds[torch.randint(c, (n,), generator=g)] + 0.5 * draw(n)
    return tuple(normalize(t, dim=1).to(dtype) for t in (x, classes, concepts))


def brute_force(x, classes, concepts, rule, norm, center):
    """Both matrices as published, and the scores one picture and class at a time, in python floats."""
    v, t = (
        [[math.fsum(a * b for a, b in zip(r, q)) for q in concepts.tolist()] for r in m.tolist()] for m in (x, classes)
    )
    if norm == "row":
        v, t = ([[a / (math.fsum(r) + 1e-8) for a in r] for r in m] for m in (v, t))
    if norm == "col":
        v, t = ([[a / math.fsum(column) for a, column in zip(r, zip(*m))] for r in m] for m in (v, t))
    if center:
        v, t = ([[a - math.fsum(column) / len(m) for a, column in zip(r, zip(*m))] for r in m] for m in (v, t))
    scores = []
    for picture in v:
        scores.append([])
        for row in t:
            if rule == "max":
                scores[-1].append(row[picture.index(max(picture))])
                continue
            a, b = ([e**3 for e in r] if rule == "cubed" else r for r in (picture, row))
            scores[-1].append(math.fsum(p * q for p, q in zip(a, b)) / (math.hypot(*a) * math.hypot(*b)))
    return torch.tensor(scores, dtype=torch.float64)


@each_rule
@each_norm
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [5, 30])  # fewer and more concepts than dimensions
def test_scores_equal_a_double_loop(rule, norm, center, seed, k):
    x, classes, concepts = clip_like(12, k, 4, d=8, seed=seed, dtype=torch.float64)
    x, classes, concepts = x.abs(), classes.abs(), concepts.abs()  # published normalisation needs positive sums
    expected = brute_force(x, classes, concepts, rule, norm, center)
    for path in ["auto", "matrix"] + ["metric"] * (rule == "similarity"):
        got = cms_scores(x, classes, concepts, rule=rule, norm=norm, center=center, path=path)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert expected.std(0).min() > 0 or rule == "max"


@each_norm
def test_closed_form_equals_the_rows(norm, center):
    for k in (20, 300):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            data = clip_like(200, k, 7, dtype=dtype)
            metric, matrix = (cms_scores(*data, norm=norm, center=center, path=p) for p in ("metric", "matrix"))
            torch.testing.assert_close(metric, matrix, rtol=0, atol=tolerance)
            assert torch.equal(metric, cms_scores(*data, norm=norm, center=center))


@each_rule
@each_norm
def test_concept_matrix_says_how_rows_are_written(rule, norm, center):
    x, classes, concepts = clip_like(50, 30, 5, dtype=torch.float64)
    found = concept_matrix(classes, concepts, norm=norm, center=center, image_mean=x.mean(0))
    assert isinstance(found, ConceptMatrix)
    v, rows = (x @ concepts.T - found.offset) * found.weight, found.rows
    if rule == "max":
        expected = rows[:, v.argmax(1)].T
    else:
        power = 3 if rule == "cubed" else 1
        expected = normalize(v**power, dim=1) @ normalize(rows**power, dim=1).T
    got = cms_scores(x, classes, concepts, rule=rule, norm=norm, center=center, image_mean=x.mean(0))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if center:
        assert float(v.mean(0).abs().max()) < 1e-14
        assert float(rows.mean(0).abs().max()) < 1e-14
    if norm == "col":
        torch.testing.assert_close(v.mean(0), torch.ones(30).double())
        torch.testing.assert_close(rows.sum(0), torch.ones(30).double())
    if norm == "row":
        torch.testing.assert_close(rows.sum(1), torch.ones(5).double(), rtol=1e-8, atol=0)


@each_rule
@pytest.mark.parametrize("norm", ["none", "row"])
def test_a_factor_on_a_row_changes_nothing(rule, norm):
    x, classes, concepts = clip_like(40, 30, 5, dtype=torch.float64)
    expected = cms_scores(x, classes, concepts, rule=rule, norm=norm)
    factors = torch.logspace(-4, 4, 40).double()[:, None]
    torch.testing.assert_close(cms_scores(factors * x, classes, concepts, rule=rule, norm=norm), expected)
    if rule != "max":  # the class rows of the max rule are compared with each other
        torch.testing.assert_close(cms_scores(x, factors[:5] * classes, concepts, rule=rule, norm=norm), expected)
        torch.testing.assert_close(cms_scores(x, classes, concepts, rule=rule), expected)
    tiny = cms_scores((1e-15 * x).float(), classes.float(), concepts.float(), rule=rule, norm=norm)
    torch.testing.assert_close(tiny.double(), expected, rtol=1e-4, atol=1e-5)


def test_row_normalisation_changes_the_max_rule():
    x, concepts = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    classes = torch.tensor([[0.8, 0.6], [0.7, 0.1]])
    assert cms_scores(x, classes, concepts, rule="max").argmax() == 0
    assert cms_scores(x, classes, concepts, rule="max", norm="row").argmax() == 1


@pytest.mark.parametrize("path", ["metric", "matrix"])
def test_an_orthonormal_basis_is_zero_shot_classification(path):
    x, classes, _ = clip_like(500, 1, 10, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).double())[0]
    scores = cms_scores(x, classes, basis, path=path)
    torch.testing.assert_close(scores, x @ classes.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(scores.argmax(1), (x @ classes.T).argmax(1))


@each_rule
@pytest.mark.parametrize(("norm", "center"), [("col", False), ("none", True)])
def test_transductive_unless_the_mean_is_given(rule, norm, center):
    x, classes, concepts = clip_like(100, 30, 5, dtype=torch.float64)
    x = x[(x @ classes.T).argmax(1).argsort()]  # the first ten pictures are not like the rest
    options = dict(rule=rule, norm=norm, center=center)
    together, alone = cms_scores(x, classes, concepts, **options)[:10], cms_scores(x[:10], classes, concepts, **options)
    assert float((together - alone).abs().max()) > 1e-3
    mean = x.mean(0)
    alone = cms_scores(x[:10], classes, concepts, **options, image_mean=mean)
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "row"])
@each_rule
def test_not_transductive_otherwise(rule, norm):
    x, classes, concepts = clip_like(100, 30, 5, dtype=torch.float64)
    together = cms_scores(x, classes, concepts, rule=rule, norm=norm)
    alone = cms_scores(x[:10], classes, concepts, rule=rule, norm=norm, image_mean=x[-1])
    torch.testing.assert_close(alone, together[:10], rtol=1e-12, atol=1e-12)


@each_rule
@each_norm
def test_classes_of_disjoint_concepts_are_told_apart(rule, norm, center):
    g = torch.Generator().manual_seed(0)
    concepts = torch.linalg.qr(torch.randn(64, 64, generator=g))[0][:40]  # 8 classes of 5 concepts
    y = torch.arange(8).repeat(50)
    present = torch.nn.functional.one_hot(y, 8).repeat_interleave(5, dim=1) * (0.2 + torch.rand(400, 40, generator=g))
    x = normalize(present @ concepts + 0.01 * torch.randn(400, 64, generator=g), dim=1)
    classes = normalize(torch.eye(8).repeat_interleave(5, dim=1) @ concepts, dim=1)
    predicted = cms_scores(x, classes, concepts, rule=rule, norm=norm, center=center).argmax(1)
    assert torch.equal(predicted, y)


@each_rule
@each_norm
def test_float32_decides_as_float64_does(rule, norm, center):
    x, classes, concepts = clip_like(2000, 300, 20, d=256)
    exact = cms_scores(x.double(), classes.double(), concepts.double(), rule=rule, norm=norm, center=center)
    single = cms_scores(x, classes, concepts, rule=rule, norm=norm, center=center)
    assert single.dtype == torch.float32
    assert float((single.argmax(1) == exact.argmax(1)).double().mean()) >= 0.999
    if rule == "similarity" and norm == "none" and not center:  # as narrow as CLIP's
        gaps = exact.topk(2).values.diff().abs()
        assert float(exact.mean()) > 0.95
        assert float(gaps.median()) < 3e-3


@each_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast(rule, dtype):
    data = [t.to(dtype) for t in clip_like(300, 40, 6)]
    expected = cms_scores(*(t.float() for t in data), rule=rule)
    assert torch.equal(cms_scores(*data, rule=rule), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cms_scores(*data, rule=rule), expected)
    assert cms_scores(data[0], data[1].double(), data[2], rule=rule).dtype == torch.float64
    mean = data[0].double().mean(0)
    assert cms_scores(*data, rule=rule, norm="col", image_mean=mean).dtype == torch.float32


@each_rule
def test_a_concept_without_a_positive_mean_is_left_out_of_columns(rule):
    x, classes, concepts = clip_like(60, 20, 5, dtype=torch.float64)
    pictures, texts = normalize(x.mean(0), dim=0), normalize(classes.mean(0), dim=0)
    across = pictures @ texts
    for_pictures, for_texts = pictures - across * texts, texts - across * pictures  # each zero for the others' mean
    more = torch.cat([normalize(torch.stack([for_pictures, -pictures - texts]), dim=1), concepts, for_texts[None]])
    found = concept_matrix(classes, more, norm="col", image_mean=x.mean(0))
    assert found.weight.eq(0).nonzero().flatten().tolist() == [0, 1, 22]
    assert found.rows[:, [0, 1, 22]].eq(0).all()
    expected = cms_scores(x, classes, concepts, rule=rule, norm="col")
    torch.testing.assert_close(cms_scores(x, classes, more, rule=rule, norm="col"), expected, rtol=1e-12, atol=1e-12)


def test_max_never_picks_a_concept_that_was_left_out():
    concepts = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    classes = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.2, 0.9]])
    x = torch.tensor([[0.5, -0.4, -0.3], [0.5, 0.9, 0.8]])  # the first picture: all that is left is negative
    found = concept_matrix(classes, concepts, norm="col", image_mean=x.mean(0))
    assert found.weight.tolist() == pytest.approx([0, 4, 4])
    scores = cms_scores(x, classes, concepts, rule="max", norm="col")
    torch.testing.assert_close(scores, found.rows[:, [2, 1]].T.float())


def test_first_of_equally_strong_concepts():
    concepts = torch.eye(3)
    classes = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.4, 0.6]])
    scores = cms_scores(torch.tensor([[0.1, 0.7, 0.7]]), classes, concepts, rule="max")
    assert torch.equal(scores, classes[:, 1][None])


@each_rule
@pytest.mark.parametrize("path", ["auto", "matrix"])
def test_zero_rows_score_zero(rule, path):
    x, classes, concepts = clip_like(20, 100, 4)
    x[3], classes[1], concepts[2] = 0, 0, 0
    scores = cms_scores(x, classes, concepts, rule=rule, path=path)
    assert scores.isfinite().all()
    assert scores[:, 1].eq(0).all()
    assert rule == "max" or scores[3].eq(0).all()
    assert scores[0, 0] != 0
    one = cms_scores(x, classes[:1], concepts, rule=rule, path=path, center=True)  # nothing left of a single class
    assert one.eq(0).all()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize(("rule", "path"), [("similarity", "metric"), *((r, "matrix") for r in RULES)])
def test_never_holds_every_picture_over_every_concept(rule, path):
    x, classes, concepts = clip_like(20_000, 2000, 3, d=16)
    with Largest() as largest:
        cms_scores(x, classes, concepts, rule=rule, path=path, norm="col")
    assert 0 < largest.numbers <= 2**20  # of 4e7


@each_rule
@each_norm
@pytest.mark.parametrize("path", ["auto", "matrix"])
def test_blocks_of_rows_do_not_change_scores(monkeypatch, rule, norm, center, path):
    data = clip_like(101, 100, 4)
    whole = cms_scores(*data, rule=rule, norm=norm, center=center, path=path)
    for numbers in (1, 1000):
        monkeypatch.setattr(sys.modules[cms_scores.__module__], "_NUMBERS", numbers)
        torch.testing.assert_close(cms_scores(*data, rule=rule, norm=norm, center=center, path=path), whole)


def test_errors():
    x, classes, concepts = clip_like(10, 6, 3, d=4)
    for call, message in [
        (lambda: cms_scores(x[:, :3], classes, concepts), r"concepts has shape \[6, 4\]"),
        (lambda: cms_scores(x, classes[:, :3], concepts), r"classes has shape \[3, 3\]"),
        (lambda: cms_scores(x[0], classes, concepts), r"x has shape \[4\]"),
        (lambda: cms_scores(x, classes, concepts, norm="col", image_mean=x), r"image_mean has shape \[10, 4\]"),
        (lambda: cms_scores(x, classes, concepts, rule="min"), "rule is 'min'; expected one of 'similarity', 'cubed'"),
        (lambda: cms_scores(x, classes, concepts, norm="l2"), "norm is 'l2'; expected one of 'none', 'row', 'col'"),
        (lambda: cms_scores(x, classes, concepts, path="fast"), "path is 'fast'; expected one of 'auto', 'metric'"),
        (lambda: cms_scores(x, classes, concepts, rule="max", path="metric"), "no form for rule='max'"),
        (lambda: cms_scores(x, classes, concepts, rule="cubed", path="metric"), "no form for rule='cubed'"),
        (lambda: concept_matrix(classes, concepts, norm="col"), "image_mean is None; norm='col'"),
        (lambda: concept_matrix(classes, concepts, center=True), "image_mean is None.* center=True"),
        (lambda: concept_matrix(classes, concepts, norm="row", center=True), "sum to zero, which norm='row'"),
        (lambda: cms_scores(x, classes, concepts, norm="col", center=True), "sum to zero, which norm='col'"),
        (
            lambda: concept_matrix(classes.abs(), concepts.abs(), norm="col", image_mean=-x[0].abs()),
            "leaves no concept",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    classes = torch.tensor([[1.0, 0], [-0.75, 0.25]])
    with pytest.raises(ValueError, match="class 1 has cosines that sum to -0.5; norm='row' .* Use norm='none'"):
        cms_scores(torch.ones(1, 2), classes, torch.eye(2), norm="row")
