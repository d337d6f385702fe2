"""Concept Matrix Search (Semenov et al., 2024, arXiv 2404.03323): zero-shot classification by way of concepts.

An image x and a class t, embedded by one encoder, are each written as their cosines with K concepts q_k,

    v = Q x     T_c = Q t_c     Q [K, D], rows of unit length, like x and t

and the classes are compared with the image there: by cos(v, T_c), by cos(v^3, T_c^3) elementwise, or by T_c at the
image's strongest concept. Nothing is trained. The first rule needs no row of K numbers, because v and T_c are linear,

    cos(v, T_c) = x^T M t_c / sqrt(x^T M x  t_c^T M t_c)        M = Q^T Q [D, D]

so CMS is zero-shot classification under the metric M; for an orthonormal basis Q it is zero-shot classification itself.
M is used by its root: Q = U R with orthonormal U [K, D] gives M = R^T R and cos(v, T_c) = cos(R x, U^T T_c).
All cosines share a large common part (0.996 between an image's row and every class's is usual, with gaps of 2e-4 to
2e-3 that decide), so nothing is computed in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cbm.kernels.scores import concept_scores
from cbm.kernels.shapes import check_matrix, check_vector, compute_dtype

Rule = Literal["similarity", "cubed", "max"]
Norm = Literal["none", "row", "col"]
Route = Literal["auto", "metric", "matrix"]

_SMALLEST = 1e-6  # a concept whose mean cosine is not above it has no column normalisation
_NUMBERS = 2**20  # per block of pictures' rows: 4 MB of float32, and 8 MB more while float64 norms are taken


@dataclass(frozen=True)
class ConceptMatrix:
    """How images and classes are written as rows over K concepts: ``v = (x @ concepts.T - offset) * weight``.

    Attributes:
        offset: Offset [K] that is subtracted from every cosine of an image, float64; zeros unless centred.
        weight: Factor [K] on the cosines, float64; ones unless ``norm="col"``, then 0 for a concept that was left out.
        rows: The classes' rows [C, K], float64, normalised the same way.
    """

    offset: Tensor
    weight: Tensor
    rows: Tensor


def concept_matrix(
    classes: Tensor, concepts: Tensor, *, norm: Norm = "none", center: bool = False, image_mean: Tensor | None = None
) -> ConceptMatrix:
    """The rows of the classes over the concepts, and what makes images' rows comparable with them.

    Args:
        classes: Class embeddings [C, D], unit rows.
        concepts: Concept embeddings [K, D], unit rows.
        norm: "none"; "row", a class's row divided by its sum + 1e-8 (an image's is not: a positive factor on it
            changes no decision); "col", every concept divided by its mean over the images (published: the sum, one
            factor N on all images, which changes no decision either) and by its sum over the classes. "col" leaves
            out, with weight and column 0, a concept of mean cosine <= 1e-6 with the images or the classes.
        center: Subtract every concept's mean over the images, and over the classes (not in the paper).
        image_mean: Mean feature [D] of the images that those means are over; it is all that matters of them, because
            cosines are linear in x. Only used, and then needed, with ``norm="col"`` or ``center=True``.

    Returns:
        The matrix, in float64.

    Raises:
        ValueError: If a shape does not fit, ``norm`` is unknown or combined with ``center``, ``image_mean`` is missing,
            a class's row has no positive sum to divide by, or "col" leaves no concept.
    """
    check_matrix("concepts", concepts)
    check_matrix("classes", classes, columns=concepts.shape[1])
    check_vector("image_mean", image_mean, concepts.shape[1])
    _check_choice("norm", norm, Norm)
    if center and norm != "none":
        raise ValueError(f"center=True leaves rows and columns that sum to zero, which norm={norm!r} would divide by")

    with torch.no_grad(), torch.autocast(concepts.device.type, enabled=False):
        q = concepts.double()
        rows = classes.double() @ q.T
        offset, weight = rows.new_zeros(len(q)), rows.new_ones(len(q))
        if norm == "row":
            sums = rows.sum(1, keepdim=True)
            worst = int(sums.argmin())
            if not sums[worst] > 0:
                raise ValueError(
                    f"class {worst} has cosines that sum to {float(sums[worst]):.3g}; norm='row' would turn its row "
                    "around. Use norm='none'"
                )
            rows = rows / (sums + 1e-8)
        elif norm == "col" or center:
            if image_mean is None:
                raise ValueError("image_mean is None; norm='col' and center=True need the pictures' mean feature")
            means = q @ image_mean.to(q)
            if center:
                return ConceptMatrix(means, weight, rows - rows.mean(0))
            kept = (means > _SMALLEST) & (rows.mean(0) > _SMALLEST)
            if not kept.any():
                raise ValueError("norm='col' leaves no concept: all mean cosines are 1e-6 or less. Use norm='none'")
            weight = torch.where(kept, 1 / means, 0.0)
            rows = torch.where(kept, rows / rows.sum(0), 0.0)
    return ConceptMatrix(offset, weight, rows)


def cms_scores(
    x: Tensor,
    classes: Tensor,
    concepts: Tensor,
    *,
    rule: Rule = "similarity",
    norm: Norm = "none",
    center: bool = False,
    image_mean: Tensor | None = None,
    path: Route = "auto",
) -> Tensor:
    """Score of every class for every image; the prediction is the largest.

    Args:
        x: Image features [N, D], unit rows. Read in row chunks, each moved to the device of ``concepts``.
        classes: Class embeddings [C, D], unit rows.
        concepts: Concept embeddings [K, D], unit rows.
        rule: "similarity", the cosine of the image's row with the class's; "cubed", the cosine of their elementwise
            cubes; "max", the class's entry at the image's strongest concept (the first of equals).
        norm: As in `concept_matrix`.
        center: As in `concept_matrix`.
        image_mean: As in `concept_matrix`. None: the mean of ``x``, as published for "col"; the scores are then
            transductive, an image's depend on which other images are in ``x``.
        path: "metric", the closed form through M, for the similarity rule alone: at most N D^2 + N C D, and K D^2 once;
            "matrix", through the images' rows over the concepts, of which about 16 MB exist at a time; "auto", the
            first where it applies. (They are the same where K <= D.)

    Returns:
        Scores [N, C]: cosines, 0 where a row is zero (rule "max": entries of ``ConceptMatrix.rows``). float64 if x,
        classes or concepts are, else float32.

    Raises:
        ValueError: As in `concept_matrix`, or if ``rule`` or ``path`` is unknown or they do not go together.
    """
    check_matrix("x", x)
    check_matrix("concepts", concepts, columns=x.shape[1])
    _check_choice("rule", rule, Rule)
    _check_choice("path", path, Route)
    if path == "metric" and rule != "similarity":
        raise ValueError(f"path='metric' has no form for rule={rule!r}; use path='matrix' or 'auto'")
    with torch.no_grad(), torch.autocast(concepts.device.type, enabled=False):
        if image_mean is None and (center or norm == "col"):
            image_mean = torch.stack([part.sum(0, dtype=torch.float64) for part in x.split(4096)]).sum(0) / len(x)
        found = concept_matrix(classes, concepts, norm=norm, center=center, image_mean=image_mean)
        dtype = compute_dtype(x, classes, concepts)
        rows, left_out = found.rows, found.weight == 0
        weighted = concepts.double() * found.weight[:, None]
        mean = image_mean if center and image_mean is not None else weighted.new_zeros(x.shape[1])
        if rule != "max":
            rows = _unit(rows) if rule == "similarity" else _unit(_unit(rows) ** 3)
        if rule == "similarity" and path != "matrix" and len(concepts) > x.shape[1]:
            basis, root = torch.linalg.qr(weighted)  # flipped: the large common part last loses fewest digits in sums
            weighted, rows = root.flip(0), rows @ basis.flip(1)
        mean, weighted, rows = (t.to(concepts.device, dtype) for t in (mean, weighted, rows))
        blocks = x.split(max(1, _NUMBERS // max(*weighted.shape, len(classes))))
        parts = (concept_scores(block.to(weighted) - mean, weighted) for block in blocks)
        return torch.cat([_apply_rule(v, rows, rule, left_out) for v in parts])


def _apply_rule(v: Tensor, rows: Tensor, rule: Rule, left_out: Tensor) -> Tensor:
    """Scores [n, C] from images' rows v [n, K], which may be overwritten, and the classes' [C, K]."""
    if rule == "max":
        return rows.T[v.masked_fill_(left_out, -torch.inf).argmax(1)]
    if rule == "cubed":
        v = _unit(v).pow_(3)  # unit first: the cubes of small numbers underflow
    return _divide(v @ rows.T, v)


def _divide(value: Tensor, rows: Tensor) -> Tensor:
    """``value`` divided by the norm of every row of ``rows``, taken in float64; unchanged by a row of zeros."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).to(value.dtype)
    return value / torch.where(norms > 0, norms, 1.0)


def _unit(rows: Tensor) -> Tensor:
    return _divide(rows, rows)


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}")
