"""Pictures as sums of words: codes, heads, the published formulas, edits, save and load."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import planted
from torch.nn.functional import normalize

from cbm.editing import Edit, EditSet, edited_logits, edited_model, returned_share
from cbm.editing.apply import levels
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, SparseCode, load_model, save_model
from cbm.methods import create_method
from cbm.methods.named_head import what_names_say
from cbm.metrics.codes import code_metrics, said_share
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.reader import centre_directions
from cbm.solvers import Codes, sparse_code


def build(**settings):
    data, bank = planted()
    data = replace(data, class_embeddings=torch.eye(24)[:5] + 0.3 * torch.randn(24, generator=torch.Generator()))
    method = create_method({"name": "splice", "l0": 4.0, **settings})
    built = method.build(data, bank, 100.0)
    return built.model, built.bank, data, method


@pytest.fixture(scope="module")
def sparse():
    return build()


def test_a_picture_is_the_mean_and_its_words_and_a_rest(sparse):
    model, bank, data, method = sparse
    layer, x = model.activation, data.test.x
    codes = layer.code(x, model.concepts)
    assert 3 < float(codes.count.double().mean()) < 5
    away = x - data.train.x.mean(dim=0)
    direct = sparse_code(normalize(away, dim=1), centre_directions(bank.directions()), lam=float(layer.lam), refit=True)
    expected = direct.dense(len(bank)) * away.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.activations(x), expected, atol=2e-5, rtol=1e-4)
    assert (model.activations(x) >= 0).all()
    rest = away - codes.reconstruct(model.concepts)
    torch.testing.assert_close(
        said_share(model, x), 1 - rest.square().sum(1) / away.square().sum(1), atol=1e-4, rtol=1e-3
    )


def test_logits_are_linear_in_the_code(sparse):
    model, _, data, _ = sparse
    x = data.test.x
    expected = model.activations(x) @ model.weights().T + model.biases()
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    c = model(x).argmax(1)
    total = model.base()[c] + model.contributions(x, c).sum(1)
    torch.testing.assert_close(total, model(x).max(1).values, atol=1e-4, rtol=1e-4)
    dense = torch.nn.functional.linear(model.activations(x), model.weights(), model.head.bias)
    torch.testing.assert_close(model.logits(x, model.weights()), dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["sparse", "names"])
def test_heads_classify(head: str):
    model, bank, data, method = build(head=head)
    values = evaluate_split(model, bank, data, "test")
    assert values["test/accuracy"] > 0.85
    assert values["test/code_l0"] == pytest.approx(values["test/image_l0"], abs=4)
    assert 0 < values["test/code_r2"] < 1
    if head == "names":
        weight, owners = model.weights(), bank.owners(data.classes)
        assert (weight[owners] >= 0).all()
        assert (weight[~owners] <= 0).all()  # a name can only speak for its owners
        assert method.facts["names_gap"] <= 1e-6


def test_a_names_head_that_is_held_fast_is_the_reader_also_for_words_no_training_picture_uses():
    data, bank = planted()
    data = replace(data, splits=data.splits | {"train": data.train.take(np.arange(2 * len(data.classes)))})
    method = create_method({"name": "splice", "k": 2, "head": "names", "names_lam": 1e6})
    model = method.build(data, bank, 100.0).model
    assert (model.spread == 0).any()  # words that no training picture uses
    says = what_names_say(bank, data.classes).T
    factor = model.weights().norm() / says.norm()
    torch.testing.assert_close(model.weights(), factor * says, atol=1e-3 * float(factor), rtol=1e-3)


def test_untrained_heads():
    reader, _, data, _ = build(head="none", untrained="reader")
    right = float((reader(data.test.x).argmax(1) == data.test.y).float().mean())
    assert right > 0.7
    assert torch.equal(reader.biases(), torch.zeros(5))
    zero_shot, _, data, method = build(head="none")
    assert method.reads_class_names
    assert float((zero_shot(data.test.x).argmax(1) == data.test.y).float().mean()) > 0.7


def test_names_that_say_nothing_are_an_error():
    data, bank = planted()
    flat = bank.owned_by(torch.zeros(5, len(bank)).bool(), data.classes)
    with pytest.raises(UserError, match=r"does not say which phrase was written for which class; .*evidence.reader"):
        create_method({"name": "splice", "head": "names"}).build(data, flat, 1.0)
    read = replace(flat, says=bank.owners(data.classes).T.float(), said_by="somebody")
    create_method({"name": "splice", "head": "names"}).build(data, read, 1.0)


def test_released_is_the_published_formula():
    """normalize(normalize(C z) + mean) against the class texts; the published penalty is twice ours."""
    model, bank, data, _ = build(fidelity="released", lam=0.3, head="none")
    assert float(model.activation.lam) == pytest.approx(0.15)
    assert not bool(model.activation.refit)
    mean = data.train.x.mean(dim=0)
    words = centre_directions(bank.directions())
    x = data.test.x
    z = sparse_code(normalize(x - mean, dim=1), words, lam=0.15).dense(len(bank))
    recomposed = normalize(normalize(z @ words, dim=1) + mean, dim=1)
    texts = normalize(data.class_embeddings, dim=1)
    expected = (recomposed @ texts.T).argmax(dim=1)
    assert (model(x).argmax(dim=1) == expected).all()
    used = z.sum(dim=1) > 0
    torch.testing.assert_close(
        model(x)[used], 100 * (normalize(z @ words, dim=1) + mean)[used] @ texts.T, atol=1e-2, rtol=1e-4
    )


def test_a_picture_without_words_gets_the_bias(sparse):
    model, _, data, _ = sparse
    mean = model.activation.mean
    lonely = model(mean[None])
    torch.testing.assert_close(lonely[0], model.biases())
    assert not torch.isnan(lonely).any()


def test_exactly_k_words():
    model, _, data, _ = build(k=3)
    assert set(model.activation.code(data.test.x, model.concepts).count.tolist()) == {3}
    for settings, said in (({"k": 41}, "there are 40 words"), ({"k": 3, "lam": 0.1}, "say one of them")):
        with pytest.raises(UserError, match=said):
            build(**settings)


def test_signed_codes_of_zcbm():
    model, _, data, _ = build(sign="free", centre="none", lam=0.05, refit=False, head="none")
    codes = model.activation.code(data.test.x, model.concepts)
    assert (codes.values < 0).any()
    assert float(codes.gap.max()) <= 5e-6  # float32
    assert not model.activation.mean.any()


@pytest.mark.parametrize("setting", ["fidelity", "sign", "centre", "head", "untrained", "select"])
def test_a_typo_is_named(setting: str):
    with pytest.raises(UserError, match=rf"method.{setting}=nonne"):
        create_method({"name": "splice", setting: "nonne"})


@pytest.mark.parametrize(("setting", "value"), [("lam", 0), ("l0", 0), ("k", 0), ("words", 1), ("names_lam", -1)])
def test_a_number_out_of_range_is_named(setting: str, value: float):
    with pytest.raises(UserError, match=rf"method.{setting}={value}"):
        create_method({"name": "splice", setting: value})


def test_selection_keeps_what_reconstructs():
    model, bank, data, _ = build(select="reconstruction", words=8)
    assert len(bank) == len(model.concepts) == 8
    assert len(set(bank.texts)) == 8


def test_save_and_load(tmp_path, sparse):
    model, _, data, _ = sparse
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again(data.test.x), model(data.test.x))
    assert torch.equal(levels(again), levels(model))


def test_remove_zeroes_or_writes_anew(sparse):
    """Resolving equals solving with the word deleted; zeroing leaves the other words as they are."""
    model, bank, data, _ = sparse
    x, k = data.test.x, int(model.activations(data.test.x).sum(dim=0).argmax())
    text = bank.texts[k]
    zeroed, anew = EditSet((Edit("remove", text),)), EditSet((Edit("remove", text, resolve=True),))
    before = model.activations(x)
    weights = model.weights().clone()
    weights[:, k] = 0
    torch.testing.assert_close(
        edited_logits(model, zeroed, bank, data.classes, x), before @ weights.T + model.biases(), atol=1e-5, rtol=1e-5
    )
    away = x - model.activation.mean
    allowed = torch.arange(len(bank)) != k
    rest = sparse_code(
        normalize(away, dim=1), model.concepts[allowed], lam=float(model.activation.lam), refit=True
    ).dense(len(bank) - 1) * away.norm(dim=1, keepdim=True)
    expected = rest @ model.weights()[:, allowed].T + model.biases()
    torch.testing.assert_close(edited_logits(model, anew, bank, data.classes, x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(edited_model(model, anew, bank.texts, data.classes)(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.activations(x), before)  # the model itself is as it was
    share = returned_share(model, x, k)
    known = share[~share.isnan()]
    assert len(known)
    assert float(known.median()) > -0.5
    assert str(anew.edits[0]) == f"remove '{text}' and write pictures without it"


def test_resolve_is_for_sparse_codes_and_all_classes(sparse):
    data, bank = planted()
    posthoc = create_method({"name": "posthoc"}).build(data, bank, 1.0).model
    with pytest.raises(UserError, match="only a model of sparse codes"):
        edited_model(posthoc, EditSet((Edit("remove", bank.texts[0], resolve=True),)), bank.texts, data.classes)
    with pytest.raises(UserError, match="for all classes: only 'remove' can"):
        Edit("remove", "x", classes=("a",), resolve=True)
    with pytest.raises(UserError, match="expected true or false"):
        Edit("remove", "x", resolve="maybe")  # type: ignore[arg-type]


def test_levels_are_absent_and_typical(sparse):
    model, _, data, _ = sparse
    absent, present = levels(model)
    assert not absent.any()
    values = model.activations(data.train.x)
    k = int((values > 0).sum(dim=0).argmax())
    used = values[values[:, k] > 0, k].sort().values
    assert float(present[k]) == pytest.approx(float(used[(len(used) - 1) // 2]), rel=1e-3)


def test_typical_values():
    codes = Codes(
        torch.tensor([[3.0, 1.0], [5.0, 0.0], [4.0, 0.0]]),
        torch.tensor([[0, 2], [0, -1], [0, -1]]),
        *torch.zeros(2, 3),
        1,
    )
    assert codes.typical(4).tolist() == [4.0, 0.0, 1.0, 0.0]


def test_code_metrics_by_hand(sparse):
    model, _, data, _ = sparse
    x = data.test.x
    found = code_metrics(model, x)
    mean = data.train.x.mean(dim=0)
    assert found["code_cosine_mean_only"] == pytest.approx(float((x @ normalize(mean, dim=0)).mean()), abs=1e-5)
    assert found["code_cosine"] > found["code_cosine_mean_only"]
    assert found["code_l0"] == float(model.activation.code(x, model.concepts).count.double().mean())
    assert code_metrics(ConceptBottleneck(model.concepts, model.head), x) == {}


def test_a_code_is_no_function_of_scores(sparse):
    model = sparse[0]
    with pytest.raises(TypeError, match="use encode"):
        model.activation(torch.zeros(2, len(model.concepts)))
    assert isinstance(model.activation.without([0]), SparseCode)


@pytest.mark.parametrize("head", ["sparse", "names", "none"])
def test_a_penalty_that_leaves_no_word_is_named(head: str):
    with pytest.raises(UserError, match=r"method.lam=50: no training picture uses a word; expected less than 0\.\d+, "):
        build(lam=50.0, head=head)
    with pytest.raises(UserError, match=r"method.lam=50: .* \(times two: method.fidelity=released\)"):
        build(lam=50.0, head=head, fidelity="released")


def test_more_words_than_there_are_is_said_plainly():
    with pytest.raises(UserError, match=r"method.l0=3000: there are \d+ words in 24 dimensions; expected at most \d+ "):
        build(l0=3000.0)
    with pytest.raises(UserError, match=r"method.head_lam=-1.0: expected a number > 0, or null"):
        build(head_lam=-1.0)
