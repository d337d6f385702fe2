"""Sparse-CBM: Semenov, Ivanov, Beznosikov, Gasnikov, "Sparse Concept Bottleneck Models", arXiv 2404.03323, 2024.

    s = Q x            scores of K concepts             Q [K, D], the texts' directions in some unit, minus an offset
    z = W s            the bottleneck, W [K, K]: what is shown under the name of concept k is a mixture of concepts
    a = gate(z)        the k largest of every image, or all of them
    logits = H a + b

W and H are trained together by cross-entropy plus an objective for z (``cbm.losses``): ``gumbel``, ``contrastive``,
``similarity``, or ``l1`` on W; ``none`` leaves the cross-entropy alone.

The published objectives do not do what they are for: the Gumbel objective of the code is smallest for a uniform z (and
nothing in the forward pass is sparse), the contrastive pairs image number i of a batch with concept number i of the
file, the l1 penalty of W alone is evaded by a larger H and meets no zero, and but for ``similarity`` nothing ties z_k
to concept k. ``fidelity=repaired`` (default), on standardised scores from W = 1:

- ``gumbel``: H reads exactly k concepts of an image, sampled with Gumbel noise in training and the k largest of z
  afterwards; a straight-through gradient at a falling temperature; the similarity objective keeps the names.
- ``contrastive``: the targets are the concepts that score highest on the image (and the images highest on it).
- ``l1``: proximal steps; H's columns have unit norm, so the penalty cannot be evaded; W is then solved to its optimum
  for the H found, and certified.

``paper`` has the published formulas (raw scores times the logit scale, random W and H) with safe numerics; ``released``
what the authors' code computes where that differs (Gumbel over all pairs, contrastive over the whole batch).
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import concept_scores, gumbel_topk_gate, score_moments, topk_gate
from cbm.layers import ConceptBottleneck, LinearHead, TopK
from cbm.layers.link import Link
from cbm.losses import anchored_contrastive_loss, contrastive_loss, gumbel_nll, similarity_loss
from cbm.losses.classification import label_loss
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.named_head import NamesHeadConfig, check_names_head, what_names_say, with_named_head
from cbm.solvers import ProximalAdam, solve_mixing

log = logging.getLogger(__name__)

OBJECTIVES = ("gumbel", "contrastive", "similarity", "l1", "none")
LARGEST = 20_000  # concepts for which a K x K layer is learned: 1.6 GB, and four times that to train it


@dataclass
class SparseConfig(NamesHeadConfig):
    """Settings of sparse bottlenecks; None stands for the value that belongs to ``objective`` and ``fidelity``."""

    objective: str = "gumbel"
    """Objective beside the cross-entropy: gumbel | contrastive | similarity | l1 | none"""
    fidelity: str = "repaired"
    """repaired | paper | released"""
    mixing: str = "learned"
    """The layer W: learned | identity | random (the last two frozen, to compare with)"""
    k: Any = None
    """Number of concepts per image that the head reads, or 'all'; null: 5 for the repaired gumbel, else all"""
    head: str = "linear"
    """linear: trained with the layer | names: afterwards one non-negative gain on what every name says of classes"""
    weight: float | None = None
    """Weight of the objective beside the cross-entropy; null: 10 for the repaired gumbel and similarity, else 1"""
    ce_to_mixing: bool = True
    """Whether the cross-entropy trains W too (as the released code does), or only the objective"""
    tau: float = 1.0
    """Temperature of the Gumbel relaxation at the start"""
    tau_decay: float = 0.002
    """Rate per step at which the repaired temperature falls"""
    tau_min: float = 0.1
    """Lowest temperature"""
    top: int = 8
    """Number of targets in a row or column (repaired contrastive)"""
    power: int = 1
    """Power in the similarity objective: 1 (correlation) | 3 (as in label_free)"""
    lam: float | None = None
    """Strength of the l1 penalty, which is lam / K times the sum of absolute weights; null: 0.001 as published, or, if
    repaired, a tenth of the smallest penalty under which W is zero"""
    lr: float = 0.001
    """Learning rate"""
    batch_size: int | None = 512
    """Images per step; null is the full batch"""
    patience: int = 20
    """Validations (every 10 steps or more) without a lower loss after which training stops"""
    max_epochs: int = 1000


class SparseBottleneck(nn.Module):
    """The module in training: scores, mixing, gate and head.

    Args:
        concepts: concept directions Q ``[K, D]``.
        offset: offset ``[K]`` that is subtracted from the scores.
        mixing: mixing layer W ``[K, K]``; None for the identity, which is not trained.
        head: weights H ``[C, K]`` of the head.
        k: number of concepts per image that the head reads; None for all.
        unit_votes: whether the columns of H are scaled to unit norm.
        seed: random seed for the noise.
        link: ``softmax`` for one of C classes, ``sigmoid`` for any number of labels.
    """

    concepts: Tensor
    offset: Tensor
    steps: Tensor

    def __init__(
        self,
        concepts: Tensor,
        offset: Tensor,
        mixing: Tensor | None,
        head: Tensor,
        *,
        k: int | None,
        unit_votes: bool,
        seed: int,
        link: Link = "softmax",
    ):
        super().__init__()
        self.link: Link = link
        self.register_buffer("concepts", concepts)
        self.register_buffer("offset", offset)
        self.register_buffer("steps", torch.tensor(0))
        self.mixing: nn.Parameter | None = None if mixing is None else nn.Parameter(mixing)
        self.head = nn.Parameter(head)
        self.bias = nn.Parameter(torch.zeros(len(head)))
        self.k, self.unit_votes, self.seed = k, unit_votes, seed

    def votes(self) -> Tensor:
        """The weights H ``[C, K]`` as they are used."""
        return nn.functional.normalize(self.head, dim=0) if self.unit_votes else self.head

    def scores(self, x: Tensor) -> Tensor:
        """Scores s ``[B, K]`` of features ``[B, D]``."""
        return concept_scores(x, self.concepts, beta=-self.offset)

    def mix(self, scores: Tensor) -> Tensor:
        """Outputs z ``[B, K]`` of the mixing layer for scores ``[B, K]``."""
        return scores if self.mixing is None else scores @ self.mixing.T

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` as after training: no noise, no gradient."""
        return self.bottleneck().logits(x)

    @torch.no_grad()
    def bottleneck(self) -> ConceptBottleneck:
        """The same classifier with the mixtures as its concepts."""
        concepts, offset = self.concepts, self.offset
        if self.mixing is not None:
            concepts, offset = self.mixing @ concepts, self.mixing @ offset
        votes = self.votes()
        gate = None if self.k is None else TopK(offset, self.k)
        bias = self.bias - votes @ offset if gate is None else self.bias
        bottleneck = ConceptBottleneck(
            concepts, LinearHead(votes, bias), activation=gate, mixing=self.mixing, link=self.link
        )
        return bottleneck.to(concepts.device).eval().requires_grad_(False)


@register_method("sparse")
class Sparse(Method):
    """A learned K x K layer on the scores, and a head that reads a few of its outputs per image."""

    Config = SparseConfig
    many_labels = True

    def __init__(self, config: SparseConfig):
        super().__init__(config)
        one_of("method.objective", config.objective, OBJECTIVES)
        one_of("method.mixing", config.mixing, ("learned", "identity", "random"))
        one_of("method.head", config.head, ("linear", "names"))
        check_names_head(config)
        self.reads_owners = config.head == "names"
        self.repaired = one_of("method.fidelity", config.fidelity, ("repaired", "paper", "released")) == "repaired"
        self.gumbel_gate = self.repaired and config.objective == "gumbel"
        if config.mixing != "learned" and config.objective != "none":
            raise UserError(
                f"method.mixing={config.mixing} is not trained, so method.objective={config.objective} has nothing to "
                "act on: say method.objective=none"
            )
        if config.weight is None:
            config.weight = 10.0 if self.repaired and config.objective in ("gumbel", "similarity") else 1.0
        if config.k is None:
            config.k = 5 if self.gumbel_gate else "all"
        if config.k != "all" and not (isinstance(config.k, int) and config.k >= 1):
            raise UserError(f"method.k={config.k}: expected a number of concepts per picture, 1 or more, or 'all'")
        if config.k == "all" and self.gumbel_gate:
            raise UserError("method.k=all: the repaired gumbel objective chooses among the concepts, say method.k=5")
        for name, fits, expected in (
            ("weight", config.weight >= 0, "0 or more"),
            ("tau", config.tau > 0, "a number > 0"),
            ("tau_min", config.tau_min > 0, "a number > 0"),
            ("tau_decay", config.tau_decay >= 0, "0 or more"),
            ("top", config.top >= 1, "1 or more"),
            ("power", config.power in (1, 3), "1 or 3"),
            ("lam", config.lam is None or config.lam > 0, "a number > 0, or null"),
            ("lr", config.lr > 0, "a number > 0"),
        ):
            if not fits:
                raise UserError(f"method.{name}={getattr(config, name)}: expected {expected}")

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make the untrained model: the unit of the scores, and W and H where training starts.

        Arguments as for ``Method.build``.

        Raises:
            UserError: the bank has fewer than ``method.k`` concepts, or too many for a learned layer.
        """
        bank = self.required(bank, "a concept bank")
        config, count = self.config, len(bank)
        if data.many and config.objective == "l1" and self.repaired:
            raise UserError("method.objective=l1 is solved for one class per picture: with several labels say gumbel, "
                            "contrastive, similarity or none")  # fmt: skip
        if config.head == "names":
            what_names_say(bank, data.classes)  # an error before the training, not after
        if config.k != "all" and config.k > count:
            raise UserError(f"method.k={config.k}: bank '{bank.name}' has {count} concepts")
        if config.mixing != "identity" and count > LARGEST:
            raise UserError(
                f"method=sparse learns a layer of {count:,} x {count:,} weights, {20 * count**2 / 2**30:.0f} GB to "
                f"train: at most {LARGEST:,} concepts, or method.mixing=identity method.objective=none"
            )
        concepts, offset = bank.directions() * logit_scale, torch.zeros(count)
        bound = count**-0.5
        head = torch.empty(len(data.classes), count).uniform_(-bound, bound)
        mixing = torch.empty(count, count).uniform_(-bound, bound) if config.mixing != "identity" else None
        if self.repaired:
            mean, std = score_moments(data.train.x, bank.directions())
            std = std.clamp(min=1e-6)
            concepts, offset = bank.directions() / std[:, None], mean / std
            head = torch.zeros_like(head)
            if mixing is not None and config.mixing == "learned":
                mixing = torch.eye(count)
        unit_votes = self.repaired and config.objective == "l1"
        if unit_votes:
            head = data.train.class_means(len(data.classes)) @ concepts.T - offset
            self.penalty = self._penalty(data, concepts, offset, nn.functional.normalize(head, dim=0))
        elif config.objective == "l1":
            self.penalty = 1e-3 if config.lam is None else config.lam
        model = SparseBottleneck(
            concepts,
            offset,
            mixing,
            head,
            k=None if config.k == "all" else config.k,
            unit_votes=unit_votes,
            seed=int(torch.randint(2**31, ())),
            link=link_of(data),
        )
        if model.mixing is not None:
            model.mixing.requires_grad_(config.mixing == "learned")
        return Built(model, bank, config.batch_size)

    def _penalty(self, data: FeatureData, concepts: Tensor, offset: Tensor, head: Tensor) -> float:
        """Strength of the repaired l1 penalty: as set, or a tenth of the smallest one under which W is zero."""
        if self.config.lam is not None:
            return self.config.lam
        origin = solve_mixing(data.train.x, data.train.y, concepts, head, offset=offset, lam=1.0, max_steps=0)
        return 0.1 * origin.lam_max

    def loss(self, model: SparseBottleneck, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Cross-entropy plus the objective of a batch; arguments as for ``Method.loss``."""
        s = model.scores(x)
        z = model.mix(s)
        read = z if self.config.ce_to_mixing else z.detach()
        if model.k is not None:
            read = self._gate(model, read, model.k)
        loss = label_loss(nn.functional.linear(read, model.votes(), model.bias), y)
        if self.config.mixing == "learned":
            loss = loss + self.config.weight * self._objective(model, z, s)
        model.steps += 1
        return loss

    def _gate(self, model: SparseBottleneck, z: Tensor, k: int) -> Tensor:
        if not self.gumbel_gate:
            return topk_gate(z, k)
        step = int(model.steps)
        tau = max(self.config.tau_min, self.config.tau * math.exp(-self.config.tau_decay * step))
        return gumbel_topk_gate(z, k, tau, seed=model.seed + step)

    def _objective(self, model: SparseBottleneck, z: Tensor, s: Tensor) -> Tensor | float:
        """The objective for outputs ``z`` and scores ``s`` ``[B, K]``; 0 if the optimizer applies the penalty."""
        objective, released = self.config.objective, self.config.fidelity == "released"
        if objective == "similarity" or self.gumbel_gate:
            return similarity_loss(z, s, power=self.config.power)
        if objective == "gumbel":
            seed = model.seed + int(model.steps)
            return gumbel_nll(z, self.config.tau, seed=seed, pairing="all" if released else "diagonal")
        if objective == "contrastive" and self.repaired:
            return anchored_contrastive_loss(z, s, self.config.top)
        if objective == "contrastive":
            return contrastive_loss(z, block="rectangle" if released else "square")
        if objective == "l1" and not self.repaired:
            mixing = self.required(model.mixing, "a learned layer (method.mixing)")
            return self.penalty / len(mixing) * mixing.abs().sum()
        return 0.0

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam, with proximal steps of the repaired l1 penalty on W."""
        if not (self.repaired and self.config.objective == "l1"):
            return torch.optim.Adam(trained(model), lr=self.config.lr)
        square = [p for p in trained(model) if p.dim() == 2 and p.shape[0] == p.shape[1]]
        others = [p for p in trained(model) if not any(p is q for q in square)]
        return ProximalAdam(
            [{"params": square, "l1": self.penalty / len(square[0])}, {"params": others}], self.config.lr
        )

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The model with the mixtures as its concepts; the repaired l1 layer is first solved for the head found."""
        model: SparseBottleneck = built.model
        if self.repaired and self.config.objective == "l1" and model.k is None:
            mixing = self.required(model.mixing, "a learned layer (method.mixing)")
            solved = solve_mixing(
                data.train.x,
                data.train.y,
                model.concepts,
                model.votes(),
                lam=self.penalty,
                offset=model.offset,
                bias=model.bias,
                start=mixing.detach(),
            )
            mixing.data = solved.weight
            self.facts = {"l1_kkt": solved.kkt, "l1_share": self.penalty / solved.lam_max}
            log.info(
                "l1 layer: penalty %.3g (%.2g of the smallest that leaves nothing), %.1f of %d weights per concept, "
                "KKT residual %.0e after %d steps",
                self.penalty,
                self.penalty / solved.lam_max,
                float((solved.weight != 0).sum(1).double().mean()),
                len(solved.weight),
                solved.kkt,
                solved.steps,
            )
        bottleneck = model.bottleneck().calibrate(data.train.x)
        if self.config.head == "names" and built.bank is not None:
            bottleneck, facts = with_named_head(bottleneck, built.bank, data, self.config)
            self.facts |= facts
        return bottleneck
