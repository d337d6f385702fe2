"""Gather the evidence for and against the concepts of a trained model; ``cbm.metrics.integrity`` says what it shows."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cbm.concepts import ConceptBank, clean_class_names
from cbm.concepts.candidates import class_bank
from cbm.concepts.hygiene import class_name_pattern
from cbm.concepts.lint import near_copies
from cbm.concepts.negation import negate
from cbm.concepts.readers import match_concepts
from cbm.data import FeatureData, FeatureSplit
from cbm.data.features import mean_feature, spaced
from cbm.data.text_store import EncodeText
from cbm.encoders.base import Encoder
from cbm.kernels import concept_scores
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.metrics import chance_accuracy
from cbm.metrics.bootstrap import Units, accuracy_intervals, mean_of_classes
from cbm.metrics.dictionaries import directions_like
from cbm.metrics.evaluate import accuracy, deleted_logits, outside_share, truncated_logits
from cbm.metrics.grounding import association
from cbm.metrics.integrity import (
    Evidence,
    Integrity,
    association_test,
    contradiction_test,
    leak_test,
    names_test,
    other_facts,
    outside_test,
    renamed_accuracy,
    sparsity_fact,
    truth_test,
)
from cbm.metrics.label_integrity import shown_by_owners
from cbm.metrics.label_reader import labels_by_owners, read_labels
from cbm.metrics.reader import (
    AT_MOST,
    Reading,
    centre_directions,
    few_words,
    read,
    reader_accuracy,
    said_by_owners,
    strongest_words,
)
from cbm.metrics.truth import Truth, auroc_matrix, concept_truth, holm, upper_tail
from cbm.run.controls import fit_controls, has_class_texts, random_heads
from cbm.solvers import Codes

log = logging.getLogger("cbm")

DENIED = 200
"""Phrases that are compared with their negations, at most: those with the largest weights."""


@dataclass(frozen=True)
class Subject:
    """A trained model with what it was trained on.

    Attributes:
        model: the bottleneck.
        bank: the concepts of its columns.
        data: encoded splits.
        cfg: the configuration, a ``cbm.config.TrainConfig``.
        encoder: the encoder of the features; None if nothing is known of it.
        encode_text: function from phrases to features in the space of the concepts.
        facts: what the method said about its fit (``Method.facts``).
    """

    model: ConceptBottleneck
    bank: ConceptBank
    data: FeatureData
    cfg: DictConfig
    encoder: Encoder | None
    encode_text: EncodeText
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def owners(self) -> Tensor | None:
        """Which class owns which concept ``[C, K]``, by whoever wrote the phrases; None if nobody said so."""
        owners = self.bank.owners(self.data.classes)
        return owners if owners.any() and not self.bank.owners_chosen else None

    @property
    def why_no_owners(self) -> str:
        """Why the owners cannot be used, in words."""
        kind = ("label", "labels") if self.data.many else ("class", "classes")
        if self.bank.owners_chosen:
            return f"the {kind[1]} of the phrases were chosen on images"
        return f"the bank does not say which phrase was written for which {kind[0]}"

    @property
    def of_texts(self) -> bool:
        """Whether the model's concepts are the directions of its bank, as they are or without what all share."""
        known, concepts = self.bank.embeddings, self.model.concepts
        if known is None or known.shape != concepts.shape or self.model.mixing is not None:
            return False
        return any(
            bool((cosine_similarity(each, concepts.float()) > 0.999).all())
            for each in (known.float(), centre_directions(known))
        )


def gather_evidence(
    subject: Subject, candidates: ConceptBank | None, resolved: float | None, logit_scale: float
) -> tuple[Integrity, dict[str, float]]:
    """Test the concepts of a model.

    Args:
        subject: the model.
        candidates: the concepts that its method chose from, for controls that are fitted; None for none.
        resolved: test accuracy of a new head with five concepts per class; None if none was solved.
        logit_scale: factor that the encoder puts on cosines.

    Returns:
        The evidence, and its numbers with the keys of ``metrics.json``.
    """
    model, bank, data, cfg = subject.model, subject.bank, subject.data, subject.cfg
    test, draws, seed = data.test, cfg.evidence.draws, cfg.seed
    words, readings = read_names(subject)
    owners = subject.owners
    going = None if owners is None else association(test.x, test.y, model.concepts, owners, draws=draws, seed=seed)
    overall, within = compare_with_labels(subject)
    fitted = {} if candidates is None else fit_controls(candidates, bank, data, cfg, logit_scale, subject.facts)
    models = {"real": model, **{name: fit[0] for name, fit in fitted.items()}}
    right = {name: accuracy(predict_logits(m, test.x), test.y) for name, m in models.items()}
    cut = {name: accuracy(truncated_logits(m, test.x), test.y) for name, m in models.items()}
    random: tuple[float, ...] = ()
    if resolved is not None and candidates is not None:
        random = random_heads(len(bank), data, cfg.evidence.random_draws, seed)
    outside, deleted = outside_share(model, test.x), accuracy(deleted_logits(model, test.x), test.y)
    renamed, chance = renamed_accuracy(model, test.x, test.y), chance_accuracy(test.y)
    why = subject.why_no_owners
    tests: list[Evidence] = [
        names_test(readings, f"{why}, and no other text encoder reads them (evidence.reader=NAME)"),
        association_test(going, why),
        truth_test(overall, within, len(bank)),
        contradict(subject),
        find_leaks(subject),
        outside_test(outside),
        sparsity_fact(resolved, random),
        *other_facts(right["real"], deleted, renamed, chance, better_than_deleted(model, test)),
    ]
    found = Integrity(tuple(tests), right, cut, random, deleted, renamed, chance, outside)
    metrics = reading_metrics(readings) | truth_metrics(overall, within) | code_metrics(subject, words)
    return found, metrics | integrity_metrics(found)


def better_than_deleted(model: ConceptBottleneck, test: FeatureSplit) -> bool:
    """Whether a model decides significantly better than with every concept at its reference: by the accuracy, or by
    the mean of the classes, which the largest class alone does not make high."""
    y = test.y.numpy()
    with_them, without = ((each.argmax(dim=1) == test.y).numpy() for each in
                          (predict_logits(model, test.x), deleted_logits(model, test.x)))  # fmt: skip
    ends = accuracy_intervals(with_them, Units(y, test.subjects))
    once = np.ones((1, len(y)), dtype=np.float32)
    left = {"accuracy": float(without.mean()), "accuracy_macro": float(mean_of_classes(without, y)(once)[0])}
    return any(ends[key][0] > left[key] for key in left)


def read_names(subject: Subject) -> tuple[Codes, list[Reading]]:
    """The few words of the test images, and what readers make of them: by owners, then by another text encoder."""
    data, bank, cfg = subject.data, subject.bank, subject.cfg
    x, y = spaced(data.test.x, AT_MOST), spaced(data.test.y, AT_MOST)
    if subject.of_texts:
        words = few_words(x, bank.directions(), mean_feature(data.train.x))
    else:
        words = strongest_words(subject.model, x)
    known: list[tuple[str, Tensor]] = []
    if (owners := subject.owners) is not None:
        known.append(("owners", labels_by_owners(owners) if data.many else said_by_owners(owners)))
    if bank.says is not None:
        known.append((str(bank.said_by), bank.says))
    subjects = data.test.subjects
    subjects = None if subjects is None else subjects[spaced(torch.arange(len(subjects)), AT_MOST).numpy()]
    draws, seed = cfg.evidence.draws, cfg.seed
    reader = read_labels if data.many else read
    found = [reader(words, says, y, by, subjects=subjects, draws=draws, seed=seed) for by, says in known]
    return words, [each for each in found if each is not None]


def compare_with_labels(subject: Subject) -> tuple[Truth | None, Truth | None]:
    """Scores of the test images against the data set's concept labels: over all images, and within every class, or of
    labels among images that have the same ones."""
    data, test = subject.data, subject.data.test
    matches = match_concepts(subject.bank.phrases, data.concept_names)
    if not matches or test.concepts is None:
        return None, None
    columns, truth = ([pair[i] for pair in matches] for i in (0, 1))
    scores, labels = subject.model.scores(test.x, columns), test.concepts[:, truth]
    draws, seed = subject.cfg.evidence.draws, subject.cfg.seed
    alike = test.y.nan_to_num(-1.0).unique(dim=0, return_inverse=True)[1] if data.many else test.y
    return (
        concept_truth(scores, labels, draws=draws, seed=seed),
        concept_truth(scores, labels, alike, draws=draws, seed=seed),
    )


def contradict(subject: Subject) -> Evidence:
    """Compare phrases with their negations on images of the classes that own them."""
    bank, data, encoder = subject.bank, subject.data, subject.encoder
    owners = bank.owners(data.classes)
    columns = owners.any(dim=0).logical_and(~owners.all(dim=0)).nonzero().flatten()
    if not len(columns):
        return contradiction_test({}, math.nan, subject.why_no_owners)
    if encoder is None or not encoder.has_text or bank.encoder != encoder.fingerprint or not subject.of_texts:
        return contradiction_test({}, math.nan, "no text encoder made the directions")
    weight = subject.model.importance().abs().amax(dim=0)[columns]
    columns = columns[weight.argsort(descending=True, stable=True)[:DENIED]].sort().values
    texts = [bank.texts[k] for k in columns.tolist()]
    difference = bank.directions()[columns] - subject.encode_text([negate(text) for text in texts])
    y, own = data.test.y, owners[:, columns]
    shown = shown_by_owners(y, own) if data.many else own.float()[y]
    auroc, variance = auroc_matrix(concept_scores(data.test.x, difference), shown)
    told = auroc.diagonal()
    known = ~told.isnan()
    if not known.any():
        lack = "has a label that a phrase was written for" if data.many else "shows a class that owns a phrase"
        return contradiction_test({}, math.nan, f"no test image {lack}")
    above = holm(upper_tail(((told - 0.5) / variance.sqrt())[known]), 0.05)
    said = {text: float(value) for text, value in zip(texts, told) if not math.isnan(value)}
    return contradiction_test(said, sum(above) / len(above))


def find_leaks(subject: Subject) -> Evidence:
    """Class names and near-copies among the concepts."""
    bank = subject.bank
    pattern = class_name_pattern(clean_class_names(subject.data.classes))
    naming = [text for text in bank.texts if pattern is not None and pattern.search(text)]
    kind = "label" if subject.data.many else "class"
    return leak_test(naming, len(near_copies(bank.texts)), len(bank), kind)


def reading_metrics(readings: list[Reading]) -> dict[str, float]:
    """The reading that decides, with keys ``test/reader_...`` and ``test/name_value``."""
    if not readings:
        return {}
    best = readings[-1]
    values = {"reader_accuracy": best.accuracy, "reader_accuracy_low": best.low, "reader_accuracy_high": best.high}
    values |= {"reader_null": best.null, "reader_null_sd": best.null_sd, "reader_p": best.p}
    values["name_value"] = best.name_value
    return {f"test/{key}": value for key, value in values.items()}


def truth_metrics(overall: Truth | None, within: Truth | None) -> dict[str, float]:
    """Truth of the concepts with labels."""
    values = {}
    if overall is not None:
        values = {"test/truth_auroc_null": overall.null, "test/truth_above": overall.above, "test/truth_p": overall.p}
    if within is not None:
        values["test/truth_auroc_within"] = within.mean
    return values


def code_metrics(subject: Subject, words: Codes) -> dict[str, float]:
    """Zero-shot of the few words by the text vectors that made the directions, and of as many random directions, which
    do as well: shown side by side, because the first alone looks like evidence and is none."""
    cfg, data = subject.cfg, subject.data
    if not subject.of_texts or not has_class_texts(cfg, subject.encoder):
        return {}
    classes = class_bank(cfg, data.classes, subject.encoder, subject.encode_text).directions().float()
    if classes.shape[1] != data.dim:
        return {}
    x, y = spaced(data.test.x, AT_MOST), spaced(data.test.y, AT_MOST)
    concepts = subject.bank.directions().float()
    unit = torch.nn.functional.normalize(concepts, dim=1)
    texts = torch.nn.functional.normalize(classes - unit.mean(dim=0), dim=1).T
    random = directions_like(torch.cov(centre_directions(concepts).T), len(concepts), cfg.seed)
    values = {}
    for name, directions, said in (
        ("", concepts, words),
        ("_random", random, few_words(x, random, mean_feature(data.train.x))),
    ):
        own = centre_directions(directions) @ texts
        values[f"test/code_zero_shot{name}"] = reader_accuracy(said, own - own.mean(dim=1, keepdim=True), y)
    return values


def integrity_metrics(integrity: Integrity) -> dict[str, float]:
    """The evidence as metrics with keys ``integrity/...``."""
    values = {"carries": float(integrity.carries), "deleted_accuracy": integrity.deleted}
    values |= {"renamed_accuracy": integrity.renamed, "outside_share": integrity.outside}
    for control in integrity.accuracy:
        if control != "real":
            values[f"{control}_accuracy"] = integrity.accuracy[control]
            values[f"{control}_accuracy_nec5"] = integrity.nec5[control]
    if draws := integrity.random_resolved:
        values["random_accuracy_nec5_resolved"] = sum(draws) / len(draws)
    for test in integrity.evidence:
        if test.status in ("passed", "failed"):
            values[test.key] = float(test.passed)
    return {f"integrity/{key}": value for key, value in values.items()}
