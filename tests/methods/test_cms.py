"""Concept Matrix Search as a bottleneck decides as the definition does."""

from dataclasses import replace

import pytest
import torch
from planted import CLASSES, DIM, PER_CLASS, parts, planted
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts import ConceptBank, merge_duplicates
from cbm.data import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, load_model, save_model
from cbm.methods import create_method
from cbm.solvers import cms_scores, concept_matrix
from cbm.solvers.concept_matrix import Norm, Rule

SCALE = 100.0
CASES = [
    (rule, norm, center)
    for rule in ("similarity", "cubed", "max")
    for norm, center in (("none", False), ("none", True), ("row", False), ("col", False))
]


def with_names() -> tuple[FeatureData, ConceptBank]:
    """The planted data, and class names that resemble their concepts."""
    data, bank = planted()
    own = bank.directions().view(CLASSES, PER_CLASS, DIM).mean(1)
    noise = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(3))
    data = replace(data, class_embeddings=normalize(own + 0.05 * noise, dim=1))
    return data, bank


def build(data: FeatureData, bank: ConceptBank, **settings) -> ConceptBottleneck:
    model, used = parts(create_method({"name": "cms", **settings}).build(data, bank, SCALE))
    assert used is bank
    assert isinstance(model, ConceptBottleneck)
    return model.requires_grad_(False)


def scores(data: FeatureData, bank: ConceptBank, rule: Rule, norm: Norm, center: bool) -> Tensor:
    """By definition, in float64, ``[N, C]``."""
    assert data.class_embeddings is not None
    mean = data.train.x.double().mean(0)
    return cms_scores(
        data.test.x.double(), data.class_embeddings.double(), bank.directions().double(), rule=rule, norm=norm,
        center=center, image_mean=mean, path="matrix",
    )  # fmt: skip


@pytest.mark.parametrize(("rule", "norm", "center"), CASES)
def test_it_decides_as_the_definition_does(rule: Rule, norm: Norm, center: bool, tmp_path):
    data, bank = with_names()
    model = build(data, bank, rule=rule, norm=norm, center=center)
    x, expected = data.test.x, scores(data, bank, rule, norm, center)
    assert len(expected.argmax(1).unique()) > 1
    assert torch.equal(model(x).argmax(1), expected.argmax(1))
    assert torch.equal(model.logits(x).argmax(1), expected.argmax(1))
    p = model(x).softmax(1)
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))


def test_left_out_concepts_are_there_to_be_tested():
    """Of the planted concepts some, not all, have no column normalisation: they must not decide."""
    data, bank = with_names()
    assert data.class_embeddings is not None
    mean = data.train.x.double().mean(0)
    weight = concept_matrix(data.class_embeddings, bank.directions(), norm="col", image_mean=mean).weight
    assert 0 < int((weight == 0).sum()) < len(bank)
    model = build(data, bank, rule="max", norm="col")
    assert not model.activations(data.test.x)[:, weight == 0].any()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("rule", ["similarity", "cubed"])
def test_logits_are_cosines_but_for_the_length_of_the_picture_s_row(rule: Rule, center: bool):
    data, bank = with_names()
    model = build(data, bank, rule=rule, center=center)

    def rows(x: Tensor) -> Tensor:
        v = x.double() @ bank.directions().double().T
        if center:
            v = v - (data.train.x.double() @ bank.directions().double().T).mean(0)
        return v if rule == "similarity" else v**3

    length = rows(data.test.x).norm(dim=1, keepdim=True) / rows(data.train.x).norm(dim=1).mean()
    expected = SCALE * scores(data, bank, rule, "none", center) * length
    torch.testing.assert_close(model(data.test.x).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_row_s_length_and_the_test_pictures_change_no_decision():
    data, bank = with_names()
    model = build(data, bank, norm="col")
    few = replace(data.test, x=data.test.x[:7], y=data.test.y[:7])
    whole = model(data.test.x).argmax(1)
    data.splits["test"] = few
    assert torch.equal(build(data, bank, norm="col")(few.x).argmax(1), whole[:7])
    assert torch.equal(build(data, bank, norm="row")(few.x).argmax(1), build(data, bank)(few.x).argmax(1))


@pytest.mark.parametrize(("rule", "norm", "center"), CASES)
def test_disjoint_blocks_are_classified_without_error(rule: Rule, norm: Norm, center: bool):
    """Orthogonal concepts, four to a class; names and pictures are made of their class's, some more than others."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.eye(CLASSES).repeat_interleave(4, 1)  # [C, 4C]
    splits = {}
    for name in ("train", "val", "test"):
        y = torch.arange(100) % CLASSES
        shown = blocks[y] * (0.5 + torch.rand(100, 4 * CLASSES, generator=g))
        x = normalize(shown + 0.1 * torch.rand(100, 4 * CLASSES, generator=g), dim=1)
        splits[name] = FeatureSplit(x, y, [f"{name}{i}" for i in range(100)])
    names = [f"class {c}" for c in range(CLASSES)]
    data = FeatureData(splits, names, class_embeddings=normalize(blocks + 0.01, dim=1))
    phrases = [(f"phrase {k}", (names[k // 4],), None) for k in range(4 * CLASSES)]
    bank = replace(merge_duplicates("b", "b", phrases), embeddings=torch.eye(4 * CLASSES))
    model = build(data, bank, rule=rule, norm=norm, center=center)
    assert torch.equal(model(data.test.x).argmax(1), data.test.y)


@pytest.mark.parametrize("embeddings", [None, torch.eye(CLASSES, DIM + 1)], ids=["none", "of another space"])
def test_it_needs_class_names_in_the_space_of_the_pictures(embeddings: Tensor | None):
    data, bank = planted()
    data = replace(data, class_embeddings=embeddings)
    with pytest.raises(UserError, match="method=cms .* it needs an encoder that reads text") as raised:
        build(data, bank)
    assert "\n" not in str(raised.value)


def test_sums_that_cannot_be_divided_by_are_one_line():
    data, bank = with_names()
    assert data.class_embeddings is not None
    data = replace(data, class_embeddings=-data.class_embeddings)
    with pytest.raises(UserError, match="method.norm=row: class . has cosines that sum to -.*norm='none'") as raised:
        build(data, bank, norm="row")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "similar"}, "method.rule=similar: did you mean 'similarity'"),
        ({"rule": "best"}, "method.rule=best: choose one of cubed, max, similarity"),
        ({"norm": "rows"}, "method.norm=rows: did you mean 'row'"),
        ({"norm": "row", "center": True}, "method.norm=row divides .*: say method.center=false"),
        ({"norm": "col", "center": True}, "method.norm=col divides .*: say method.center=false"),
        ({"centre": True}, "unknown setting 'method.centre' of 'cms': did you mean 'center'"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        create_method({"name": "cms", **settings})
