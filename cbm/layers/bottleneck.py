"""``ConceptBottleneck``: the classifier that must speak through concepts."""

import copy

import torch
from torch import Tensor, nn

from cbm.kernels import class_vectors, concept_scores, linear_bottleneck_logits
from cbm.layers.heads import Head
from cbm.layers.probe import LinearProbe


class ConceptBottleneck(nn.Module):
    """Scores of K concepts, and a head that reads nothing else.

        s      = scale * x T^T          [N, K]
        logits = s A^T + b              [N, C]         (+ x R^T + e, the residual of PCBM-h)

    A linear bottleneck is one ``[C, D]`` matrix, so logits are computed without the ``[N, K]`` scores wherever that is
    cheaper (``cbm.kernels.linear``).

    Args:
        concepts: ``[K, D]`` concept directions, frozen.
        head: weights and bias of the classes.
        scale: factor on the scores; its logarithm is a parameter if ``learn_scale``.
        learn_scale: train the scale along with the head.
        reference: ``[K]`` what each concept's cosine is on average over the training pictures: the point from which
            contributions are counted, and the value a removed concept is held at. Zeros by default.
        spread: ``[K]`` standard deviation of the cosine over the training pictures. Ones by default.

    Attributes:
        residual: a linear map from the features that is added to the logits and bypasses the concepts, or None.
    """

    concepts: Tensor
    reference: Tensor
    spread: Tensor

    def __init__(
        self,
        concepts: Tensor,
        head: Head,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        reference: Tensor | None = None,
        spread: Tensor | None = None,
    ):
        super().__init__()
        count = len(concepts)
        self.register_buffer("concepts", concepts.clone())
        self.register_buffer("reference", torch.zeros(count) if reference is None else reference.clone())
        self.register_buffer("spread", torch.ones(count) if spread is None else spread.clone())
        self.log_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=learn_scale)
        self.head = head
        self.residual: LinearProbe | None = None

    @property
    def scale(self) -> Tensor:
        """The factor on the cosine scores, 0-d."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features ``[N, D]`` to logits ``[N, C]``."""
        logits = linear_bottleneck_logits(x, self.concepts, self.head.weight(), scale=self.scale, bias=self.head.bias)
        return logits if self.residual is None else logits + self.residual(x)

    def scores(self, x: Tensor) -> Tensor:
        """Cosine of every picture with every concept, ``[N, K]``."""
        return concept_scores(x, self.concepts)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """What one unit of a concept's cosine adds to each class, ``[C, K]`` (scale included)."""
        return self.scale * self.head.weight()

    @torch.no_grad()
    def importance(self) -> Tensor:
        """What one standard deviation of a concept adds to each class, ``[C, K]``: the order "top concepts" means."""
        return self.weights() * self.spread

    @torch.no_grad()
    def base(self) -> Tensor:
        """Logits of a picture on which every concept has its reference value, ``[C]``, without the residual."""
        bias = 0.0 if self.head.bias is None else self.head.bias
        return self.weights() @ self.reference + bias

    @torch.no_grad()
    def contributions(self, x: Tensor, classes: Tensor) -> Tensor:
        """What every concept adds to the logit of one class per picture.

        Args:
            x: ``[N, D]`` unit-norm features.
            classes: ``[N]`` the class whose logit is explained, for each picture.

        Returns:
            ``[N, K]``; ``base()[classes] + contributions.sum(1)`` is the logit, but for the residual.
        """
        return self.weights()[classes] * (self.scores(x) - self.reference)

    @torch.no_grad()
    def linear(self, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bottleneck as one linear map: ``logits = x @ vectors.T + bias``.

        Args:
            keep: ``[C, K]`` factor on every weight. Where it is 0, the concept is held at its reference value.
                None keeps all weights as they are.

        Returns:
            vectors ``[C, D]`` and bias ``[C]``.
        """
        weights = self.weights()
        if keep is None:
            vectors, bias = class_vectors(self.concepts, weights, bias=self.head.bias)
        else:
            kept = weights * keep
            vectors, bias = class_vectors(self.concepts, kept, bias=self.base() - kept @ self.reference)
        if self.residual is None:
            return vectors, bias
        return vectors + self.residual.matrix, bias + self.residual.bias

    def concept_path(self) -> "ConceptBottleneck":
        """The same bottleneck without its residual."""
        if self.residual is None:
            return self
        alone = copy.copy(self)
        alone._modules = {**self._modules, "residual": None}
        return alone
