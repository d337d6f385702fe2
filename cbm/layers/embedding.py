"""Concepts as vectors: a picture makes two vectors for every concept, one for present and one for absent.

Espinosa Zarlenga et al., "Concept Embedding Models", NeurIPS 2022 (CEM), and "Avoiding Leakage Poisoning: Concept
Interventions Under Distribution Shifts", ICML 2025 (MixCEM). With a linear head such a model is a bottleneck of
probabilities and a rest that depends on the picture:

    logits = b + sum_k W_k v_k,        v_k = p_k v+_k(x) + (1 - p_k) v-_k(x)                       [C, m] x [m]
           = b' + sum_k A_k p_k + sum_k rest_k(x),        A_k = W_k (mean v+_k - mean v-_k)

The first part is what the concepts' names say: an ordinary ``ConceptBottleneck``. The second is what pictures say under
those names and the names do not; it is the bottleneck's residual, here by concept, so that an edit of a concept can
keep it (as published) or remove it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from cbm.layers.activations import Sigmoid
from cbm.layers.asking import LearnedAsking

NUMBERS_AT_ONCE = 2**23  # of the tables images x concepts x width


def certainty(p: Tensor) -> Tensor:
    """MixCEM's gate: 1 minus the entropy of a probability in bits; 0 where it is one half, 1 where it is 0 or 1.

    >>> certainty(torch.tensor([0.0, 0.5, 1.0])).round(decimals=4)
    tensor([1., 0., 1.])
    """
    p = p.clamp(1e-7, 1 - 1e-7)  # beyond, the entropy is nothing and its slope infinite
    return 1 + (p * p.log() + (1 - p) * (1 - p).log()) / math.log(2)


def mix(vectors: Tensor, p: Tensor) -> Tensor:
    """Vectors of present and absent ``[N, K, 2, m]``, mixed by probabilities ``[N, K]``: ``[N, K, m]``."""
    return p[..., None] * vectors[:, :, 0] + (1 - p)[..., None] * vectors[:, :, 1]


class ConceptEmbeddings(nn.Module):
    """From features to two vectors and one probability for each of K concepts.

    Args:
        mean: mean ``[D]`` that is subtracted from the features.
        std: standard deviations ``[D]`` that the features are divided by.
        count: number of concepts K.
        width: width m of a vector.
        mixed: whether every concept also has two vectors of its own, which no picture changes (MixCEM).
        shared_scorer: whether one scorer reads the vectors of all concepts, as CEM's; else each concept has its own.
        drop: MixCEM: share of the pictures' parts that are left out in training. In use their expectation is read,
            which for a linear head is the mean of the logits over all ways to leave them out.
    """

    mean: Tensor
    std: Tensor
    drop: Tensor
    common: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        count: int,
        width: int,
        *,
        mixed: bool = True,
        shared_scorer: bool = True,
        drop: float = 0.5,
    ):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.register_buffer("drop", torch.tensor(float(drop)))
        self.count, self.width = count, width
        self.context = nn.Linear(len(mean), count * 2 * width)
        scorers, bound = (1 if shared_scorer else count), (2 * width) ** -0.5
        self.scorer = nn.Parameter(torch.empty(scorers, 2 * width).uniform_(-bound, bound))
        self.scorer_bias = nn.Parameter(torch.empty(scorers).uniform_(-bound, bound))
        self.register_parameter("common", nn.Parameter(torch.randn(count, 2, width)) if mixed else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` to the pictures' vectors ``[N, K, 2, m]`` (present, absent) and log-odds ``[N, K]``."""
        made = leaky_relu(self.context((x - self.mean) / self.std), 0.01).view(-1, self.count, 2, self.width)
        read = made if self.common is None else self.common + made
        return made, (read.flatten(2) * self.scorer).sum(dim=2) + self.scorer_bias

    def vectors(self, made: Tensor, p: Tensor, kept: Tensor | None = None) -> Tensor:
        """The vectors that the head reads ``[N, K, 2, m]``.

        Args:
            made: the pictures' vectors ``[N, K, 2, m]``.
            p: the model's own probabilities ``[N, K]``, also of concepts that are told: they gate the pictures' parts.
            kept: MixCEM in training: which pictures' parts ``[N, K]`` are kept (1 or 0); their expectation by default.
        """
        if self.common is None:
            return made
        share = (1 - self.drop) if kept is None else kept
        return self.common + (share * certainty(p))[..., None, None] * made

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors ``[N, K, 2, m]`` that the head reads of pictures, and the probabilities ``[N, K]``."""
        made, log_odds = self(x)
        p = log_odds.sigmoid()
        return self.vectors(made, p), p

    @property
    def rows(self) -> int:
        """Pictures at a time, so that tables stay small."""
        return max(1, NUMBERS_AT_ONCE // (self.count * 2 * self.width))


class Embedded(Sigmoid):
    """Probabilities of concepts that are vectors.

    The bottleneck's directions only stand near them (the best linear prediction of the log-odds): they say which
    concepts are alike, and are not read by the head.

    Args:
        embeddings: the vectors and their scorer.
        asks: what to ask about next, if that was learned.
    """

    def __init__(self, embeddings: ConceptEmbeddings, asks: LearnedAsking | None = None):
        super().__init__(torch.zeros(embeddings.count))
        self.embeddings = embeddings
        self.asks = asks

    @torch.no_grad()
    def log_odds(self, x: Tensor) -> Tensor:
        """Log-odds ``[N, K]`` of the concepts, of features ``[N, D]``."""
        return torch.cat([self.embeddings(part)[1] for part in x.split(self.embeddings.rows)])

    def encode(self, x: Tensor, concepts: Tensor) -> Tensor:
        """Probabilities ``[N, K]``; arguments as for ``Activation.logits``."""
        return self.log_odds(x).sigmoid()

    def questions(self, x: Tensor, p: Tensor, told: Tensor) -> Tensor:
        """Scores ``[N, U]`` of the questions that were learned to be asked (``LearnedAsking``).

        Args:
            x: features ``[N, D]``.
            p: probabilities ``[N, K]`` after what was told.
            told: what was told ``[N, K]`` bool.
        """
        assert self.asks is not None
        parts = []
        for part, q, known in zip(*(each.split(self.embeddings.rows) for each in (x, p, told))):
            parts.append(self.asks(mix(self.embeddings.read(part)[0], q), known.to(q)))
        return torch.cat(parts)

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits of what the names say; arguments as for ``Activation.logits``."""
        return linear(self.encode(x, concepts), weights, bias)


class Unnamed(nn.Module):
    """What pictures say under the names of K concepts and the names do not: ``sum_k rest_k(x)``, ``[N, C]``.

    The mean of every ``rest_k`` over the training pictures is zero. Edits keep or remove it by concept and class:

        rest_ck = kept_ck (W_ck v_k(p') - A_ck p' - constant),        p' = alpha_ck p_k + beta_ck

    Args:
        embeddings: the vectors; not part of this module's state, since the activation holds them.
        weight: weights W ``[C, K, m]`` of the head.
        means: means ``[K, 2, m]`` of the vectors over the training pictures.
        centre: what is subtracted ``[C, K]`` beside ``W mean v-_k``.
        alpha: factors ``[C, K]`` that edits put on the probabilities; 1 by default.
        beta: numbers ``[C, K]`` that edits add to them; 0 by default.
        kept: whether a rest is still there ``[C, K]`` (1 or 0); 1 by default.
    """

    weight: Tensor
    means: Tensor
    centre: Tensor
    alpha: Tensor | None
    beta: Tensor | None
    kept: Tensor | None

    def __init__(
        self,
        embeddings: ConceptEmbeddings,
        weight: Tensor,
        means: Tensor,
        centre: Tensor,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
        kept: Tensor | None = None,
    ):
        super().__init__()
        self._read = (embeddings,)  # a tuple hides it from this module's state
        for name, tensor in {
            "weight": weight, "means": means, "centre": centre, "alpha": alpha, "beta": beta, "kept": kept,
        }.items():  # fmt: skip
            self.register_buffer(name, None if tensor is None else tensor.clone())

    @property
    def embeddings(self) -> ConceptEmbeddings:
        """The vectors."""
        return self._read[0]

    @property
    def named(self) -> Tensor:
        """What the names say: weights A ``[C, K]``."""
        return torch.einsum("ckm,km->ck", self.weight, self.means[:, 0] - self.means[:, 1])

    @property
    def constant(self) -> Tensor:
        """``W mean v-_k + centre``, ``[C, K]``."""
        return torch.einsum("ckm,km->ck", self.weight, self.means[:, 1]) + self.centre

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, D]`` to logits ``[N, C]``."""
        rows = self.embeddings.rows if self.alpha is None else self._rows
        parts = [self.of(*self.embeddings.read(part)) for part in x.split(rows)]
        return torch.cat(parts) if parts else x.new_zeros(0, len(self.weight))

    def of(self, vectors: Tensor, p: Tensor) -> Tensor:
        """The same of vectors ``[N, K, 2, m]`` and probabilities ``[N, K]``."""
        if self.alpha is not None:
            return self._by_concept(vectors, p).sum(dim=2)
        return (
            linear(mix(vectors, p).flatten(1), self.weight.flatten(1))
            - linear(p, self.named)
            - self.constant.sum(dim=1)
        )

    def told(self, x: Tensor, p: Tensor) -> Tensor:
        """The same ``[N, C]`` if the concepts had the probabilities ``p`` ``[N, K]`` before the edits."""
        rows = self.embeddings.rows if self.alpha is None else self._rows
        parts = [self.of(self.embeddings.read(part)[0], q) for part, q in zip(x.split(rows), p.split(rows))]
        return torch.cat(parts) if parts else x.new_zeros(0, len(self.weight))

    def by_concept(self, x: Tensor) -> Tensor:
        """Every ``rest_k``, after the edits, ``[N, C, K]``."""
        return self._by_concept(*self.embeddings.read(x))

    def _by_concept(self, vectors: Tensor, p: Tensor) -> Tensor:
        absent = torch.einsum("nkm,ckm->nck", vectors[:, :, 1], self.weight)
        rates = torch.einsum("nkm,ckm->nck", vectors[:, :, 0] - vectors[:, :, 1], self.weight) - self.named
        p = p[:, None] if self.alpha is None or self.beta is None else self.alpha * p[:, None] + self.beta
        rest = absent - self.constant + p * rates
        return rest if self.kept is None else self.kept * rest

    def rates(self, x: Tensor) -> Tensor:
        """By how much every picture's rest grows with a concept's probability ``[N, K, C]``."""
        vectors, _ = self.embeddings.read(x)
        both = torch.einsum("nkm,ckm->nkc", vectors[:, :, 0] - vectors[:, :, 1], self.weight) - self.named.T
        return both if self.alpha is None or self.kept is None else (self.alpha * self.kept).T * both

    @property
    def _rows(self) -> int:
        """Pictures at a time of tables images x classes x concepts."""
        return max(1, NUMBERS_AT_ONCE // max(self.weight[..., 0].numel(), 2 * self.weight[0].numel()))

    def edited(self, alpha: Tensor, beta: Tensor, kept: Tensor) -> "Unnamed":
        """A copy with other edits, ``[C, K]`` each (arguments as for the class)."""
        return Unnamed(self.embeddings, self.weight, self.means, self.centre, alpha, beta, kept)

    def with_embeddings(self, embeddings: ConceptEmbeddings) -> "Unnamed":
        """A copy that reads another copy of the vectors."""
        return Unnamed(embeddings, self.weight, self.means, self.centre, self.alpha, self.beta, self.kept)
