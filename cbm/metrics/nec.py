"""Every method at equal sparsity: the NEC protocol (Srivastava, Yan, Weng, VLG-CBM, NeurIPS 2024).

Accuracy is reported at 5, 10, ..., 30 non-zero weights per class (NEC, number of effective concepts), twice:

- *truncated*: the method's own head, every class keeping its most important concepts (``cbm.metrics.sparsity``);
- *re-solved*: the method's concepts with a new sparse head on their standardised scores, the elastic-net optimum that
  has exactly so many non-zero weights, with a certificate of how near the optimum it is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.data.features import FeatureSplit
from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors
from cbm.kernels import class_logits, class_vectors
from cbm.layers import ConceptBottleneck, Embedded, UnitCode
from cbm.solvers import LinearScores, SparseScores, elastic_net_path, label_paths


@dataclass(frozen=True)
class SparseHead:
    """A re-solved head with its certificate.

    Attributes:
        target: requested number of concepts per class.
        nec: actual number of concepts per class (smaller if there are too few concepts).
        lam: penalty; of labels, which have their own, the mean.
        gap: bound on the relative distance from the optimum, in float64.
        kkt: largest violation of the optimality conditions, as a share of the l1 penalty.
        cut: number of weights that were removed to meet the target exactly.
        weight: weights ``[C, K]`` of the raw scores ``x T^T``.
        bias: biases ``[C]``.
    """

    target: int
    nec: float
    lam: float
    gap: float
    kkt: float
    cut: int
    weight: Tensor
    bias: Tensor


def resolve_heads(
    model: ConceptBottleneck,
    train: FeatureSplit,
    num_classes: int,
    targets: list[int],
    allowed: Tensor | None = None,
) -> list[SparseHead]:
    """Solve a sparse head on the concepts of a model for every number of concepts per class: on their scores, or on
    the codes of units that were found.

    Args:
        model: bottleneck whose concepts are used; its own head and residual are ignored.
        train: training images.
        num_classes: number of classes C.
        targets: numbers of concepts per class.
        allowed: concepts ``[L, K]`` bool that the head of each of several labels may read; all by default.
    """
    if not targets:
        return []
    if isinstance(model.activation, UnitCode):
        codes = model.activation.code(train.x, model.concepts)
        scores: LinearScores = SparseScores(codes.values, codes.columns, len(model.concepts))
    else:
        scores = LinearScores(*linear_part(model, train.x))
    return solve_heads(scores, train.y, num_classes, targets, allowed)


def linear_part(model: ConceptBottleneck, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` and directions ``[K, D]`` whose products are the scores that a new head reads: of concept
    embeddings the probabilities, since no direction gives those."""
    if isinstance(model.activation, Embedded):
        return model.activations(x), torch.eye(len(model.concepts)).to(x)
    return x, model.concepts


def solve_heads(
    scores: LinearScores, y: Tensor, num_classes: int, targets: list[int], allowed: Tensor | None = None
) -> list[SparseHead]:
    """Solve a sparse head on standardised scores for every number of concepts per class.

    Args:
        scores: scores of the training images.
        y: their class indices ``[N]``, or labels ``[N, L]``.
        num_classes: number of classes C.
        targets: numbers of concepts per class; of labels, every one has exactly so many.
        allowed: concepts ``[L, K]`` bool that the head of each of several labels may read; all by default.
    """
    if y.ndim == 2:
        return _label_heads(scores, y, targets, allowed)
    path = elastic_net_path(
        scores, y, num_classes=num_classes, nec=targets, n_lambdas=12, lambda_ratio=1 / 2000, tol=1e-3
    )
    heads = []
    for target, point in path.at_nec.items():
        weight, bias = scores.on_raw(point.weight(), point.bias)
        heads.append(SparseHead(target, point.nec, point.lam, max(point.gap, 0.0), point.kkt, point.cut, weight, bias))
    return heads


def _label_heads(scores: LinearScores, y: Tensor, targets: list[int], allowed: Tensor | None) -> list[SparseHead]:
    """``solve_heads`` for labels ``[N, L]``: of certificates the worst. What is neither yes nor no (a probability made
    of an unknown label) counts for none."""
    y = y.where((y == 0) | (y == 1), torch.nan)
    paths = label_paths(scores, y, nec=targets, n_lambdas=12, lambda_ratio=1 / 2000, tol=1e-3, allowed=allowed)
    heads = []
    for target in sorted(set(targets)):
        points = [path.at_nec[target] for path in paths]
        weight, bias = (torch.cat(parts) for parts in zip(*((point.weight(), point.bias) for point in points)))
        weight, bias = scores.on_raw(weight, bias)
        nec = sum(point.nec for point in points) / len(points)
        gap, kkt = max(max(point.gap, 0.0) for point in points), max(point.kkt for point in points)
        lam = sum(point.lam for point in points) / len(points)
        heads.append(SparseHead(target, nec, lam, gap, kkt, sum(point.cut for point in points), weight, bias))
    return heads


def head_logits(model: ConceptBottleneck, x: Tensor, head: SparseHead) -> Tensor:
    """Logits ``[N, C]`` of a re-solved head: on the codes of units that were found, else on the concepts' scores.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        head: the head.
    """
    if isinstance(model.activation, UnitCode):
        return model.activation.logits(x, model.concepts, head.weight, head.bias)
    seen, concepts = linear_part(model, x)
    return class_logits(seen, *class_vectors(concepts, head.weight, bias=head.bias))


def save_heads(heads: list[SparseHead], path: Path) -> None:
    """Write the heads (sparse) and their certificates into one safetensors file."""
    tensors, certificates = {}, []
    for head in heads:
        index = head.weight.flatten().nonzero().flatten()
        tensors[f"{head.target}.index"], tensors[f"{head.target}.bias"] = index, head.bias
        tensors[f"{head.target}.value"] = head.weight.flatten()[index]
        certificates.append(
            {
                "target": head.target,
                "nec": head.nec,
                "lam": head.lam,
                "gap": head.gap,
                "kkt": head.kkt,
                "cut": head.cut,
                "shape": list(head.weight.shape),
            }
        )
    write_tensors(path, tensors, certificates)


def load_heads(path: Path) -> list[SparseHead]:
    """Read what ``save_heads`` wrote; an empty list if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return []
    heads = []
    try:
        tensors, certificates = read_tensors(path)
        for line in certificates:
            classes, concepts = line.pop("shape")
            flat = torch.zeros(classes * concepts)
            target = line["target"]
            flat[tensors[f"{target}.index"]] = tensors[f"{target}.value"]
            heads.append(SparseHead(**line, weight=flat.view(classes, concepts), bias=tensors[f"{target}.bias"]))
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{path}' is damaged or was not written by cbm ({type(error).__name__})") from error
    return heads
