"""LaBo: Yang et al., "Language in a Bottle", CVPR 2023. LLM phrases, submodular selection, association from a prior.

``fidelity=paper`` follows the published text: negative entropy of raw cosines, the prior W = 1 for owned concepts, a
fixed factor of 100. ``repaired`` (default) keeps the model and changes what made it need tuning for every data set,
encoder and shot: discriminability is the entropy of a posterior whose unit is the spread of the cosines, so it also
works where cosines are negative or nearly equal; the prior is stated as the mass a class spends on its own concepts
(the published W = 1 means 23 % for 10 classes and 0.27 % for 1,000); and the factor on the scores is fitted, because
the fixed 100 was made for features that are not unit-norm. A phrase that several classes own counts for all of them
under both.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.selection import claim_concepts, select_concepts
from cbm.data.features import FeatureData, mean_feature, spaced
from cbm.errors import UserError
from cbm.kernels import class_logits, score_moments
from cbm.layers import AssociationHead, ConceptBottleneck, owner_prior
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.named_head import NamesHeadConfig, bare_bottleneck, check_names_head, with_named_head
from cbm.solvers import AssociationAdam, fit_scale

SCORES = ("posterior_entropy", "mutual_information", "negative_entropy")
COVERAGES = ("facility_cosine", "facility_cos2", "maxpool", "none")
MANY_WEIGHTS = 2**24  # of a head: 64 MB for every matrix of that size


@dataclass
class LaBoConfig(NamesHeadConfig):
    """Settings of LaBo; None stands for the value that belongs to ``fidelity``."""

    fidelity: str = "repaired"
    """repaired | paper"""
    head: str = "association"
    """association: a distribution over the concepts for every class | names: one non-negative gain on what every name
    says of the classes"""
    concepts_per_class: int = 50
    """Concepts selected for every class"""
    score: Any = None
    """Discriminability of a phrase: posterior_entropy | mutual_information (the published code) | negative_entropy (the
    paper)"""
    coverage: Any = "facility_cosine"
    """Coverage of the phrases: facility_cosine (the paper) | maxpool (the published code) | facility_cos2 | none"""
    coverage_weight: float = 5.0
    """Weight of coverage against discriminability"""
    score_weight: float | None = None
    """Weight of discriminability as it is (1e7 in the published code), with which coverage_weight is the published one;
    null: discriminability is scaled to 0..1 over the bank and coverage is a mean over the candidates"""
    scale: float | None = None
    """Factor on the scores before training; null: by fidelity (100 for paper, fitted for repaired). The published 100
    is for raw features: 100 times their mean norm stands for it here, where features have unit norm"""
    own_mass: float | None = None
    """Share of a class's mass on its own concepts before training"""
    learn_scale: bool | None = None
    """Whether the factor on the scores is trained too"""
    lr: float = 0.02
    """Learning rate"""
    batch_size: int | None = 16384
    """Images per step; null is the full batch"""
    patience: int = 20
    """Validations (every 10 steps or more) without a lower loss after which training stops"""
    max_epochs: int = 1000


FIDELITY: dict[str, dict[str, Any]] = {
    "repaired": {"score": "posterior_entropy", "own_mass": 0.5, "learn_scale": True},
    "paper": {"score": "negative_entropy", "own_mass": None, "learn_scale": False},
}


@register_method("labo")
class LaBo(Method):
    """Concepts written per class, selected to be discriminative and diverse; logits = scale * x T^T softmax(W)^T."""

    Config = LaBoConfig
    reads_owners = True
    many_labels = True

    def __init__(self, config: LaBoConfig):
        super().__init__(config)
        preset = FIDELITY[one_of("method.fidelity", config.fidelity, tuple(FIDELITY))]
        for name, value in preset.items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        one_of("method.score", config.score, SCORES)
        one_of("method.coverage", config.coverage, COVERAGES)
        self.trains = one_of("method.head", config.head, ("association", "names")) == "association"
        check_names_head(config)
        for name in ("score_weight", "scale"):
            if (value := getattr(config, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"method.{name}={value}: expected a number above 0, or null")

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Select the concepts on the training images and set the prior; arguments as for ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        means = data.train.class_means(len(data.classes))
        owners = bank.owners(data.classes)
        if not owners.any():
            owners = claim_concepts(bank.directions(), means)
            bank = bank.owned_by(owners, data.classes, "labo")
        columns = select_concepts(
            bank.directions(),
            owners,
            means,
            self.config.concepts_per_class,
            score=self.config.score,
            coverage=self.config.coverage,
            coverage_weight=self.config.coverage_weight,
            score_weight=self.config.score_weight,
        )
        bank = bank.take(columns.tolist())
        if self.config.head == "names":
            bare = bare_bottleneck(data, bank.directions())
            model, self.facts = with_named_head(bare, bank, data, self.config)
            return Built(model, bank)
        head = AssociationHead(owner_prior(owners[:, columns], self.config.own_mass))
        scale = self.config.scale or 100.0
        if self.config.learn_scale and self.config.scale is None:
            scale = fitted_scale(data, bank.directions(), head, logit_scale)
        if data.many:
            head = with_prior(head, data, bank.directions(), scale)
        reference, spread = score_moments(data.train.x, bank.directions())
        model = ConceptBottleneck(
            bank.directions(),
            head,
            scale=scale,
            learn_scale=bool(self.config.learn_scale),
            reference=reference,
            spread=spread,
            link=link_of(data),
        )
        return Built(model, bank, self.config.batch_size)

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple[Method, ConceptBank]:
        """Phrases that nobody wrote for a class keep the owners that were claimed: images would own any direction."""
        return self, used_names(candidates, used) if used.owners_chosen else candidates

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam at a constant rate, as published."""
        return association_optimizer(model, self.config.lr)


def used_names(candidates: ConceptBank, used: ConceptBank) -> ConceptBank:
    """The candidates that a model uses, with their own directions and the owners that they have in the model."""
    row = {text: k for k, text in enumerate(candidates.texts)}
    return replace(candidates.take(row[text] for text in used.texts), concepts=used.concepts)


def association_optimizer(model: ConceptBottleneck, lr: float) -> torch.optim.Optimizer:
    """Adam; for heads with many weights, a version of Adam that never holds a gradient of their size."""
    head = model.head
    if isinstance(head, AssociationHead) and head.logits.numel() >= MANY_WEIGHTS:
        return AssociationAdam(head, trained(model), lr=lr)
    return torch.optim.Adam(trained(model), lr=lr, fused=True)


def with_prior(head: AssociationHead, data: FeatureData, concepts: Tensor, scale: float) -> AssociationHead:
    """The head with biases ``[L]`` under which an average image has every label with the probability of its share.

    Args:
        head: the untrained head.
        data: encoded splits, of which the training images are used.
        concepts: concept directions ``[K, D]``.
        scale: factor on the scores.
    """
    y = data.train.y
    share = y.nanmean(dim=0).clamp(min=0.5 / len(y), max=1 - 0.5 / len(y))
    average = scale * head.vectors(concepts).detach() @ mean_feature(data.train.x)
    return AssociationHead(head.logits.detach(), share.logit() - average)


def fitted_scale(data: FeatureData, concepts: Tensor, head: AssociationHead, start: float) -> float:
    """The best factor on the scores of an untrained head (see ``fit_scale``).

    Args:
        data: encoded splits, of which the training images are used.
        concepts: concept directions ``[K, D]``.
        head: the untrained head.
        start: the encoder's own factor; factors from a thousandth to a thousand times as large are tried.
    """
    if data.many:  # the factor that fits depends on the biases, which are trained
        return start
    vectors = head.vectors(concepts).detach()
    few = 16384  # plenty for one number
    return fit_scale(class_logits(spaced(data.train.x, few), vectors), spaced(data.train.y, few), start)
