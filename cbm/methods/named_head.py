"""``head=names``: a head that may only use what the concepts' names say (``cbm.methods.name_tied``)."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import score_moments
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.methods.name_tied import solve_name_tied
from cbm.metrics.reader import said_by_owners
from cbm.solvers import LinearScores, SparseScores

log = logging.getLogger(__name__)


@dataclass
class NamesHeadConfig:
    """Settings of a head that may only use what the names say."""

    names_lam: float = 0.3
    """Pull of the names head towards the reader, who listens to every name alike"""
    names_temperature: float | None = None
    """Temperature of the names head; null: that of the reader. Controls get that of the model they are compared with: a
    reader of meaningless names has one near 0, at which no gain could do anything"""


def what_names_say(bank: ConceptBank, classes: list[str]) -> Tensor:
    """What the names say of the classes ``[K, C]``: as an independent reader understands them, if one was asked; else
    by the classes that the phrases were written for.

    Args:
        bank: the concepts.
        classes: C class names.

    Raises:
        UserError: there is no reader, and nobody wrote the phrases for classes.
    """
    if bank.says is not None:
        return bank.says
    owners = bank.owners(classes)
    if bank.owners_chosen or not owners.any():
        raise UserError(
            f"a head that may only use what names say needs to know what they say of the classes: bank '{bank.name}' "
            "does not say which phrase was written for which class; name a text encoder that reads them "
            "(evidence.reader=NAME)"
        )
    return said_by_owners(owners)


def with_named_head(
    model: ConceptBottleneck,
    bank: ConceptBank,
    data: FeatureData,
    config: NamesHeadConfig,
    scores: LinearScores | None = None,
) -> tuple[ConceptBottleneck, dict[str, float]]:
    """The model with a name-tied head on its activations.

    Args:
        model: the bottleneck, whose own head is left out.
        bank: the concepts of its columns.
        data: encoded splits.
        config: settings of the head.
        scores: activations of the training images, if they are known already.

    Returns:
        The model, and numbers about the fit.

    Raises:
        UserError: nothing is known of what the names say.
    """
    if data.many:
        raise UserError(
            "method.head=names says which class the names speak for, one a picture: with several labels leave it out"
        )
    says = what_names_say(bank, data.classes)
    scores = activation_scores(model, data.train.x) if scores is None else scores
    head = solve_name_tied(scores, data.train.y, says, lam=config.names_lam, scale=config.names_temperature)
    weight, bias = scores.on_raw(head.weight(says), head.bias)
    used = int((head.gain > 0).sum())
    log.info("names head: %d of %d names are listened to (certificate: at most %.0e nats above the optimum)",
             used, len(bank), head.gap)  # fmt: skip
    facts = {"names_used": float(used), "names_gap": head.gap, "names_temperature": head.scale}
    return model.with_weights(weight, bias), facts


def bare_bottleneck(data: FeatureData, directions: Tensor) -> ConceptBottleneck:
    """A bottleneck on these directions ``[K, D]`` whose head is still zero."""
    mean, spread = score_moments(data.train.x, directions)
    head = LinearHead(torch.zeros(len(data.classes), len(directions)))
    return ConceptBottleneck(directions, head, reference=mean, spread=spread)


def activation_scores(model: ConceptBottleneck, x: Tensor) -> LinearScores:
    """The activations of a model as scores that the solvers read, in standard deviations.

    Args:
        model: the bottleneck; calibrated if its activations are mostly zero.
        x: unit-norm features ``[N, D]`` of the training images.
    """
    if model.activation is None:
        return LinearScores(x, model.concepts)
    found = [model.activations(part) for part in x.split(max(1, 2**22 // len(model.concepts)))]
    most = max(int((part != 0).sum(dim=1).max()) for part in found)
    if not model.activation.rests_at_zero or most > len(model.concepts) // 4:
        return LinearScores(torch.cat(found))
    picked = [part.abs().topk(most, dim=1) for part in found]
    columns = torch.cat([p.indices.where(p.values > 0, -1) for p in picked])
    values = torch.cat([part.gather(1, p.indices) for part, p in zip(found, picked)])
    return SparseScores(values, columns, len(model.concepts))


def check_names_head(config: NamesHeadConfig) -> None:
    """Check the settings.

    Raises:
        UserError: a number is out of range.
    """
    if not 0 < config.names_lam < math.inf:
        raise UserError(f"method.names_lam={config.names_lam}: expected a number > 0")
    if config.names_temperature is not None and not 0 < config.names_temperature < math.inf:
        raise UserError(f"method.names_temperature={config.names_temperature}: expected a number > 0, or null")
