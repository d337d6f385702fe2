"""``ConceptClassifier``: any method as a scikit-learn estimator, on features of your own backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from cbm.concepts import Concept, ConceptBank, phrase_bank
from cbm.concepts.prepare import adopt_classes
from cbm.concepts.readers import normalise_text
from cbm.config import TrainerConfig
from cbm.data import FeatureData, FeatureSplit, unit_norm
from cbm.data.stratified import strata, stratify
from cbm.errors import UserError
from cbm.files.console import quiet_libraries
from cbm.layers import decide, is_many, probabilities
from cbm.methods import Method, create_method, fit_method
from cbm.metrics.multilabel import auroc
from cbm.trained import Prediction

Concepts = Sequence[str] | Mapping[str, Sequence[str]] | ConceptBank


class ConceptClassifier(ClassifierMixin, BaseEstimator):
    """A concept bottleneck over features ``[N, D]`` that you have encoded yourself.

        model = cbm.ConceptClassifier("labo", concepts=phrases, concept_embeddings=text_features, lr=0.05)
        model.fit(features, labels).score(test_features, test_labels)
        model.explain(test_features[:1])

    Features may be of any norm; they are divided by it. Concepts may name their owners, ``{class: phrases}``.

    Args:
        method: name of the method: ``labo``, ``posthoc``, ``sparse``, ``cms``, ``linear_probe`` ... (docs/methods).
        concepts: phrases, class -> phrases, or an embedded bank; ``zero_shot`` and ``linear_probe`` need none.
        concept_embeddings: embeddings ``[K, D]`` of the phrases in their order (class after class), of any norm, from
            the text tower that belongs to the features.
        class_embeddings: embeddings ``[C, D]`` of the class names from that tower, for the methods that read them
            (``zero_shot``, ``cms``, ``label_free`` with ``class_cutoff``).
        negative_embeddings: embeddings ``[L, D]`` of the sentences that say an image does not show a label ("no wren"),
            for ``zero_shot`` where an image has any number of labels.
        classes: C class names in the sorted order of the labels, if labels are numbers; where an image has any number
            of labels, their names in the order of the columns.
        logit_scale: factor that the encoder puts on cosines.
        validation: share of the images of every class that is held out to stop and tune training.
        random_state: random seed for that split and for training.
        settings: settings of the method (``python train.py method=NAME --help``).

    Attributes:
        classes_: the labels, sorted; where an image has any number of them, the columns of a data frame, else
            ``classes``, else their numbers.
        model_: the classifier, from features ``[N, D]`` to logits ``[N, C]``.
        bank_: the concepts of the model's columns, or None.
        facts_: numbers that the method reports about its fit.
    """

    def __init__(
        self,
        method: str = "labo",
        *,
        concepts: Concepts | None = None,
        concept_embeddings: ArrayLike | None = None,
        class_embeddings: ArrayLike | None = None,
        negative_embeddings: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        logit_scale: float = 100.0,
        validation: float = 0.2,
        random_state: int | np.random.RandomState | None = 0,
        **settings: Any,
    ):
        self.method = method
        self.concepts = concepts
        self.concept_embeddings = concept_embeddings
        self.class_embeddings = class_embeddings
        self.negative_embeddings = negative_embeddings
        self.classes = classes
        self.logit_scale = logit_scale
        self.validation = validation
        self.random_state = random_state
        self._settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Settings of the estimator and of the method."""
        return {**super().get_params(deep), **self._settings}

    def set_params(self, **params: Any) -> "ConceptClassifier":
        """Change settings of the estimator or of the method; ``fit`` rejects those that the method does not know."""
        own = self._get_param_names()
        for name, value in params.items():
            if name in own:
                setattr(self, name, value)
            else:
                self._settings[name] = value
        return self

    def fit(self, X: Any, y: Any) -> "ConceptClassifier":
        """Train on features ``[N, D]`` with labels ``[N]``, or with any number of labels an image, ``[N, L]`` of 1, 0
        and NaN for unknown.

        Raises:
            UserError: a wrong setting, missing concepts, or embeddings that do not fit.
            ValueError: scikit-learn rejects the arrays.
        """
        method = create_method({"name": self.method, **self._settings})
        if not 0 < self.validation < 1:
            raise UserError(f"validation={self.validation}: expected a share between 0 and 1")
        shape = _shape(y)
        if not shape and isinstance(y, Sequence) and not isinstance(y, str):
            raise UserError("y has rows of different lengths: expected labels [N], or [N, L] of 1, 0 and NaN")
        many = len(shape) == 2 and shape[1] > 1
        if many:
            X = validate_data(self, X, dtype=np.float32, ensure_min_features=2)
            labels = self._many(y, len(X))
            self.classes_ = self._label_names(y, labels.shape[1])
        else:
            X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_features=2)
            check_classification_targets(y)
            self.classes_, labels = np.unique(y, return_inverse=True)
        names = self._class_names()
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        data = self._data(X, labels, names, int(seed))
        if self.negative_embeddings is not None and many:
            denied = self._embeddings("negative_embeddings", self.negative_embeddings, len(names), names)
            data = replace(data, negative_embeddings=denied)
        elif self.method == "zero_shot" and many:
            raise UserError(
                "method=zero_shot of several labels needs negative_embeddings [L, D]: sentences that say an image does "
                "not show a label, by your text tower"
            )
        if method.reads_class_names and self.class_embeddings is not None:
            named = self._embeddings("class_embeddings", self.class_embeddings, len(names), names)
            data = replace(data, class_embeddings=named)
        quiet_libraries()
        with isolate_rng():
            bank, trainer = self._bank(method, names), TrainerConfig(progress=False)
            self.model_, self.bank_ = fit_method(method, data, bank, self.logit_scale, seed=int(seed), trainer=trainer)
        self.facts_ = dict(method.facts)
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """The predicted labels ``[N]`` of features ``[N, D]``; ``[N, L]`` of 0 and 1 where there are several."""
        check_is_fitted(self)
        said = decide(self.model_, self._prediction(X).logits).numpy()
        return said.astype(np.int64) if said.ndim == 2 else self.classes_[said]

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities ``[N, C]`` of features ``[N, D]``, columns as in ``classes_``; of labels, of each its own."""
        prediction = self._prediction(X)
        return probabilities(self.model_, prediction.logits.double()).numpy()

    def score(self, X: ArrayLike, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; of labels ``[N, L]`` (1, 0, NaN for unknown) their mean AUROC, without weights."""
        shape = _shape(y)
        if len(shape) != 2 or not is_many(self.model_):
            return float(super().score(X, y, sample_weight))
        prediction = self._prediction(X)
        if shape != tuple(prediction.logits.shape):
            raise UserError(f"y has shape {list(shape)}; expected {list(prediction.logits.shape)}")
        return float(auroc(prediction.logits, torch.as_tensor(np.asarray(y, dtype=np.float32))).nanmean())

    def explain(self, X: ArrayLike, top: int = 10, label: str | None = None) -> list[list[tuple[str, float]]]:
        """The ``top`` concepts that changed a logit of every image most, with their contributions: that of the
        predicted class, or of ``label``."""
        prediction = self._prediction(X)
        return [prediction.explain(row, top, label) for row in range(len(prediction.logits))]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    @torch.no_grad()
    def _prediction(self, X: ArrayLike) -> Prediction:
        check_is_fitted(self)
        x = _unit(validate_data(self, X, dtype=np.float32, reset=False))
        return Prediction(self.model_(x), self._class_names(), x, self.model_, self.bank_)

    def _many(self, y: Any, count: int) -> NDArray:
        """Labels ``[N, L]`` as the methods take them.

        Raises:
            UserError: another shape, something else than 1, 0 and NaN, or a label without two of each.
        """
        try:
            labels = y.to_numpy(np.float32, na_value=np.nan) if hasattr(y, "to_numpy") else np.asarray(y, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError("y has several columns and holds text: expected 1, 0 and NaN (unknown)") from error
        if labels.shape[0] != count:
            raise UserError(f"y has shape {list(labels.shape)}; expected [{count}, L]")
        if not np.all(np.isnan(labels) | (labels == 0) | (labels == 1)):
            raise UserError("y has several columns and other numbers than 1, 0 and NaN (unknown)")
        few = np.flatnonzero(((labels == 1).sum(axis=0) < 4) | ((labels == 0).sum(axis=0) < 4))
        if len(few):
            name = self._label_names(y, labels.shape[1])[few[0]]
            raise UserError(f"y: label {name} needs 4 rows with it and 4 without, half of them to validate on")
        return labels

    def _label_names(self, y: Any, count: int) -> NDArray:
        """The columns of a data frame, else ``classes``, else numbers."""
        named = getattr(y, "columns", self.classes)
        return np.arange(count) if named is None or len(named) != count else np.array(list(named))

    def _class_names(self) -> list[str]:
        if self.classes is None:
            return [str(label) for label in self.classes_]
        names = list(self.classes)
        if twice := [name for n, name in enumerate(names) if name in names[:n]]:
            raise UserError(f"classes has '{twice[0]}' twice: every class needs a name of its own")
        if len(names) != len(self.classes_):
            raise UserError(f"classes has {len(names)} names, but y has {len(self.classes_)} labels")
        return names

    def _data(self, X: NDArray, labels: NDArray, names: list[str], seed: int) -> FeatureData:
        """Training and validation split: a share of every class, and at least one image where there are two."""
        generator, held_out = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
        if labels.ndim == 2:
            return self._many_data(X, labels, names, seed)
        for label in range(len(names)):
            rows = generator.permutation(np.flatnonzero(labels == label))
            held_out[rows[: min(max(round(self.validation * len(rows)), 1), len(rows) - 1)]] = True
        if not held_out.any():
            raise ValueError(f"{len(labels)} sample(s) of {len(names)} class(es): some class needs two or more")
        x, y = _unit(X), torch.from_numpy(labels.astype(np.int64))
        whole = FeatureSplit(x, y, [str(row) for row in range(len(y))])
        splits = {"train": whole.take(np.flatnonzero(~held_out)), "val": whole.take(np.flatnonzero(held_out))}
        return FeatureData(splits, names, seed=seed, encoder="yours")

    def _many_data(self, X: NDArray, labels: NDArray, names: list[str], seed: int) -> FeatureData:
        """``_data`` for labels ``[N, L]``: their shares differ little between the two splits."""
        shares = np.array([1 - self.validation, self.validation])
        places = stratify(strata(labels), np.arange(len(labels)), shares, np.random.default_rng(seed))
        x, y = _unit(X), torch.from_numpy(labels)
        whole = FeatureSplit(x, y, [str(row) for row in range(len(y))])
        splits = {name: whole.take(np.flatnonzero(places == n)) for n, name in enumerate(("train", "val"))}
        return FeatureData(splits, names, seed=seed, encoder="yours")

    def _bank(self, method: Method, names: list[str]) -> ConceptBank | None:
        """The embedded concepts that the method builds on."""
        if method.concepts_from is None:
            return None
        if method.concepts_from == "class_names":
            if self.class_embeddings is None:
                raise UserError(f"method={self.method} needs class_embeddings [C, D]: class names by your text tower")
            rows = self._embeddings("class_embeddings", self.class_embeddings, len(names), names)
            return ConceptBank("classes", "classes", tuple(Concept(name, (name,)) for name in names), "yours", rows)
        if self.concepts is None:
            raise UserError(f"method={self.method} speaks through concepts: say concepts= and concept_embeddings=")
        given, bank = self.concept_embeddings, _as_bank(self.concepts)
        if given is None:
            given = bank.embeddings
        if given is None:
            raise UserError("concepts need concept_embeddings [K, D]: the phrases by the text tower of your features")
        texts = _phrases(self.concepts)
        rows = self._embeddings("concept_embeddings", given, len(texts), texts)
        first = {normalise_text(text): row for row, text in reversed(list(enumerate(texts)))}  # duplicates are merged
        rows = rows[[first[normalise_text(text)] for text in bank.texts]]
        return adopt_classes(replace(bank, embeddings=rows, encoder="yours"), names)

    def _embeddings(self, name: str, given: ArrayLike | Tensor, count: int, texts: Sequence[str]) -> Tensor:
        """``[count, D]`` unit-norm."""
        rows = torch.as_tensor(given if isinstance(given, Tensor) else np.asarray(given), dtype=torch.float32)
        if list(rows.shape) != [count, self.n_features_in_]:
            raise UserError(f"{name} has shape {list(rows.shape)}; expected [{count}, {self.n_features_in_}]")
        return unit_norm(rows, list(texts))


def _shape(y: Any) -> tuple[int, ...]:
    """Shape of labels as numpy reads them; that of nothing for lists of unequal lengths, which scikit-learn refuses."""
    try:
        return np.asarray(y).shape
    except ValueError:
        return ()


def _unit(X: NDArray) -> Tensor:
    return unit_norm(torch.from_numpy(np.ascontiguousarray(X)), [f"row {row}" for row in range(len(X))])


def _as_bank(concepts: Concepts) -> ConceptBank:
    return concepts if isinstance(concepts, ConceptBank) else phrase_bank(concepts)


def _phrases(concepts: Concepts) -> list[str]:
    """The phrases as they were given: a row of ``concept_embeddings`` each."""
    if isinstance(concepts, ConceptBank):
        return concepts.texts
    lists = concepts.values() if isinstance(concepts, Mapping) else [concepts]
    return [text for phrases in lists for text in phrases]
