"""PCBM and PCBM-h: Yuksekgonul, Wang, Zou, "Post-hoc Concept Bottleneck Models", ICLR 2023.

Any backbone becomes interpretable without training it: images are projected onto concept vectors (normals of linear
SVMs, ``concepts=cav``, or text embeddings), and a sparse linear head reads the projections. ``residual=true`` (PCBM-h)
then fits what the concepts cannot say, a linear map from the features, with the concept path frozen.

    z_k    = (c_k . f + b_k) / |c_k|            distance to the SVM's plane (released code)
    z_k    = c_k . f / |c_k|^2                  coefficient of the concept vector (paper)
    logits = z W^T + beta  [+ f R^T + e]

``fidelity=repaired`` (default) standardises z, so that the penalty treats every concept alike and the two formulas
agree, and uses one softmax. ``paper`` and ``released`` keep z as it is and fit one-vs-all logistic regressions; the
paper divides the penalty by the number of classes times concepts, the code uses it as given. The intercept b is
absorbed by beta in all three.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.own_labels import other_concepts
from cbm.data.features import FeatureData
from cbm.layers import LinearProbe
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.named_head import NamesHeadConfig, bare_bottleneck, check_names_head, with_named_head
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, fit_sparse_head


@dataclass
class PosthocConfig(SparseHeadConfig, NamesHeadConfig):
    """Settings of post-hoc bottlenecks."""

    fidelity: str = "repaired"
    """repaired | paper | released"""
    head: str = "sparse"
    """sparse: an elastic net | names: one non-negative gain on what every name says of the classes"""
    residual: bool = False
    """PCBM-h: add a linear map from the features, trained with the concept path frozen"""
    residual_l2: float = 1e-3
    """Factor on the mean squared entry of the residual's matrix"""
    lr: float = 0.01
    """Learning rate of the residual"""
    batch_size: int | None = 1024
    """Images per step; null is the full batch"""
    patience: int = 10
    """Validations without a lower loss after which training stops"""
    max_epochs: int = 200


@register_method("posthoc")
class Posthoc(Method):
    """A sparse head on projections onto concept vectors, optionally with a residual."""

    Config = PosthocConfig
    many_labels = True

    def __init__(self, config: PosthocConfig):
        super().__init__(config)
        one_of("method.fidelity", config.fidelity, ("repaired", "paper", "released"))
        one_of("method.head", config.head, ("sparse", "names"))
        check_sparse_head(config)
        check_names_head(config)
        self.reads_owners = config.head == "names"
        self.trains = config.residual

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Solve the sparse head; a residual starts at zero and is trained. Arguments as for ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        directions, config, allowed = bank.directions(), self.config, other_concepts(bank, data)
        if config.head == "names":
            model, self.facts = with_named_head(bare_bottleneck(data, directions), bank, data, config)
        elif config.fidelity == "repaired":
            model = fit_sparse_head(data, directions, config, allowed=allowed)
        else:
            unit = torch.ones(len(bank))
            if config.fidelity == "paper":
                unit = vector_norms(bank)
                if config.lam is not None:
                    config = replace(config, lam=config.lam / (len(data.classes) * len(bank)))
            model = fit_sparse_head(data, directions, config, std=unit, link="ova", allowed=allowed)
        if config.residual:
            model.requires_grad_(False)
            zero = torch.zeros(len(data.classes), data.dim)
            model.residual = LinearProbe(zero, zero[:, 0], link_of(data))
        return Built(model, bank, config.batch_size if config.residual else None)

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam with the published penalty on the residual's matrix as its weight decay (the gradients are the same)."""
        matrices = [p for p in trained(model) if p.dim() == 2]
        others = [p for p in trained(model) if p.dim() != 2]
        decay = 2 * self.config.residual_l2 / sum(p.numel() for p in matrices)
        return torch.optim.Adam([{"params": matrices, "weight_decay": decay}, {"params": others}], lr=self.config.lr)


def vector_norms(bank: ConceptBank) -> Tensor:
    """Lengths ``[K]`` of the concept vectors before they were normalised; 1 for text."""
    return torch.tensor([float(c.provenance.get("cav", {}).get("norm", 1.0)) for c in bank.concepts])
