"""What stands beside every result: the same method on meaningless concepts, random directions, and simple baselines."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn import functional as F

from cbm.concepts import CONTROLS, ConceptBank, apply_control
from cbm.concepts.candidates import class_bank
from cbm.data import FeatureData
from cbm.data.text_store import EncodeText
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.kernels import class_logits, class_vectors
from cbm.layers import predict_logits
from cbm.methods import Method, create_method, fit_method
from cbm.metrics.evaluate import accuracy, evaluate_split, macro
from cbm.metrics.multilabel import auroc_macro_difference
from cbm.metrics.nec import solve_heads
from cbm.solvers import LinearScores

log = logging.getLogger("cbm")

FEW = 5
"""Concepts per class of heads on random directions."""
LARGE = 3e10
"""Numbers times classes (``N * D * C``) of a pass over the training images from which fewer random draws are made."""


def fit_controls(
    candidates: ConceptBank,
    used: ConceptBank,
    data: FeatureData,
    cfg: DictConfig,
    logit_scale: float,
    facts: Mapping[str, float],
) -> dict[str, tuple[Any, Any]]:
    """The same method on random and on shuffled concepts, by the name of the control.

    Args:
        candidates: the concepts that the method chose from.
        used: the concepts that the model uses.
        data: encoded splits.
        cfg: a ``cbm.config.TrainConfig``.
        logit_scale: factor that the encoder puts on cosines.
        facts: what the method said about its own fit; a names head's controls get its temperature.

    Returns:
        Models and their banks; not ``shuffled`` for a method that never reads owners, whose model would be the same,
        and none that the method's settings do not fit.
    """
    fitted = {}
    settings: dict[str, Any] = dict(cfg.method)
    if "names_temperature" in facts:
        settings["names_temperature"] = facts["names_temperature"]
    for control in CONTROLS:
        method, names = create_method(settings).as_control(candidates, used)
        if control == "shuffled" and not method.reads_owners:
            continue
        bank = apply_control(names, control, cfg.seed)
        try:
            fitted[control] = fit_method(method, data, bank, logit_scale, seed=cfg.seed, trainer=cfg.trainer)
        except UserError as error:  # what fits the concepts need not fit meaningless ones (a penalty that leaves none)
            log.warning("%s concepts: the method cannot be fitted on them, so they are not shown: %s", control, error)
    return fitted


def random_heads(count: int, data: FeatureData, draws: int, seed: int) -> tuple[float, ...]:
    """Test accuracies of certified heads with few concepts per class on random directions, one of every draw.

    Args:
        count: number of directions K.
        data: encoded splits.
        draws: number of draws; fewer where a pass over the training images is long.
        seed: random seed.
    """
    size = len(data.train) * data.dim * len(data.classes)
    allowed = max(3, int(draws * min(1.0, LARGE / size)))
    if allowed < draws:
        log.info("evidence: %d sets of random directions instead of %d, for the training set is large", allowed, draws)
    found = []
    for draw in range(min(draws, allowed)):
        generator = torch.Generator().manual_seed(7919 * (draw + 1) + seed)
        directions = F.normalize(torch.randn(count, data.dim, generator=generator), dim=1)
        scores = LinearScores(data.train.x, directions)
        head = solve_heads(scores, data.train.y, len(data.classes), [FEW])[0]
        vectors = class_vectors(directions, head.weight, bias=head.bias)
        found.append(accuracy(class_logits(data.test.x, *vectors), data.test.y))
    return tuple(found)


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
    names = ["zero_shot", "linear_probe"] if has_class_texts(cfg, encoder) else ["linear_probe"]
    results = {}
    for name in names:
        baseline = create_method({"name": name})
        if type(baseline) is type(method):
            continue
        bank = None
        if baseline.concepts_from == "class_names":
            bank = class_bank(cfg, data.classes, encoder, encode_text)
        if name == "zero_shot" and data.many and data.negative_embeddings is None:
            continue
        model, bank = fit_method(baseline, data, bank, logit_scale, seed=cfg.seed, trainer=cfg.trainer)
        results[name] = evaluate_split(model, bank, data, "test")
    return results


def has_class_texts(cfg: DictConfig, encoder: Encoder | None) -> bool:
    """Whether class names can be embedded in the space of the features."""
    return cfg.concepts.class_embeddings is not None or (encoder is not None and encoder.has_text)


def label_controls(
    method: Method,
    model: torch.nn.Module,
    bank: ConceptBank,
    data: FeatureData,
    candidates: ConceptBank | None,
    cfg: DictConfig,
    logit_scale: float,
    facts: Mapping[str, float],
) -> dict[str, float]:
    """What stands beside a model of labels: mean AUROC without concepts, and of the method on meaningless ones.

    Args:
        method: the method of the run.
        model: the trained classifier.
        bank: the concepts of its columns.
        data: encoded splits.
        candidates: the concepts for controls that are fitted; None for none.
        cfg: a ``cbm.config.TrainConfig``.
        logit_scale: factor on cosines.
        facts: what the method said about its fit.

    Returns:
        ``controls/random`` and ``controls/shuffled``: mean test AUROC; ``controls/random_lead_low`` and ``_high``: the
        95 % interval of how much better the real concepts rank the same images.
    """
    values: dict[str, float] = {}
    if candidates is None:
        return values
    ours = predict_logits(model, data.test.x)
    for name, (other, _) in fit_controls(candidates, bank, data, cfg, logit_scale, facts).items():
        theirs = predict_logits(other, data.test.x)
        values[f"controls/{name}"] = macro(theirs, data.test.y)
        lead = auroc_macro_difference(ours, theirs, data.test.y, data.test.subjects)
        if lead is not None:
            values |= {f"controls/{name}_lead_low": lead.low, f"controls/{name}_lead_high": lead.high}
    return values
