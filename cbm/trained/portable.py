"""``PortableModel``: a trained classifier in plain operations of torch, which runs without cbm."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cbm.errors import UserError
from cbm.kernels import class_vectors
from cbm.kernels.scores import ACTIVATIONS as POINTWISE
from cbm.layers.activations import Largest, Pointwise, TopK, Valued
from cbm.layers.bottleneck import ConceptBottleneck
from cbm.layers.codes import SparseCode, UnitCode
from cbm.layers.embedding import ConceptEmbeddings, Embedded, Unnamed
from cbm.layers.probe import LinearProbe
from cbm.layers.require import require_linear


class PortableModel(nn.Module):
    """Features of any norm ``[N, D]`` to logits ``[N, C]``; with ``top_k`` also to the concepts that score highest.

    A linear bottleneck (residual included) becomes its class vectors ``[C, D]``; one with an activation keeps its
    concepts and head. No operation of ``cbm.kernels`` is used, so that ``torch.export`` and ONNX can translate the
    model; in return the scores ``[N, K]`` are formed where they are needed, and equal scores may come in either order.

    Args:
        model: a ``ConceptBottleneck`` or a ``LinearProbe``.
        top_k: number of concepts to return for every image.

    Attributes:
        concepts: concept directions ``[K, D]``; None if no scores are needed.
        vectors: class vectors ``[C, D]`` of the part that is linear in the features; None if there is no such part.
        weights: weights ``[K, C]`` of the activations; None for a linear bottleneck.
        threshold: score ``[K]`` above which a unit of a dictionary fires; None for concepts without one.

    Raises:
        UserError: the model is energy-based, has no concepts to return, or has fewer than ``top_k``.
    """

    concepts: Tensor | None
    offset: Tensor | None
    weights: Tensor | None
    threshold: Tensor | None
    vectors: Tensor | None
    bias: Tensor

    @torch.no_grad()
    def __init__(self, model: nn.Module, top_k: int | None = None):
        super().__init__()
        self.embeddings: ConceptEmbeddings | None = None
        self.rest: Unnamed | None = None
        if not isinstance(model, ConceptBottleneck | LinearProbe):
            raise UserError(
                f"a {type(model).__name__} decides by inference over concepts, which cannot be exported: "
                "bottlenecks (labo, posthoc, label_free, sparse, ...) and linear probes can"
            )
        if isinstance(getattr(model, "activation", None), SparseCode):
            raise UserError(
                "a model of sparse codes solves a problem for every picture, which cannot be exported: load it with "
                "cbm.load, or train method=posthoc on the same words"
            )
        if top_k is not None:
            _check_top_k(model, top_k)
        vectors, bias = _linear_part(model)
        tensors: dict[str, Tensor | None] = dict.fromkeys(("concepts", "offset", "weights", "threshold"))
        activation = None
        if isinstance(model, ConceptBottleneck):
            if (activation := model.activation) is not None:
                tensors |= {"offset": activation.offset, "weights": model.weights().T}
            if isinstance(activation, UnitCode):
                tensors["threshold"] = activation.threshold
            if activation is not None or top_k is not None:
                tensors["concepts"] = model.concepts
            if isinstance(activation, Embedded):
                self.embeddings = copy.deepcopy(activation.embeddings)
                if isinstance(model.residual, Unnamed):
                    self.rest = model.residual.with_embeddings(self.embeddings)
        self.top_k = top_k
        self.one_hot = isinstance(activation, Largest)
        self.kept = 1 if self.one_hot else None
        if isinstance(activation, TopK | UnitCode) and int(activation.k):
            self.kept = min(int(activation.k), len(activation.offset))
        self.kinds = _Kinds.of(activation) if isinstance(activation, Valued) else None
        self.function = activation.function if isinstance(activation, Pointwise) else "identity"
        for name, tensor in {**tensors, "vectors": vectors, "bias": bias}.items():
            if tensor is None:
                setattr(self, name, None)  # torch.export takes no empty buffers
            else:
                self.register_buffer(name, tensor.detach().float().clone())
        self.eval()

    @property
    def dim(self) -> int:
        """Width D of the features."""
        matrix = self.vectors if self.concepts is None else self.concepts
        assert matrix is not None
        return matrix.shape[1]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits ``[N, C]``; with ``top_k`` also the values and the indices of the concepts, both ``[N, top_k]``.

        The concepts with the largest scores come first; a value is the activation that the head reads (without an
        activation, the score itself).
        """
        x = x / x.norm(dim=1, keepdim=True)
        logits = self.bias.expand(x.shape[0], -1)
        if self.vectors is not None:
            logits = logits + x @ self.vectors.T
        if self.concepts is None:
            return logits
        if self.embeddings is not None:
            made, scores = self.embeddings(x)
            if self.rest is not None:
                p = scores.sigmoid()
                logits = logits + self.rest.of(self.embeddings.vectors(made, p), p)
        else:
            scores = x @ self.concepts.T
        if self.offset is not None:
            scores = scores - self.offset
        if self.weights is not None and self.kept is not None:
            values, columns = scores.topk(self.kept, dim=1)
            values = torch.ones_like(values) if self.one_hot else self._firing(values, columns)
            logits = logits + (values[:, :, None] * self.weights[columns]).sum(dim=1)
        elif self.weights is not None:
            logits = logits + self._activations(self._firing(scores)) @ self.weights
        if self.top_k is None:
            return logits
        values, indices = scores.topk(self.top_k, dim=1)
        values = self._firing(values, indices)
        if self.kinds is not None:
            return logits, self._activations(scores).gather(1, indices), indices
        if self.kept is None:
            return logits, POINTWISE[self.function](values), indices
        read = torch.arange(self.top_k, device=x.device) < self.kept
        return logits, torch.where(read, torch.ones_like(values) if self.one_hot else values, 0.0), indices

    def _activations(self, scores: Tensor) -> Tensor:
        """What the head reads ``[N, K]`` of scores that lack their offset."""
        if self.kinds is None:
            return POINTWISE[self.function](scores)
        single, numbers, *groups = self.kinds.columns
        found = [scores[:, single].sigmoid()] if single else []  # an exporter takes no empty parts
        found += [scores[:, numbers]] if numbers else []
        found += [scores[:, columns].softmax(dim=1) for columns in groups]
        return torch.cat(found, dim=1)[:, self.kinds.order]

    def _firing(self, scores: Tensor, columns: Tensor | None = None) -> Tensor:
        """Scores of units, with 0 where they do not fire; scores of other concepts as they are."""
        if self.threshold is None:
            return scores
        least = self.threshold if columns is None else self.threshold[columns]
        return torch.where(scores > least, scores, torch.zeros_like(scores))


@dataclass(frozen=True)
class _Kinds:
    """Where the columns of each kind of concept stand.

    Attributes:
        columns: columns of the concepts that are a yes or no, of those that are numbers, and of the values of every
            attribute that exclude each other.
        order: where each of the K concepts is when these stand one after the other.
    """

    columns: list[list[int]]
    order: list[int]

    @classmethod
    def of(cls, activation: Valued) -> "_Kinds":
        """The kinds of a model's concepts."""
        number, group = activation.number.tolist(), activation.group.tolist()
        single = [k for k, name in enumerate(group) if name < 0 and not number[k]]
        groups = [[k for k, name in enumerate(group) if name == which] for which in sorted({*group} - {-1})]
        columns = [single, [k for k, is_number in enumerate(number) if is_number], *groups]
        place = {k: n for n, k in enumerate(k for each in columns for k in each)}
        return cls(columns, [place[k] for k in range(len(group))])


def _check_top_k(model: nn.Module, top_k: int) -> None:
    count = len(require_linear(model).concepts)
    if not 1 <= top_k <= count:
        raise UserError(f"top_k={top_k}: expected 1 to {count}, the concepts of the model")


def _linear_part(model: ConceptBottleneck | LinearProbe) -> tuple[Tensor | None, Tensor]:
    """Class vectors ``[C, D]`` of the part that is linear in the features (or None), and the bias ``[C]``."""
    if isinstance(model, LinearProbe):
        return model.matrix, model.bias
    vectors, bias = None, model.biases()
    if model.activation is None:  # in float64: all classes share the large mean text vector
        vectors = class_vectors(model.concepts.double(), model.weights().double())[0]
    if isinstance(model.residual, LinearProbe):
        vectors = model.residual.matrix if vectors is None else vectors + model.residual.matrix
        bias = bias + model.residual.bias
    return vectors, bias
