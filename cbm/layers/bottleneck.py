"""``ConceptBottleneck``: a classifier that decides by concepts."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cbm.kernels import class_logits, class_vectors, concept_scores, linear_bottleneck_logits, score_moments
from cbm.layers.activations import Activation
from cbm.layers.covariance import ConceptCovariance
from cbm.layers.embedding import Embedded, Unnamed
from cbm.layers.heads import AssociationHead, Head, LinearHead
from cbm.layers.link import Link, Linked, same_link
from cbm.layers.probe import LinearProbe

ACTIVATIONS_AT_ONCE = 4_000_000  # 16 MB of float32


class ConceptBottleneck(Linked):
    """Scores of K concepts, and a head that reads only these.

        s      = x T^T                  [N, K]
        a      = phi(s)                 [N, K]         (the scores themselves without an activation)
        logits = scale * a A^T + b      [N, C]         (+ x R^T + e, the residual of PCBM-h)

    Without an activation the bottleneck is one ``[C, D]`` matrix, so logits are computed without the ``[N, K]`` scores
    wherever that is cheaper (``cbm.kernels.linear``).

    Args:
        concepts: concept directions ``[K, D]``, frozen.
        head: weights and bias of the classes.
        scale: factor on the activations; its logarithm is a parameter if ``learn_scale``.
        learn_scale: whether the scale is trained along with the head.
        reference: reference activations ``[K]``, from which contributions are counted and at which removed concepts
            are held: the mean over the training images (0 for activations that are mostly exactly 0, such as top-k).
            Zeros by default.
        spread: standard deviations ``[K]`` of the activations over the training images. Ones by default.
        activation: function from scores to activations; None for a linear bottleneck.
        mixing: proportions ``[K, K]`` in which the bank's concepts are mixed, if they are (row k: the mixture under the
            name of concept k); kept for inspection, since ``concepts`` holds the result.
        link: ``softmax`` for one of C classes, ``sigmoid`` for any number of labels.
        correlation: which concepts go together beyond their probabilities ``[K, K]`` (``cbm.solvers.copula``), for
            answers that say something about other concepts; None if nobody learned it.
        covariance: how the logits of concepts vary together (``cbm.layers.covariance``), for the same; None likewise.

    Attributes:
        residual: map from the features to logits that are added and bypass the concepts, or None: a linear one
            (PCBM-h), or what pictures say under the names of concept embeddings (``cbm.layers.embedding``).
    """

    concepts: Tensor
    reference: Tensor
    spread: Tensor
    mixing: Tensor | None
    correlation: Tensor | None

    def __init__(
        self,
        concepts: Tensor,
        head: Head,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        reference: Tensor | None = None,
        spread: Tensor | None = None,
        activation: Activation | None = None,
        mixing: Tensor | None = None,
        link: Link = "softmax",
        correlation: Tensor | None = None,
        covariance: ConceptCovariance | None = None,
    ):
        super().__init__(link)
        count = len(concepts)
        self.register_buffer("concepts", concepts.clone())
        self.register_buffer("reference", torch.zeros(count) if reference is None else reference.clone())
        self.register_buffer("spread", torch.ones(count) if spread is None else spread.clone())
        self.log_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=learn_scale)
        self.head = head
        self.activation = activation
        self.register_buffer("mixing", None if mixing is None else mixing.clone())
        self.register_buffer("correlation", None if correlation is None else correlation.clone())
        self.covariance = covariance
        self.residual: LinearProbe | Unnamed | None = None

    @property
    def scale(self) -> Tensor:
        """Factor on the activations, 0-d."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features ``[N, D]`` to logits ``[N, C]``."""
        if isinstance(self.head, AssociationHead) and self.head.pending is not None:
            vectors, bias = self.head.vectors(self.concepts), self.head.bias
            return class_logits(x, vectors, bias, center=self.concepts.mean(dim=0), scale=self.scale)
        weight, bias = self.head.weight(), self.head.bias
        if self.activation is None:
            logits = linear_bottleneck_logits(x, self.concepts, weight, scale=self.scale, bias=bias)
        else:
            logits = self.activation.logits(x, self.concepts, self.scale * weight, bias)
        return logits if self.residual is None else logits + self.residual(x)

    def scores(self, x: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        """Scores ``[N, K]`` of every image on every concept, or on some (the cosine, if concepts have unit norm; the
        log-odds of concept embeddings)."""
        if isinstance(self.activation, Embedded):
            odds = self.activation.log_odds(x)
            return odds if columns is None else odds[:, list(columns)]
        return concept_scores(x, self.concepts if columns is None else self.concepts[list(columns)])

    def activations(self, x: Tensor) -> Tensor:
        """Activations ``[N, K]``, which the head reads."""
        return self.scores(x) if self.activation is None else self.activation.encode(x, self.concepts)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Weights ``[C, K]``: how much one unit of a concept's activation adds to each class (scale included)."""
        return self.scale * self.head.weight()

    @torch.no_grad()
    def biases(self) -> Tensor:
        """Biases ``[C]``: zeros for a head without bias."""
        weight = self.head.weight()
        return weight.new_zeros(len(weight)) if self.head.bias is None else self.head.bias

    @torch.no_grad()
    def importance(self) -> Tensor:
        """How much one standard deviation of a concept adds to each class, ``[C, K]``; it ranks the "top concepts"."""
        return self.weights() * self.spread

    @torch.no_grad()
    def base(self) -> Tensor:
        """Logits ``[C]`` of an image on which every concept has its reference value, without the residual."""
        return self.weights() @ self.reference + self.biases()

    @torch.no_grad()
    def contributions(self, x: Tensor, classes: Tensor) -> Tensor:
        """Contribution of every concept to the logit of one class per image.

        Args:
            x: unit-norm features ``[N, D]``.
            classes: index ``[N]`` of the class whose logit is explained, for each image.

        Returns:
            Contributions ``[N, K]``; ``base()[classes] + contributions.sum(1)`` is the logit without the residual.
        """
        return self.weights()[classes] * (self.activations(x) - self.reference)

    @torch.no_grad()
    def logits(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Logits ``[N, C]`` of any number of images.

        Args:
            x: unit-norm features ``[N, D]``.
            weights: weights ``[C, K]`` to use instead of ``weights()``. Concepts are counted from their reference
                value, so that a weight of 0 holds a concept there.
        """
        if weights is None:
            weights, bias = self.weights(), self.head.bias
        else:
            bias = self.base() - weights @ self.reference
        if self.activation is None:
            logits = class_logits(x, *class_vectors(self.concepts, weights, bias=bias))
        else:
            logits = self.activation.logits(x, self.concepts, weights, bias)
        return logits if self.residual is None else logits + self.residual(x)

    @torch.no_grad()
    def votes(self, x: Tensor) -> Tensor:
        """What one unit of every concept adds to the logits of pictures ``[N, D]``: ``[N, K, C]`` where that depends on
        the picture (concept embeddings), else ``[1, K, C]``."""
        votes = self.weights().T[None]
        return votes + self.residual.rates(x) if isinstance(self.residual, Unnamed) else votes

    @torch.no_grad()
    def told(self, x: Tensor, activation: Tensor) -> Tensor:
        """Logits ``[N, C]`` of pictures ``[N, D]`` if their concepts had the activations ``[N, K]``."""
        logits = torch.nn.functional.linear(activation, self.weights(), self.head.bias)
        if self.residual is None:
            return logits
        return logits + (self.residual.told(x, activation) if isinstance(self.residual, Unnamed) else self.residual(x))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> "ConceptBottleneck":
        """Set ``reference`` and ``spread`` from the training images ``[N, D]``; returns the model."""
        if self.activation is None:
            mean, spread = score_moments(x, self.concepts)
        else:
            mean, spread = self._activation_moments(x)
            if self.activation.rests_at_zero:
                mean = torch.zeros_like(mean)
        self.reference, self.spread = mean, spread
        return self

    def _activation_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations ``[K]`` of the activations, from float64 sums over chunks."""
        total, squares = torch.zeros(2, len(self.concepts), dtype=torch.float64)
        for part in x.split(max(1, ACTIVATIONS_AT_ONCE // len(self.concepts))):
            values = self.activations(part).double()
            total, squares = total + values.sum(dim=0), squares + values.square().sum(dim=0)
        mean = total / len(x)
        variance = (squares - len(x) * mean.square()) / max(len(x) - 1, 1)
        return mean.float(), variance.clamp(min=0).sqrt().float()

    @torch.no_grad()
    def with_weights(self, weights: Tensor, bias: Tensor) -> "ConceptBottleneck":
        """A copy with the same concepts (and residual) and another head.

        Args:
            weights: weights ``[C, K]``, scale included, as ``weights()`` returns them.
            bias: biases ``[C]``.
        """
        other = ConceptBottleneck(
            self.concepts,
            LinearHead(weights, bias),
            reference=self.reference,
            spread=self.spread,
            activation=self.activation,
            mixing=self.mixing,
            correlation=self.correlation,
            covariance=self.covariance,
        ).requires_grad_(False)
        other.residual = self.residual
        same_link(self, other)
        return other.train(self.training)

    def with_activation(self, activation: Activation) -> "ConceptBottleneck":
        """A copy with the same concepts and head (and residual), and another activation."""
        other = copy.copy(self)
        other._modules = {**self._modules, "activation": activation}
        return other

    def concept_path(self) -> "ConceptBottleneck":
        """A copy without the residual."""
        if self.residual is None:
            return self
        alone = copy.copy(self)
        alone._modules = {**self._modules, "residual": None}
        return alone
