"""V2C-CBM: He et al., AAAI 2025. The concepts nearest to a few labelled images decide which concepts a class owns.

The bank is a codebook (``python -m cbm concepts v2c``: the concepts that are nearest to most unlabelled images), or any
other. Every training image is replaced by its k nearest concepts; those most frequent in a class become its part of the
bottleneck. The head is LaBo's, on cosines. ``fidelity=repaired`` (default) keeps the model, but measures
nearness after subtracting what all images share and what all concepts share, and starts the head as LaBo's repaired one
does: from a prior stated as mass, with a fitted factor on the cosines. ``paper`` takes plain cosines, starts from W = 1
for owned concepts with at most two shots and at random with more, and multiplies by 100.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.tokenizer import SharedParts, count_tokens, tokenise
from cbm.data.features import FeatureData
from cbm.kernels import score_moments
from cbm.layers import AssociationHead, ConceptBottleneck, owner_prior
from cbm.methods.base import Built, Method, link_of, one_of, register_method
from cbm.methods.labo import association_optimizer, fitted_scale, used_names, with_prior

log = logging.getLogger(__name__)


@dataclass
class V2CConfig:
    """Settings of V2C-CBM."""

    fidelity: str = "repaired"
    """repaired | paper"""
    concepts_per_class: int = 50
    """Concepts selected for every class"""
    k: int = 5
    """Number of concepts per image that are counted; more while a class has fewer than ``concepts_per_class``"""
    own_mass: float = 0.5
    """Share of a class's mass on its own concepts before training (repaired)"""
    lr: float = 0.02
    """Learning rate"""
    batch_size: int | None = 16384
    """Images per step; null is the full batch"""
    patience: int = 20
    """Validations (every 10 steps or more) without a lower loss after which training stops"""
    max_epochs: int = 1000


@register_method("v2c")
class V2C(Method):
    """Concepts counted among the tokens of the training images; logits = scale * x T^T softmax(W)^T."""

    Config = V2CConfig
    reads_owners = True
    many_labels = True

    def __init__(self, config: V2CConfig):
        super().__init__(config)
        one_of("method.fidelity", config.fidelity, ("repaired", "paper"))
        self.owners_given = False

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Tokenise the training images, keep the concepts most frequent in each class, and start the head.

        Arguments as for ``Method.build``.
        """
        bank = self.required(bank, "a concept bank")
        owners = bank.owners(data.classes) if self.owners_given else self.token_owners(data, bank)
        columns = owners.any(dim=0).nonzero().flatten()
        owners, bank = owners[:, columns], bank.owned_by(owners, data.classes, "v2c").take(columns.tolist())
        repaired = self.config.fidelity == "repaired"
        head = AssociationHead(self.start(owners, data))
        scale = fitted_scale(data, bank.directions(), head, logit_scale) if repaired else 100.0
        if data.many:
            head = with_prior(head, data, bank.directions(), scale)
        reference, spread = score_moments(data.train.x, bank.directions())
        model = ConceptBottleneck(
            bank.directions(), head, scale=scale, learn_scale=repaired, reference=reference, spread=spread,
            link=link_of(data),
        )  # fmt: skip
        return Built(model, bank, self.config.batch_size)

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple[Method, ConceptBank]:
        """The method on the names that were used, with the owners they had: images would own any direction."""
        control = V2C(self.config)
        control.owners_given = True
        return control, used_names(candidates, used)

    def token_owners(self, data: FeatureData, bank: ConceptBank) -> Tensor:
        """The concepts most frequent in each class, ``[C, M]`` bool.

        Every image counts for its k nearest concepts. If these are fewer than ``concepts_per_class`` different ones
        (few shots), its next nearest concepts count too, after the others. A class never owns a concept that counts
        for none of its images.
        """
        wanted = min(self.config.concepts_per_class, len(bank))
        shown = data.train.y.T == 1 if data.many else data.train.y == torch.arange(len(data.classes))[:, None]
        rows = [has.nonzero().flatten() for has in shown]
        codebook = [bank.directions()]
        shared = SharedParts.of(data.train.x, codebook) if self.config.fidelity == "repaired" else None
        tokens = tokenise(data.train.x, codebook, self.config.k, shared=shared)
        owners = torch.zeros(len(data.classes), len(bank), dtype=torch.bool)
        short = 0
        for c, own in enumerate(rows):
            chosen = [entry.id for entry in count_tokens(tokens.take(own), bank.texts)]
            if len(chosen) < wanted:
                short += 1
                more = count_tokens(tokenise(data.train.x[own], codebook, wanted, shared=shared), bank.texts)
                chosen = list(dict.fromkeys([*chosen, *(entry.id for entry in more)]))
            owners[c, chosen[:wanted]] = True
        if short:
            log.info(
                "v2c: the %d nearest concepts of each picture are fewer than %d different ones for %d of %d classes; "
                "the next nearest were taken too",
                self.config.k,
                wanted,
                short,
                len(data.classes),
            )
        return owners

    def start(self, owners: Tensor, data: FeatureData) -> Tensor:
        """The head's W before training ``[C, K]``."""
        if self.config.fidelity == "repaired":
            return owner_prior(owners, self.config.own_mass)
        if not data.many and int(data.train.y.bincount(minlength=len(data.classes)).max()) <= 2:
            return owner_prior(owners, None)
        generator = torch.Generator().manual_seed(data.seed)
        return torch.randn(owners.shape, generator=generator) * (2 / owners.shape[1]) ** 0.5

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam at a constant rate, as published."""
        return association_optimizer(model, self.config.lr)
