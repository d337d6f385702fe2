"""The evidence beside every result: the same method on random and on shuffled concepts, and simple baselines."""

import math
from typing import Any

from omegaconf import DictConfig

from cbm.concepts import CONTROLS, ConceptBank, apply_control
from cbm.concepts.candidates import class_bank
from cbm.data import FeatureData
from cbm.data.text_store import EncodeText
from cbm.encoders.base import Encoder
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.methods import Method, create_method, fit_method
from cbm.metrics import chance_accuracy
from cbm.metrics.evaluate import deleted_logits, evaluate_split, outside_share, truncated_logits
from cbm.metrics.grounding import concept_gaps
from cbm.metrics.integrity import Integrity, renamed_accuracy, weigh_integrity


def check_integrity(
    model: ConceptBottleneck,
    bank: ConceptBank,
    data: FeatureData,
    candidates: ConceptBank,
    cfg: DictConfig,
    logit_scale: float,
) -> Integrity:
    """Fit the same method on random and on shuffled concepts and weigh the evidence (``cbm.metrics.integrity``).

    Args:
        model: the trained bottleneck.
        bank: the concepts that it uses.
        data: encoded splits.
        candidates: the concepts that it chose from.
        cfg: a ``cbm.config.TrainConfig``.
        logit_scale: factor that the encoder puts on cosines.
    """
    fitted: dict[str, tuple[Any, Any]] = {"real": (model, bank)}
    for control in CONTROLS:
        method, names = create_method(cfg.method).as_control(candidates, bank)
        fitted[control] = fit_method(
            method, data, apply_control(names, control, cfg.seed), logit_scale, seed=cfg.seed, trainer=cfg.trainer
        )
    test, classes = data.test, data.classes
    return weigh_integrity(
        {name: predict_logits(m, test.x).argmax(1) == test.y for name, (m, _) in fitted.items()},
        {name: truncated_logits(m, test.x).argmax(1) == test.y for name, (m, _) in fitted.items()},
        {name: concept_gaps(test.x, test.y, m.concepts, b.owners(classes))[1] for name, (m, b) in fitted.items()},
        deleted=float((deleted_logits(model, test.x).argmax(1) == test.y).float().mean()),
        renamed=renamed_accuracy(model, test.x, test.y),
        chance=chance_accuracy(test.y),
        outside=outside_share(model, test.x),
    )


def integrity_metrics(integrity: Integrity) -> dict[str, float]:
    """The integrity check as metrics with keys ``integrity/...``."""
    values = {"integrity/carries": float(integrity.carries), "integrity/deleted_accuracy": integrity.deleted}
    values["integrity/renamed_accuracy"] = integrity.renamed
    values["integrity/outside_share"] = integrity.outside
    for control in CONTROLS:
        values[f"integrity/{control}_accuracy"] = integrity.accuracy[control]
        values[f"integrity/{control}_accuracy_nec5"] = integrity.nec5[control]
        if not math.isnan(integrity.gap[control]):
            values[f"integrity/{control}_grounding_gap_std"] = integrity.gap[control]
    return values


def fit_baselines(
    method: Method,
    data: FeatureData,
    cfg: DictConfig,
    encoder: Encoder | None,
    encode_text: EncodeText,
    logit_scale: float,
) -> dict[str, dict[str, float]]:
    """Test metrics of zero-shot classification (if class names can be embedded) and of a linear probe.

    Args:
        method: the method of the run, which is not fitted again.
        data: encoded splits.
        cfg: a ``cbm.config.TrainConfig``.
        encoder: the frozen encoder; None if features are given.
        encode_text: function from phrases to features.
        logit_scale: factor on cosines.

    Returns:
        Metrics by name of the baseline.
    """
    named = cfg.concepts.class_embeddings is not None or (encoder is not None and encoder.has_text)
    names = ["zero_shot", "linear_probe"] if named else ["linear_probe"]
    results = {}
    for name in names:
        baseline = create_method({"name": name})
        if type(baseline) is type(method):
            continue
        bank = None
        if baseline.concepts_from == "class_names":
            bank = class_bank(cfg, data.classes, encoder, encode_text)
        model, bank = fit_method(baseline, data, bank, logit_scale, seed=cfg.seed, trainer=cfg.trainer)
        results[name] = evaluate_split(model, bank, data, "test")
    return results
