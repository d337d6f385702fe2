"""Adapting a bottleneck to unlabelled images of another domain, after CONDA.

Choi, Raghuram, Li and Jha, "CONDA: Adaptive Concept Bottleneck for Foundation Models Under Distribution Shifts", ICLR
2025.
It uses gradients and no labels: images get pseudo-labels, then in turn

    concepts    V moves so that an image's concepts are near those of its pseudo-class in the source domain
                (Mahalanobis distance) and far from those of the others
    head        W, b move to predict the pseudo-labels, sparsely
    residual    a few further directions U, unlike each other and unlike V, with a linear head of their own

Ours, and why it is "CONDA-style": one covariance within classes, shrunk (Ledoit and Wolf), instead of one per class,
for a few images per class do not determine more; pseudo-labels are those of the model or of zero-shot classification,
whichever is more certain; similarity of the residual's directions is penalised, as the paper says (its code rewards
it); steps are measured in the root mean square of what they change.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cbm.editing.domains.source_card import SourceStatistics
from cbm.errors import UserError
from cbm.kernels import concept_scores
from cbm.layers import ConceptBottleneck, Embedded, LinearHead, SparseCode, Unnamed
from cbm.layers.probe import LinearProbe

RANK = 5  # of the residual
STAY, ELASTIC, L1_SHARE = 0.1, 1.0, 0.99
BATCH = 4096


def pseudo_labels(model: ConceptBottleneck, x: Tensor, zero_shot: Tensor | None = None) -> Tensor:
    """Class indices ``[N]`` of unlabelled images: the more certain of two predictions.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        zero_shot: logits ``[N, C]`` of zero-shot classification; None if the encoder reads no text.
    """
    own = model.logits(x).softmax(dim=1).max(dim=1)
    if zero_shot is None:
        return own.indices
    other = zero_shot.softmax(dim=1).max(dim=1)
    return torch.where(other.values > own.values, other.indices, own.indices)


def adapt_unlabelled(
    model: ConceptBottleneck,
    x: Tensor,
    labels: Tensor,
    source: SourceStatistics,
    *,
    steps: int = 10,
    lr: float = 0.02,
    seed: int = 0,
) -> ConceptBottleneck:
    """A copy of the model, adapted to unlabelled images.

    Args:
        model: a bottleneck.
        x: unit-norm features ``[N, D]`` of images of the other domain.
        labels: pseudo-labels ``[N]``, see ``pseudo_labels``.
        source: statistics of the model's concepts in the source domain.
        steps: number of steps in each of the three stages; 0 changes nothing.
        lr: length of a step, as a share of the root mean square of the parameters that it changes.
        seed: random seed for the batches and for the residual's first directions.

    Raises:
        UserError: there are no images, or the number of steps is negative.
    """
    from sklearn.covariance import ledoit_wolf

    if not len(x):
        raise UserError("no unlabelled pictures of the other domain to adapt to")
    if steps < 0:
        raise UserError(f"editor.steps={steps}: expected 0 or more")
    if isinstance(model.activation, SparseCode | Embedded):
        what = "a sparse code" if isinstance(model.activation, SparseCode) else "a model of concept embeddings"
        raise UserError(f"editor=conda moves concept directions by gradients, which {what} has none of: choose "
                        "editor=test_time, recentre or refit")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    concepts, weights, bias = model.concepts.clone(), model.weights().clone(), model.biases().clone()
    scale = source.factor  # the head's own temperature: pseudo-labels are fitted by calibrated logits
    covariance, _ = ledoit_wolf((source.a - source.mean[source.y]).numpy(), assume_centered=True)
    precision = torch.linalg.pinv(torch.from_numpy(covariance), hermitian=True)
    values, vectors = torch.linalg.eigh(precision)
    whiten = (vectors * values.clamp(min=0).sqrt()).to(x)  # distances after this product are Mahalanobis distances
    centres = source.mean.to(x) @ whiten

    def activate(directions: Tensor, part: Tensor) -> Tensor:
        scores = concept_scores(part, directions)
        return scores if model.activation is None else model.activation(scores)

    def size(tensor: Tensor) -> float:
        return max(float(tensor.square().mean().sqrt()), 1e-6)

    def descend(parameters: dict[Tensor, float], loss) -> None:
        optimizer = torch.optim.Adam([{"params": [p], "lr": lr * of} for p, of in parameters.items()])
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            rows = torch.randperm(len(x), generator=generator)[:BATCH]
            optimizer.zero_grad()
            loss(x[rows], labels[rows]).backward()
            optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    def far_from_home(part: Tensor, y: Tensor) -> Tensor:
        distance = torch.cdist(activate(concepts, part) @ whiten, centres).square().clamp(min=1e-12)
        own = torch.nn.functional.one_hot(y, len(centres)).bool()
        others = distance.masked_fill(own, 0.0).sum(dim=1) / (len(centres) - 1)
        gap = 3 * distance[own].log() - others.log()
        return gap.mean() + STAY * (concepts - model.concepts).square().sum().add(1e-12).sqrt()

    def head_loss(part: Tensor, y: Tensor) -> Tensor:
        z = activate(concepts, part) @ weights.T + bias
        sparse = L1_SHARE * weights.abs().mean() + (1 - L1_SHARE) * weights.square().mean()
        return cross_entropy(scale * z, y) + ELASTIC * scale * sparse / len(part)

    further = normalize(torch.randn(RANK, x.shape[1], generator=generator), dim=1)
    reading = weights.new_zeros(len(weights), RANK)

    def residual_loss(part: Tensor, y: Tensor) -> Tensor:
        directions = normalize(further, dim=1)
        z = activate(concepts, part) @ weights.T + bias + part @ directions.T @ reading.T
        among = (directions @ directions.T).square().sum() - RANK
        with_known = (directions @ normalize(concepts, dim=1).T).square().mean()
        return cross_entropy(scale * z, y) + among / RANK**2 + with_known

    with torch.enable_grad():
        descend({concepts: size(concepts)}, far_from_home)
        descend({weights: size(weights), bias: size(weights)}, head_loss)
        descend({further: size(further), reading: size(weights)}, residual_loss)
    adapted = ConceptBottleneck(
        concepts,
        LinearHead(weights, bias),
        reference=model.reference,
        spread=model.spread,
        activation=model.activation,
        mixing=model.mixing,
        correlation=model.correlation,
        covariance=model.covariance,
    )
    if steps:
        extra = reading @ normalize(further, dim=1)
        assert not isinstance(model.residual, Unnamed)
        known = 0 if model.residual is None else model.residual.matrix
        offset = bias.new_zeros(len(bias)) if model.residual is None else model.residual.bias
        adapted.residual = LinearProbe(extra + known, offset)
    else:
        adapted.residual = model.residual
    return adapted.requires_grad_(False).eval()
