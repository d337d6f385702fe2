"""Mean and standard deviation of every concept score, without computing a score.

A score is linear in the features, s_k = t_k . x, so its moments follow from those of x alone:

    mean_k = t_k . mean(x)            var_k = t_k^T cov(x) t_k

One pass over x for the D x D covariance serves any number of concepts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, triton_runs_on, use_triton
from cbm.kernels.chunks import add_rows, batched_product, slices
from cbm.kernels.shapes import check_labels, check_matrix, check_vector, compute_dtype

_ROWS = {"cpu": 4096, "cuda": 65_536}
"""Rows of x per step: 8 MB of float32 at D = 512 on a CPU; on a GPU enough to keep a product busy."""
_HALF_ROWS, _PARTS = 2048, 128  # of a product of half precision, whose float32 sums lose digits as they grow; at a time
_MANY = 131_072  # rows from which tensor cores take features of half precision
_CONCEPTS = 4096  # concepts per step of the quadratic form


def score_moments(x: Tensor, concepts: Tensor, ddof: int = 1, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows of ``x`` of the scores ``x @ concepts.T``.

    ``x`` is read in row chunks, each moved to the device of ``concepts``, so it may be a memory-mapped tensor larger
    than memory. Chunks are centred, their products are float32 and are merged in float64. On a GPU, features of half
    precision stay what they are: 131,072 rows or more are centred, rounded again (which moves a deviation by up
    to 2e-4 of itself in bfloat16, 2e-5 in float16, and no mean) and multiplied by tensor cores.
    A second, float64 pass is made when some concept varies so little (variance below 1e-4 of the covariance's
    Frobenius norm) that float32 products would not resolve it.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        ddof: 1 for the unbiased estimate, 0 for the population value.
        backend: "auto", "torch" (products of float32 whatever the features are) or "triton".

    Returns:
        Mean [K] and standard deviation [K].

    Raises:
        ValueError: If a shape does not fit, ``x`` has no more rows than ``ddof``, or the backend cannot take them.
    """
    check_matrix("x", x)
    check_matrix("concepts", concepts, columns=x.shape[1])
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}; expected 0 or 1")
    if len(x) <= ddof:
        raise ValueError(f"x has shape {list(x.shape)}; expected more than ddof={ddof} rows")
    dtype = compute_dtype(x, concepts)

    with torch.no_grad(), torch.autocast(concepts.device.type, enabled=False):
        few = x.dtype not in (torch.bfloat16, torch.float16) or len(x) < _MANY
        beyond = f"x has {len(x)} rows of {x.dtype}" if few else ""
        half = use_triton(backend, concepts, beyond=beyond)
        center, covariance = (
            _half_covariance(x, concepts.device, ddof) if half else _covariance(x, concepts.device, dtype, ddof)
        )
        variance = _quadratic_form(concepts, covariance)
        smallest = 1e-4 * covariance.norm() * concepts.double().square().sum(1)
        if dtype != torch.float64 and bool((variance < smallest).any()):
            center, covariance = _covariance(x, concepts.device, torch.float64, ddof)
            variance = _quadratic_form(concepts, covariance)
        mean = concepts.double() @ center
    return mean.to(dtype), variance.clamp(min=0).sqrt().to(dtype)


def feature_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature, ``x.mean(0), x.std(0)``, of any number of rows.

    Args:
        x: Image features [N, D], N >= 2; may be memory-mapped, in half precision.

    Returns:
        Mean [D] and standard deviation [D] (divided by N - 1), float32 or float64, from float64 sums.

    Raises:
        ValueError: If ``x`` is no matrix of two rows or more.
    """
    if len(check_matrix("x", x)) < 2:
        raise ValueError(f"x has shape {list(x.shape)}; expected two rows or more")
    mean, squares = x.new_zeros(2, x.shape[1], dtype=torch.float64)
    for part in slices(len(x), _rows(x.device)):
        seen, rows = part.start, x[part].double()
        center, share = rows.mean(0), len(rows) / part.stop
        squares += (rows - center).square().sum(0) + (center - mean).square() * (seen * share)
        mean += (center - mean) * share
    dtype = compute_dtype(x)
    return mean.to(dtype), (squares / (len(x) - 1)).sqrt().to(dtype)


def class_sums(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Sum of the features of every class [C, D], in float32 or float64.

    Args:
        x: Image features [N, D]; may be memory-mapped, in half precision.
        y: Their classes [N] (int64).
        num_classes: C.

    Raises:
        ValueError: If a shape does not fit or a class is out of range.
    """
    check_matrix("x", x)
    check_labels(y, len(x), max(num_classes, 2))
    sums = x.new_zeros(num_classes, x.shape[1], dtype=compute_dtype(x))
    for part in slices(len(x), _rows(x.device)):
        add_rows(sums, y[part], x[part].to(sums.dtype))
    return sums


def gram(
    x: Tensor, concepts: Tensor, mean: Tensor | None = None, std: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The product with ``Z^T Z / N`` of standardised scores ``Z = (x T^T - mean) / std``, neither of them formed.

    Its rank is at most D + 1, so a product goes through the features: 4KD FLOP a vector instead of 2K^2. Its largest
    eigenvalue is the Lipschitz constant of a least-squares gradient.

    Args:
        x: Image features [N, D], read once, in row chunks.
        concepts: Concept embeddings [K, D].
        mean: Taken from every score [K]; None for 0.
        std: Every score is divided by it [K]; None for 1.

    Returns:
        A function of v [K] or [K, m] (float32 or float64) that returns ``(Z^T Z / N) v`` of the same shape.

    Raises:
        ValueError: If a shape does not fit.
    """
    k = len(check_matrix("concepts", concepts, columns=check_matrix("x", x).shape[1]))
    check_vector("mean", mean, k)
    check_vector("std", std, k)
    with torch.no_grad(), torch.autocast(concepts.device.type, enabled=False):
        center, covariance = _covariance(x, concepts.device, compute_dtype(x, concepts), ddof=0)
        directions = concepts.double() if std is None else concepts.double() / std.double()[:, None]
        offset = directions @ center
        if mean is not None:
            offset = offset - (mean.double() if std is None else mean.double() / std.double())

    def times(v: Tensor) -> Tensor:
        double = v.double()
        through = directions @ (covariance @ (directions.T @ double))
        along = offset @ double
        return (through + (offset * along if v.ndim == 1 else torch.outer(offset, along))).to(v.dtype)

    return times


def _covariance(x: Tensor, device: torch.device, dtype: torch.dtype, ddof: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of the rows in float64, from chunk products in ``dtype``.

    Each chunk is centred at its own mean and merged by the pairwise rule of Chan, Golub and LeVeque (1983), so a large
    common mean, or chunks with means far apart, cancel nowhere.
    """
    n, d = x.shape
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    products = torch.zeros(d, d, dtype=torch.float64, device=device)
    for part in slices(n, _rows(device)):
        seen, rows = part.start, x[part].to(device, dtype)
        center = rows.mean(0)
        rows = rows - center
        residual = rows.mean(0, dtype=torch.float64)  # what rounding left of the chunk's mean
        share = len(rows) / (seen + len(rows))
        offset = center + residual - mean
        products += rows.T @ rows
        products += torch.outer(offset, offset) * (seen * share) - torch.outer(residual, residual) * len(rows)
        mean += offset * share
    return mean, products / (n - ddof)


def _half_covariance(x: Tensor, device: torch.device, ddof: int) -> tuple[Tensor, Tensor]:
    """The same of features of half precision by tensor cores: products of 2,048 rows, float32, added in float64.

    All rows are centred near one mean, that of the first chunk, and rounded; sums of more rows would lose digits, since
    tensor cores cut off what does not fit the sum so far.
    """
    n, d = x.shape
    near = x[: _HALF_ROWS * _PARTS].to(device).mean(0, dtype=torch.float32).to(x.dtype)
    total, shift = torch.zeros(2, d, dtype=torch.float64, device=device)
    products = torch.zeros(d, d, dtype=torch.float64, device=device)
    for part in slices(n, _HALF_ROWS * _PARTS):
        centred, of_rows, of_centred = _centre(x[part].to(device), near)
        total += of_rows
        shift += of_centred
        whole = len(centred) // _HALF_ROWS * _HALF_ROWS
        pieces = [centred[:whole].reshape(-1, _HALF_ROWS, d), centred[whole:][None]]
        for piece in (piece for piece in pieces if piece.numel()):
            products += _sum_of_few(batched_product(piece.mT, piece))
    shift /= n
    return total / n, (products - n * torch.outer(shift, shift)) / (n - ddof)


def _centre(rows: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rows - near``, rounded, and the sums over the rows of both, in float64."""
    if triton_runs_on(rows):
        from cbm.kernels.gpu import moments as gpu

        return gpu.centre(rows, near)
    centred = rows - near
    return centred, rows.double().sum(0), centred.double().sum(0)


def _sum_of_few(products: Tensor) -> Tensor:
    """Sum over the first dimension in float64, of eight at a time in float32: a sum of float64 alone is slow."""
    eights = len(products) // 8 * 8
    total = products[:eights].unflatten(0, (-1, 8)).sum(1).sum(0, dtype=torch.float64)
    return total if eights == len(products) else total + products[eights:].sum(0, dtype=torch.float64)


def _rows(device: torch.device) -> int:
    return _ROWS.get(device.type, _ROWS["cpu"])


def _quadratic_form(concepts: Tensor, covariance: Tensor) -> Tensor:
    """``t_k^T covariance t_k`` for every concept [K], in float64."""
    return torch.cat([((t @ covariance) * t).sum(1) for t in (c.double() for c in concepts.split(_CONCEPTS))])
