"""Heads as editors see them: linear heads are attributed exactly, any other function by occlusion."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ConceptHead:
    """A function from activations ``[n, K]`` to logits ``[n, C]``.

    Args:
        function: function from activations to logits; it is called once per concept to attribute a decision.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def __call__(self, a: Tensor) -> Tensor:
        """Activations ``[n, K]`` to logits ``[n, C]``."""
        return self.function(a)

    def take(self, rows: Tensor) -> "ConceptHead":
        """The head for some of the images; it can differ between images."""
        return self

    def attribution(self, a: Tensor, y: Tensor, rival: Tensor, mean: Tensor) -> Tensor:
        """Contribution ``[n, K]`` of every concept to ``z_rival - z_y``, minus its contribution at the mean of class y.

        Args:
            a: activations ``[n, K]``.
            y: class indices ``[n]``.
            rival: indices ``[n]`` of the rival classes.
            mean: mean activations ``[C, K]`` by class.
        """
        gap, usual = self.gap(a, y, rival), mean[y]
        columns = []
        for j in range(a.shape[1]):
            occluded = a.clone()
            occluded[:, j] = usual[:, j]
            columns.append(gap - self.gap(occluded, y, rival))
        return torch.stack(columns, dim=1)

    def changed(self, a: Tensor, z: Tensor, columns: Sequence[int], values: Tensor) -> Tensor:
        """Logits after a change of some activations.

        Args:
            a: activations ``[n, K]`` before.
            z: logits ``[n, C]`` before.
            columns: columns of the m concepts that change.
            values: new activations ``[n, m]``.
        """
        a = a.clone()
        a[:, list(columns)] = values
        return self(a)

    def gap(self, a: Tensor, y: Tensor, rival: Tensor) -> Tensor:
        """``z_rival - z_y``, ``[n]``; arguments as for ``attribution``."""
        z = self(a)
        return (z.gather(1, rival[:, None]) - z.gather(1, y[:, None]))[:, 0]


class LinearConceptHead(ConceptHead):
    """``a W^T + b`` in float64: one product instead of one call per concept.

    Args:
        weight: weights ``[C, K]``.
        bias: biases ``[C]``.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias = weight.double(), bias.double()

    def __call__(self, a: Tensor) -> Tensor:
        """Activations ``[n, K]`` to logits ``[n, C]``."""
        return a.double() @ self.weight.T + self.bias

    def attribution(self, a: Tensor, y: Tensor, rival: Tensor, mean: Tensor) -> Tensor:
        """``(W_r - W_y) (a - mean_y)``; arguments as for ``ConceptHead.attribution``."""
        return (self.weight[rival] - self.weight[y]) * (a - mean[y])

    def changed(self, a: Tensor, z: Tensor, columns: Sequence[int], values: Tensor) -> Tensor:
        """Logits after a change of rank m; arguments as for ``ConceptHead.changed``."""
        index = list(columns)
        return z + (values - a[:, index]) @ self.weight[:, index].T


class EmbeddingConceptHead(ConceptHead):
    """Concept embeddings: ``e_k = p_k e_k^+ + (1 - p_k) e_k^-``, and a classifier that reads all of them.

    Espinosa Zarlenga et al., "Concept Embedding Models", NeurIPS 2022. The activations are the probabilities p.

    Args:
        positive: embeddings e^+ ``[n, K, E]`` of present concepts of n images.
        negative: embeddings e^- ``[n, K, E]`` of absent concepts.
        classifier: function from embeddings ``[n, K, E]`` to logits ``[n, C]``.
    """

    def __init__(self, positive: Tensor, negative: Tensor, classifier: Callable[[Tensor], Tensor]):
        self.positive, self.negative, self.classifier = positive, negative, classifier

    def __call__(self, a: Tensor) -> Tensor:
        """Probabilities ``[n, K]`` to logits ``[n, C]``."""
        p = a[..., None]
        return self.classifier(self.negative + p * (self.positive - self.negative))

    def take(self, rows: Tensor) -> "EmbeddingConceptHead":
        """The head for some of the images."""
        return EmbeddingConceptHead(self.positive[rows], self.negative[rows], self.classifier)

    def masked(self, columns: Sequence[int], embedding: Tensor) -> "EmbeddingConceptHead":
        """The head with some concepts held at one embedding each (their mean in the source domain), whatever p is.

        Setting p alone would keep the image's own e^+ and e^-.

        Args:
            columns: columns of the m concepts.
            embedding: embeddings ``[m, E]`` of these concepts.
        """
        positive, negative = self.positive.clone(), self.negative.clone()
        positive[:, list(columns)] = negative[:, list(columns)] = embedding
        return EmbeddingConceptHead(positive, negative, self.classifier)
