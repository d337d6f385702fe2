"""Planted classes: each is where its own concepts point, in features of somebody's own backbone."""

import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import cbm
from cbm.concepts import Concept, ConceptBank
from cbm.methods.base import METHODS

CLASSES = ["ant", "bee", "cat"]
PHRASES = {name: [f"{name} part {i}" for i in range(6)] for name in CLASSES}
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 16))
TEXTS = np.repeat(CENTRES, 6, axis=0) + 0.7 * RNG.normal(size=(18, 16))
LABELS = np.repeat(np.array(CLASSES), 40)
FEATURES = (np.repeat(CENTRES, 40, axis=0) + 1.2 * RNG.normal(size=(120, 16))) * RNG.uniform(1, 9, size=(120, 1))


def labo(**settings) -> cbm.ConceptClassifier:
    return cbm.ConceptClassifier("labo", concepts=PHRASES, concept_embeddings=TEXTS, max_epochs=20, **settings)


@pytest.mark.parametrize("method", ["labo", "posthoc", "sparse", "v2c", "label_free", "cms", "zero_shot", "supervised"])
def test_every_kind_of_method_learns(method: str):
    settings = {"max_epochs": 20} if method in ("labo", "sparse", "v2c", "supervised") else {}
    model = cbm.ConceptClassifier(
        method, concepts=PHRASES, concept_embeddings=TEXTS, class_embeddings=CENTRES, **settings
    ).fit(FEATURES, LABELS)
    assert model.score(FEATURES, LABELS) > 0.9
    assert set(model.predict(FEATURES)) <= set(CLASSES)
    np.testing.assert_allclose(model.predict_proba(FEATURES).sum(axis=1), 1)
    text, contribution = model.explain(FEATURES[:1], top=3)[0][0]
    assert text in model.bank_.texts
    assert isinstance(contribution, float)


def test_explanations_name_the_class_own_concepts():
    model = labo().fit(FEATURES, LABELS)
    found = [model.explain(FEATURES[[40 * c]], top=1)[0][0][0] for c in range(3)]
    assert [text.split()[0] for text in found] == CLASSES


def test_the_ways_of_scikit_learn():
    model = labo()
    assert cross_val_score(model, FEATURES, LABELS, cv=3).mean() > 0.9
    pipeline = make_pipeline(FunctionTransformer(), model).set_params(conceptclassifier__lr=0.05)
    assert pipeline.fit(FEATURES, LABELS).score(FEATURES, LABELS) > 0.9
    search = GridSearchCV(model, {"lr": [0.01, 0.05], "method": ["labo"]}, cv=2).fit(FEATURES, LABELS)
    assert search.best_params_["method"] == "labo"
    copy = clone(labo(lr=0.05))
    assert copy.get_params()["lr"] == 0.05
    fitted = pickle.loads(pickle.dumps(labo().fit(FEATURES, LABELS)))
    assert fitted.score(FEATURES, LABELS) > 0.9


def test_the_seed_decides_and_nothing_else_is_touched():
    np.random.seed(5)
    torch.manual_seed(5)
    random.seed(5)
    expected = np.random.rand(), float(torch.rand(())), random.random()
    np.random.seed(5)
    torch.manual_seed(5)
    random.seed(5)
    first, again = (labo(random_state=3).fit(FEATURES, LABELS).predict_proba(FEATURES) for _ in range(2))
    other = labo(random_state=4).fit(FEATURES, LABELS).predict_proba(FEATURES)
    assert (np.random.rand(), float(torch.rand(())), random.random()) == expected
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_rows_of_merged_phrases_stay_with_their_phrases():
    phrases = ["A red wing", "long tail", "red wing.", "crest"]
    rows = np.eye(16)[:4]
    model = cbm.ConceptClassifier("posthoc", concepts=phrases, concept_embeddings=rows).fit(FEATURES, LABELS)
    assert model.bank_.texts == ["A red wing", "long tail", "crest"]
    np.testing.assert_array_equal(model.bank_.embeddings.numpy(), rows[[0, 1, 3]])


def test_a_bank_and_numbered_labels():
    bank = ConceptBank("mine", "mine", tuple(Concept(t, (n,)) for n in CLASSES for t in PHRASES[n]))
    labels = np.repeat([7, 3, 5], 40)  # sorted: bee, cat, ant
    model = cbm.ConceptClassifier(
        "labo", concepts=bank, concept_embeddings=TEXTS, classes=["bee", "cat", "ant"], max_epochs=20
    ).fit(FEATURES, labels)
    assert model.score(FEATURES, labels) > 0.9
    assert model.explain(FEATURES[:1], top=1)[0][0][0].startswith("ant")


def test_one_line_for_what_is_wrong():
    with pytest.raises(cbm.UserError, match=r"concept_embeddings has shape \[18, 5\]; expected \[18, 16\]"):
        cbm.ConceptClassifier(concepts=PHRASES, concept_embeddings=TEXTS[:, :5]).fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="speaks through concepts"):
        cbm.ConceptClassifier().fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match=r"need concept_embeddings \[K, D\]"):
        cbm.ConceptClassifier(concepts=PHRASES).fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="needs class_embeddings"):
        cbm.ConceptClassifier("zero_shot").fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="unknown setting 'method.rate'"):
        labo(rate=1).fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="unknown method 'lobo': did you mean 'labo'"):
        cbm.ConceptClassifier("lobo").fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="classes has 2 names, but y has 3 labels"):
        labo(classes=["a", "b"]).fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="no phrases for class 'cat'"):
        cbm.ConceptClassifier(
            concepts={name: PHRASES[name] for name in CLASSES[:2]}, concept_embeddings=TEXTS[:12]
        ).fit(FEATURES, LABELS)
    with pytest.raises(ValueError, match="X has 4 features"):
        labo().fit(FEATURES, LABELS).predict(FEATURES[:, :4])


EXCUSED = {"check_estimators_dtypes": "its integers hold a row of zeros, which has no direction"}


def test_check_estimator():
    found = check_estimator(
        cbm.ConceptClassifier("linear_probe"), expected_failed_checks=EXCUSED, on_fail=None, on_skip=None
    )
    assert len(found) > 40
    assert [f"{each['check_name']}: {each['exception']!r}" for each in found if each["status"] == "failed"] == []


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("left_out", ["class_embeddings", "concept_embeddings", "concepts", "owners", "all"])
def test_what_a_method_cannot_do_without_is_named(method: str, left_out: str):
    """No assertion, whatever is missing: the model, or one line that names the setting."""
    given = {"concepts": PHRASES, "concept_embeddings": TEXTS, "class_embeddings": CENTRES}
    given = {} if left_out == "all" else {key: value for key, value in given.items() if key != left_out}
    if left_out == "owners":
        given["concepts"] = [text for texts in PHRASES.values() for text in texts]
    settings = {"max_epochs": 2} if "max_epochs" in METHODS.find(method).Config.__dataclass_fields__ else {}
    said = ""
    try:
        cbm.ConceptClassifier(method, **given, **settings).fit(FEATURES, LABELS)
    except cbm.UserError as error:
        said = str(error)
    assert not said or left_out in said or left_out == "all" or method in said


def test_label_free_without_class_names_says_both_ways_out():
    arguments = {"concepts": PHRASES, "concept_embeddings": TEXTS}
    with pytest.raises(cbm.UserError, match=r"class_cutoff=0.85 .*say class_embeddings= .*or class_cutoff=None"):
        cbm.ConceptClassifier("label_free", **arguments).fit(FEATURES, LABELS)
    model = cbm.ConceptClassifier("label_free", **arguments, class_cutoff=None).fit(FEATURES, LABELS)
    assert model.score(FEATURES, LABELS) > 0.9


def test_a_classifier_without_concepts_explains_nothing_in_one_line():
    model = cbm.ConceptClassifier("linear_probe").fit(FEATURES, LABELS)
    with pytest.raises(cbm.UserError, match="has no concepts"):
        model.explain(FEATURES[:1])
