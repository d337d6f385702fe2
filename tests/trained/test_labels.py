"""A trained model that says any number of labels: predictions, explanations, edits, comparisons, the estimator."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from labels_run import CUTS, write_label_run
from omegaconf import OmegaConf
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from small_bottleneck import CLASSES, D, K

import cbm
from cbm.concepts import Concept, ConceptBank
from cbm.data import FeatureSplit
from cbm.editing import Edit
from cbm.errors import UserError
from cbm.layers import load_model, predict_logits
from cbm.metrics.multilabel import choose_thresholds
from cbm.run.spurious import edit_spurious
from cbm.trained.domains import support_and_tested
from cbm.trained.label_comparison import LabelComparison


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_label_run(tmp_path / "run")


def images(n: int = 40, seed: int = 5) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_predictions_are_lists(run: Path):
    model = cbm.load(run)
    found = model.predict_features(images())
    assert found.many
    expected = [[name for k, name in enumerate(CLASSES) if row[k] > CUTS[k]] for row in found.logits]
    assert found.labels == expected
    assert {len(row) for row in expected} >= {0, 1, 2}
    torch.testing.assert_close(found.probabilities, 1 / (1 + (-found.logits).exp()))
    assert model.predict_features(images()[:0]).labels == []


def test_an_explanation_is_of_one_label_and_adds_up(run: Path):
    model = cbm.load(run)
    found = model.predict_features(images())
    for what in (lambda: found.explain(0), lambda: found.contributions()):
        with pytest.raises(UserError, match="say which one, label='ant' or another"):
            what()
    with pytest.raises(UserError, match="no class 'bat' in this model: did you mean 'ant' or 'cat'"):
        found.explain(0, label="bat")
    for number, label in enumerate(CLASSES):
        parts = found.contributions(torch.full((40,), number))
        total = parts.sum(dim=1) + model.model.base()[number]
        torch.testing.assert_close(total, found.logits[:, number], rtol=1e-4, atol=1e-4)
        bars = found.explain(3, top=K, label=label)
        assert sum(value for _, value in bars) == pytest.approx(float(parts[3].sum()), abs=1e-4)
        assert [abs(value) for _, value in bars] == sorted((abs(value) for _, value in bars), reverse=True)


def split(n: int = 40, unknown: float = 0.2) -> FeatureSplit:
    g = torch.Generator().manual_seed(3)
    y = (torch.rand(n, 4, generator=g) < 0.5).float()
    y[torch.rand(n, 4, generator=g) < unknown] = math.nan
    return FeatureSplit(images(n), y, [f"{i}.png" for i in range(n)])


def test_edits_of_labels_are_compared(run: Path):
    model = cbm.load(run)
    editor = cbm.Editor(model)
    found = editor.compare(split(), Edit("remove", "concept 1"))
    assert isinstance(found, LabelComparison)
    torch.testing.assert_close(found.thresholds, CUTS)
    text = editor.bank.texts[1]
    editor.remove(text, classes="bee")
    logits, before = editor.logits(images()), model.predict_features(images()).logits
    torch.testing.assert_close(logits[:, [0, 2, 3]], before[:, [0, 2, 3]])
    assert bool((logits[:, 1] != before[:, 1]).any())
    edited = editor.as_model()
    assert edited.many
    assert torch.equal(edited.thresholds, CUTS)  # a decision stays one against the threshold
    editor.save_model(run / "edited.safetensors")
    kept = load_model(run / "edited.safetensors")
    torch.testing.assert_close(kept(images()), logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(kept.decide(logits), edited.decide(logits))


def test_a_label_is_corrected_by_a_margin_and_flipped_by_the_fewest(run: Path):
    model = cbm.load(run)
    editor, x = cbm.Editor(model), images()[4]
    text = max(editor.bank.texts, key=lambda t: abs(float(model.model.activations(x[None])[0, editor.bank.index(t)]
                                                          - model.model.reference[editor.bank.index(t)])))  # fmt: skip
    for present in (True, False):
        editor.correct(x, "cat", text, margin=0.3, present=present)
        lead = float(editor.logits(x[None])[0, 2] - CUTS[2])
        assert lead == pytest.approx(0.3 if present else -0.3, abs=1e-4)
        editor.undo()
    with pytest.raises(UserError, match="say which one, target='ant'"):
        editor.smallest_flip(x)
    before = bool(editor.logits(x[None])[0, 0] > CUTS[0])
    edits = editor.smallest_flip(x, "ant", budget=K)
    editor.apply(edits)
    assert bool(editor.logits(x[None])[0, 0] > CUTS[0]) != before


def test_a_comparison_counts_what_is_known():
    g = torch.Generator().manual_seed(1)
    y = split(200).y
    y[:, 3] = math.nan
    y[:4, 3] = 1.0  # present only: no AUROC
    before = torch.randn(200, 4, generator=g) + y.nan_to_num()
    after = before + 0.7 * torch.randn(200, 4, generator=g)
    found = LabelComparison(before, after, y, list(CLASSES), CUTS)
    gained, lost, flipped = [], [], []
    only = np.zeros((4, 2), dtype=int)
    for i in range(200):
        for label in range(4):
            old, new = (bool(z[i, label] > CUTS[label]) for z in (before, after))
            if old != new:
                flipped.append([i, label])
            if math.isnan(y[i, label]):
                continue
            was, now = old == bool(y[i, label]), new == bool(y[i, label])
            if now and not was:
                gained.append([i, label])
                only[label, 0] += 1
            if was and not now:
                lost.append([i, label])
                only[label, 1] += 1
    assert (found.gained.tolist(), found.lost.tolist(), found.flipped.tolist()) == (gained, lost, flipped)
    assert len(flipped) > len(gained) + len(lost)
    p = [binomtest(int(min(pair)), int(sum(pair)), 0.5).pvalue if sum(pair) else 1.0 for pair in only]
    assert [test.p for test in found.tests] == pytest.approx(p, rel=1e-6)
    rows = found.recall()
    assert [row[0] for row in rows] == CLASSES[:3]
    for name, count, old, new in rows:
        label = CLASSES.index(name)
        known = ~y[:, label].isnan()
        assert count == int(known.sum())
        for value, logits in ((old, before), (new, after)):
            said = (logits[known, label] > CUTS[label]).numpy()
            assert value == pytest.approx(balanced_accuracy_score(y[known, label].numpy(), said))
    values = found.metrics()
    for key, logits in (("before", before), ("after", after)):
        aurocs = []
        for label in range(3):
            known = ~y[:, label].isnan()
            aurocs.append(roc_auc_score(y[known, label], logits[known, label]))
        assert values[f"edits/auroc_macro_{key}"] == pytest.approx(sum(aurocs) / 3)
    assert values["edits/largest_class_loss"] == pytest.approx(max(old - new for _, _, old, new in rows))
    assert (values["edits/gained"], values["edits/lost"]) == (len(gained), len(lost))
    assert "labels of images gained" in str(found)
    worst = max(old - new for _, _, old, new in rows)
    assert found.accept() == (len(gained) > len(lost))
    better = LabelComparison(after, before, y, list(CLASSES), CUTS)
    assert better.accept(1.0) == (len(gained) < len(lost))
    assert not LabelComparison(before, after, y, list(CLASSES), CUTS).accept(worst - 1e-6)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda run: edit_spurious(run, Path("cache")), "removing spurious concepts asks which class an image is"),
        (
            lambda run: support_and_tested(
                cbm.load(run), OmegaConf.create({}), SimpleNamespace(), split(), Path("cache")
            ),
            "an editor for another domain asks which class an image is",
        ),
        (
            lambda run: cbm.load(run).with_bank(cbm.load(run).bank, cache="cache"),
            "the source card of a run asks which class an image is",
        ),
    ],
)
def test_what_needs_one_class_says_so(run: Path, what, message: str):
    with pytest.raises(UserError, match=message) as caught:
        what(run)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ the estimator

NAMES = ["wet", "tall", "old"]
PHRASES = [f"{name} sign {i}" for name in NAMES for i in range(4)]


def planted(n: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(16, 16)))[0][:3]
    y = (rng.random((n, 3)) < [0.5, 0.35, 0.25]).astype(np.float32)
    x = (2 * y - 1) @ axes + 0.3 * rng.normal(size=(n, 16))
    texts = np.repeat(axes, 4, axis=0) + 0.1 * rng.normal(size=(12, 16))
    y[rng.random(y.shape) < 0.1] = np.nan
    return x, y, texts


@pytest.mark.parametrize("method", ["posthoc", "linear_probe", "labo"])
def test_the_estimator_learns_labels(method: str):
    x, y, texts = planted()
    settings = {} if method == "linear_probe" else {"concepts": PHRASES, "concept_embeddings": texts}
    settings |= {"max_epochs": 30} if method == "labo" else {}
    model = cbm.ConceptClassifier(method, classes=NAMES, **settings).fit(x, y)
    new, truth, _ = planted(seed=0)
    said, chances = model.predict(new), model.predict_proba(new)
    assert said.shape == chances.shape == (160, 3)
    assert said.dtype == np.int64
    assert set(np.unique(said)) == {0, 1}
    known = ~np.isnan(truth)
    assert (said[known] == truth[known]).mean() > 0.95
    cut = torch.sigmoid(model.model_.thresholds).numpy()
    np.testing.assert_array_equal(said, chances > cut)
    if method != "linear_probe":
        with pytest.raises(UserError, match="label='wet'"):
            model.explain(new[:1])
        top = model.explain(new[:2], top=1, label="old")
        assert all(row[0][0].startswith("old") for row in top)


def test_the_estimator_takes_thresholds_from_the_rows_it_holds_out():
    x, y, texts = planted()
    model = cbm.ConceptClassifier("posthoc", concepts=PHRASES, concept_embeddings=texts).fit(x, y)
    held = model._data(x.astype(np.float32), y, ["0", "1", "2"], 0).val
    assert 0.1 * len(y) < len(held) < 0.3 * len(y)
    expected = choose_thresholds(predict_logits(model.model_, held.x), held.y)
    torch.testing.assert_close(model.model_.thresholds, expected.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: np.where(y == 1, 2, y), "other numbers than 1, 0 and NaN"),
        (lambda y: y[:-1], r"y has shape \[159, 3\]; expected \[160, L\]"),
        (lambda y: np.where(np.arange(3) == 1, 0, y), "label 1 needs 4 rows with it and 4 without"),
        (lambda y: np.where(y == 1, "yes", "no"), "y has several columns and holds text: expected 1, 0 and NaN"),
        (lambda y: [*y[:-1].tolist(), [1.0]], "y has rows of different lengths"),
    ],
)
def test_the_estimator_says_what_is_wrong_with_labels(change, message: str):
    x, y, texts = planted()
    with pytest.raises(UserError, match=message):
        cbm.ConceptClassifier("posthoc", concepts=PHRASES, concept_embeddings=texts).fit(x, change(y))


def test_labels_are_called_what_they_are_called():
    pandas = pytest.importorskip("pandas")
    x, y, texts = planted()
    table = pandas.DataFrame(y, columns=NAMES).astype({NAMES[1]: object})
    table.loc[0, NAMES[1]] = None
    model = cbm.ConceptClassifier("posthoc", concepts=PHRASES, concept_embeddings=texts).fit(x, table)
    assert model.classes_.tolist() == NAMES
    assert model.explain(x[:1], top=1, label=NAMES[2])[0][0][0].startswith(NAMES[2])
    assert model.predict(x).shape == y.shape
    named = cbm.ConceptClassifier("linear_probe", classes=NAMES).fit(x, y)
    assert named.classes_.tolist() == NAMES
    assert cbm.ConceptClassifier("linear_probe").fit(x, y).classes_.tolist() == [0, 1, 2]
    rare = table.assign(**{NAMES[0]: 0.0})
    with pytest.raises(UserError, match=f"label {NAMES[0]} needs 4 rows"):
        cbm.ConceptClassifier("linear_probe").fit(x, rare)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["a", "b", "a"], "classes has 'a' twice"), (["a", "b"], "classes has 2 names, but y has 3 labels")],
)
def test_names_of_labels_are_as_many_as_there_are_labels_and_differ(classes: list[str], message: str):
    x, y, _ = planted()
    with pytest.raises(UserError, match=message):
        cbm.ConceptClassifier("linear_probe", classes=classes).fit(x, y)
    rows = np.repeat([0, 1, 2], 53)
    with pytest.raises(UserError, match=message):
        cbm.ConceptClassifier("linear_probe", classes=classes).fit(x[: len(rows)], rows)


def test_zero_shot_labels_are_what_two_sentences_say():
    x, y, texts = planted()
    there, absent = texts[::4], texts[::4] + np.random.default_rng(1).normal(size=(3, 16))
    model = cbm.ConceptClassifier(
        "zero_shot", classes=NAMES, class_embeddings=there, negative_embeddings=absent, logit_scale=10.0
    ).fit(x, y)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    by_hand = 10 * (unit(x) @ unit(there).T - unit(x) @ unit(absent).T)
    np.testing.assert_allclose(model.predict_proba(x), 1 / (1 + np.exp(-by_hand)), atol=1e-5)
    np.testing.assert_array_equal(model.predict(x), by_hand > 0)
    with pytest.raises(UserError, match=r"zero_shot of several labels needs negative_embeddings \[L, D\]"):
        cbm.ConceptClassifier("zero_shot", class_embeddings=there).fit(x, y)
    with pytest.raises(UserError, match=r"negative_embeddings has shape \[2, 16\]; expected \[3, 16\]"):
        cbm.ConceptClassifier("zero_shot", class_embeddings=there, negative_embeddings=absent[:2]).fit(x, y)


def test_a_method_of_one_class_says_who_else_can():
    x, y, texts = planted()
    with pytest.raises(UserError, match="method=cms names one class per picture: several labels can be told by"):
        cbm.ConceptClassifier("cms", concepts=PHRASES, concept_embeddings=texts, class_embeddings=texts[:3]).fit(x, y)


def test_the_score_of_several_labels_is_their_mean_auroc():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(120, 8, generator=g), dim=1)
    y = (x[:, :3] > 0).float()
    y[torch.rand(y.shape, generator=g) < 0.2] = torch.nan
    fitted = cbm.ConceptClassifier("linear_probe").fit(x.numpy(), y.numpy())
    expected = []
    chances = fitted.predict_proba(x.numpy())
    for label in range(3):
        known = ~y[:, label].isnan().numpy()
        expected.append(roc_auc_score(y[known, label].numpy(), chances[known, label]))
    assert fitted.score(x.numpy(), y.numpy()) == pytest.approx(sum(expected) / 3, abs=1e-9)
    with pytest.raises(cbm.UserError, match=r"y has shape \[120, 2\]; expected \[120, 3\]"):
        fitted.score(x.numpy(), y[:, :2].numpy())


def test_wrong_arguments_of_the_editor_are_named(run: Path):
    editor = cbm.Editor(cbm.load(run))
    dim = editor.model.dim
    for x in (torch.zeros(2, dim), torch.zeros(dim + 1), [0.0] * dim):
        with pytest.raises(UserError, match=rf"smallest_flip: x is .*; expected the features \[{dim}\] of one image"):
            editor.smallest_flip(x, editor.model.classes[0])
    with pytest.raises(UserError, match=r"compare: 'test' is no split with features and labels; say model.split"):
        editor.compare("test")


@pytest.mark.parametrize(("concept", "value", "implied"), [
    ("severity: severe", "present", [("severity: mild or more", "present")]),
    ("severity: mild or more", "absent", [("severity: severe", "absent")]),
    ("severity: mild or more", "present", []),
    ("severity: severe", "absent", []),
])  # fmt: skip
def test_steps_of_a_level_go_together(concept: str, value: str, implied: list[tuple[str, str]]):
    steps = ["severity: mild or more", "severity: severe"]
    editor = object.__new__(cbm.Editor)
    editor.bank = ConceptBank("b", "b", tuple(Concept(text, provenance={"steps": steps}) for text in steps))
    editor.bottleneck, editor.model = SimpleNamespace(), SimpleNamespace(classes=["x"])
    edits = editor.exclusively(Edit("set", concept, value)).edits
    assert [(edit.concept, edit.value) for edit in edits] == [(concept, value), *implied]
