"""Clusters of directions: k-means on the sphere, of any number of pictures, without an N x K matrix.

    max  mean_n  x_n . c_{a(n)}        over unit centres c_k and assignments a(n) in 1 .. K

for unit rows x_n (Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", Machine
Learning 2001). A picture goes to the centre it has the largest cosine with; a centre becomes the direction of the sum
of its pictures. Neither step can lower the objective. A centre that nobody goes to is put on one of the pictures that
are explained worst, which cannot lower it either.

The start draws pictures far from those drawn before (k-means++, Arthur and Vassilvitskii, SODA 2007), several at a
time as in k-means|| (Bahmani et al., VLDB 2012), from a sample of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.kernels.chunks import add_rows, slices
from cbm.kernels.shapes import check_matrix, compute_dtype
from cbm.kernels.topk import topk_concepts

_SAMPLE = 8  # pictures that the start looks at, per cluster
_LEAST_SAMPLE = 4096
_SHARE = 64  # one new seed for so many drawn before is drawn at a time
_TRIALS = 8  # rows of which the first seeds are the best
_CANDIDATES = 4  # pictures explained worst that are looked at, per centre without pictures
_SAME = 1e-6  # 1 - cosine of a picture that a centre explains up to rounding


def spherical_kmeans(
    x: Tensor, k: int, *, seed: int, passes: int = 25, tol: float = 1e-5, chunk: int = 8192
) -> tuple[Tensor, Tensor, Tensor]:
    """Put N directions into k clusters, each around the direction of its mean.

    Rows are read ``chunk`` at a time, brought to float32 (float64 if they are that) and to unit norm, so that the
    rounding of half precision does not count; a row of zeros has cosine 0 with everything. Same input and seed, same
    result. Beyond input and output, memory is that of a chunk, of the centres, and of the sample for the start.

    Args:
        x: Image features [N, D], in the sense of unit rows; may be memory-mapped, in half precision.
        k: How many clusters, 1 <= k <= N.
        seed: Random seed for the start.
        passes: How often, at most, the centres move.
        tol: They stop when the mean cosine grows by no more than this.
        chunk: Rows per step, >= 1. Changes the result by no more than rounding.

    Returns:
        Unit centres [K, D], the cluster of every row [N] (int64), and the row's cosine with the centre of it [N].
        Clusters are empty only where there are fewer distinct directions than k.

    Raises:
        ValueError: If a shape does not fit, a number is out of range, or ``x`` has a NaN or infinite value.

    Example:
        >>> import torch
        >>> from cbm.solvers import spherical_kmeans
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.96, 0.28], [0.28, 0.96]])
        >>> centres, cluster, cosine = spherical_kmeans(x, 2, seed=0)
        >>> bool(cluster[0] == cluster[2] != cluster[1]), [round(float(each), 3) for each in cosine]
        (True, [0.99, 0.99, 0.99, 0.99])
    """
    if not 1 <= k <= len(check_matrix("x", x)):
        raise ValueError(f"k is {k}; expected 1 <= k <= {len(x)}, the number of rows of x")
    if passes < 0 or chunk < 1 or not tol >= 0:
        raise ValueError(f"passes is {passes}, chunk is {chunk}, tol is {tol}; expected >= 0, >= 1, >= 0")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centres = _start(x, k, torch.Generator().manual_seed(seed))
        cluster, cosine, sums = _assign(x, centres, chunk)
        best = float(cosine.double().mean())
        for _ in range(passes):
            moved = _move(x, centres, cluster, cosine, sums)
            found, explained, sums = _assign(x, moved, chunk)
            now = float(explained.double().mean())
            if now <= best:  # by rounding, or nothing moved
                break
            gained, best = now - best, now
            centres, cluster, cosine = moved, found, explained
            if gained <= tol:
                break
    return centres, cluster, cosine


def medoids(x: Tensor, centres: Tensor, assignment: Tensor, *, chunk: int = 8192) -> Tensor:
    """The row that is nearest to the centre of its cluster, of every cluster: a picture to show.

    Args:
        x: Image features [N, D], as they were given to ``spherical_kmeans``.
        centres: Centres [K, D], of any length.
        assignment: Cluster of every row [N] (int64).
        chunk: Rows per step, >= 1.

    Returns:
        Rows [K] (int64), of equal ones the lower; -1 for a cluster without rows.

    Raises:
        ValueError: If a shape does not fit, or a cluster is out of range.

    Example:
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.9], [0.1, 1.0]]), dim=1)
        >>> medoids(x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))
        tensor([ 0,  2, -1])
    """
    count = len(check_matrix("centres", centres, columns=check_matrix("x", x).shape[1]))
    if list(assignment.shape) != [len(x)] or assignment.dtype != torch.int64:
        raise ValueError(
            f"assignment has shape {list(assignment.shape)} and dtype {assignment.dtype}; expected int64 [{len(x)}]"
        )
    if int(assignment.min()) < 0 or int(assignment.max()) >= count:
        raise ValueError(f"assignment has a cluster outside of 0 .. {count - 1}, the rows of centres")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected >= 1")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        cosine = torch.empty(len(x), dtype=compute_dtype(x, centres), device=x.device)
        for part in slices(len(x), chunk):
            cosine[part] = (_unit(x[part]) * centres[assignment[part]]).sum(dim=1)
        order = torch.argsort(cosine, descending=True, stable=True)
        order = order[torch.argsort(assignment[order], stable=True)]  # by cluster, the nearest first
        ordered = assignment[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        nearest = torch.full((count,), -1, dtype=torch.int64, device=x.device)
        nearest[ordered[first]] = order[first]
    return nearest


def _unit(rows: Tensor) -> Tensor:
    """Rows in float32 or float64, of unit norm."""
    return normalize(rows.to(compute_dtype(rows)), dim=1)


def _start(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Rows [K, D] of a sample, drawn with a probability that grows with their distance from those drawn before.

    The first are the best of several draws each, one by one; then more and more are drawn at a time, so that the cost
    is that of few passes over the sample. A copy of a row that is drawn already comes last.
    """
    size = min(len(x), max(_LEAST_SAMPLE, _SAMPLE * k))
    rows = torch.randperm(len(x), generator=generator)[:size].sort().values
    sample = _unit(x[rows.to(x.device)])
    if not bool(sample.isfinite().all()):
        raise ValueError("x has a NaN or infinite value; expected finite values")
    far = (sample.norm(dim=1) > 0.5).to(sample.dtype)  # 1 - the largest cosine with a seed; of rows of zeros: 0
    chosen: list[Tensor] = []
    while (count := sum(map(len, chosen))) < k:
        weight = far.double().clamp(min=0).cpu()
        weight[weight < _SAME] = 1e-30  # a copy of what is drawn already: only if nothing else is left
        weight[torch.cat([torch.empty(0, dtype=torch.int64), *chosen])] = 0
        noise = -torch.log(torch.empty(size, dtype=torch.float64).exponential_(generator=generator))
        order = (weight.log() + noise).topk(min(size - count, max(_TRIALS, 1 + count // _SHARE))).indices
        if count < _SHARE:  # draws without replacement, of which the best is taken
            left = torch.minimum(far[:, None], 1 - sample @ sample[order.to(x.device)].T).double().sum(dim=0)
            order = order[left.argmin().cpu()][None]
        chosen.append(order[: min(k - count, 1 + count // _SHARE)])
        seeds = sample[chosen[-1].to(x.device)]
        far = torch.minimum(far, 1 - topk_concepts(sample, seeds, 1)[0][:, 0])
    return sample[torch.cat(chosen).to(x.device)]


def _assign(x: Tensor, centres: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest centre of every row [N], the cosine with it [N], and the sum of every centre's rows [K, D]."""
    cluster = torch.empty(len(x), dtype=torch.int64, device=x.device)
    cosine = torch.empty(len(x), dtype=centres.dtype, device=x.device)
    sums = torch.zeros_like(centres)
    for part in slices(len(x), chunk):
        rows = _unit(x[part])
        values, indices = topk_concepts(rows, centres, 1)
        if not bool(rows.isfinite().all()):
            raise ValueError("x has a NaN or infinite value; expected finite values")
        cosine[part], cluster[part] = values[:, 0], indices[:, 0]
        add_rows(sums, indices[:, 0], rows)
    return cluster, cosine, sums


def _move(x: Tensor, centres: Tensor, cluster: Tensor, cosine: Tensor, sums: Tensor) -> Tensor:
    """Centres at the mean of their rows; those without rows at rows that are explained worst, far from each other."""
    length = sums.norm(dim=1, keepdim=True)
    moved = torch.where(length > _SAME, sums / length.clamp(min=1e-30), centres)
    empty = (torch.bincount(cluster, minlength=len(centres)) == 0).nonzero()[:, 0]
    if not len(empty):
        return moved
    worst = cosine.topk(min(len(x), _CANDIDATES * len(empty)), largest=False).indices.sort().values
    candidates, left = _unit(x[worst]), 1 - cosine[worst]
    for each in empty.tolist():
        pick = int(left.argmax())
        if float(left[pick]) < _SAME:  # every row is explained: there are no more directions than centres in use
            break
        moved[each] = candidates[pick]
        left = torch.minimum(left, 1 - candidates @ candidates[pick])
        left[pick] = 0
    return moved
