"""Parts of signed pictures: semi-nonnegative matrix factorisation, whose weights are >= 0 and whose atoms are free.

    min  |X - Z C|^2        over weights Z >= 0 [N, K] and atoms C [K, D] of any sign

(Ding, Li and Jordan, "Convex and semi-nonnegative matrix factorizations", TPAMI 2010). Pictures of CLIP have features
of both signs, so that plain NMF does not apply to them.

The start is that of the paper: the centres of k-means. Then the two are updated in turn, each exactly: the atoms by
least squares, the weights one atom at a time, each at its optimum given the others (coordinate descent, which beats the
paper's multiplicative rule and gives weights of exactly 0). Neither can raise the objective. The optimum is not unique:
where pictures are sums of several atoms, other atoms with a cone around the same pictures explain them as well. Only
where every atom stands nearly alone in some pictures does the start decide for those.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.kernels.chunks import slices
from cbm.kernels.shapes import check_matrix, compute_dtype
from cbm.solvers.spherical_kmeans import spherical_kmeans

_FIRST_SWEEPS, _SWEEPS = 4, 2  # of coordinate descent, at the start and at every pass
_BLOCK = 64  # atoms whose pull on the pictures is computed by one matrix product


def semi_nmf(
    x: Tensor, k: int, *, seed: int, rows: int = 20_000, passes: int = 100, tol: float = 1e-5, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """Find k atoms of which every picture is a sum with weights >= 0.

    The atoms are fitted to at most ``rows`` pictures, drawn at random, and memory holds those pictures and their
    weights ``[rows, K]``; the weights of all others are whatever code one computes for them (``sparse_code``, say).
    Pictures are taken as they are: centre them first where their mean should not take an atom. Same input and seed,
    same result.

    Args:
        x: Image features [N, D]; may be memory-mapped, in half precision.
        k: How many atoms, 1 <= k <= the number of pictures that are fitted.
        seed: Random seed for the start, and for the draw of pictures.
        rows: How many pictures are fitted at most, >= 1.
        passes: How often, at most, atoms and weights are updated.
        tol: Updates stop when the error falls by no more than this share of the pictures' energy.
        chunk: Pictures whose weights are updated together, >= 1. Changes the result by no more than rounding.

    Returns:
        Unit atoms [K, D], float32 or float64, and the error ``|X - Z C|^2 / |X|^2`` at the start and after every pass
        (float64), which never rises. An atom is zero only where fewer than k suffice for an error of zero.

    Raises:
        ValueError: If a shape does not fit, a number is out of range, or ``x`` has a NaN or infinite value.

    Example:
        >>> import torch
        >>> from cbm.solvers import semi_nmf
        >>> parts = torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.6, 0.8]])
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.5], [0.3, 1.0]]) @ parts
        >>> atoms, error = semi_nmf(x, 2, seed=0)
        >>> bool((atoms @ parts.T).amax(0).min() > 0.99), bool(error[-1] < 1e-4)
        (True, True)
    """
    count = min(len(check_matrix("x", x)), max(rows, 1))
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}; expected 1 <= k <= {count}, the number of rows that are fitted")
    if passes < 0 or chunk < 1 or rows < 1 or not tol >= 0:
        raise ValueError(f"passes, chunk, rows, tol are {passes}, {chunk}, {rows}, {tol}; expected >= 0, 1, 1, 0")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        fitted = _draw(x, count, seed).to(compute_dtype(x))
        energy = float(fitted.double().square().sum())
        if not energy < torch.inf:
            raise ValueError("x has a NaN or infinite value; expected finite values")
        atoms = spherical_kmeans(fitted, k, seed=seed, chunk=chunk)[0]
        weights = fitted.new_zeros(count, k)
        _update_weights(fitted, weights, atoms, _FIRST_SWEEPS, chunk)
        errors = [_error(fitted, weights, atoms, chunk) / max(energy, 1e-30)]
        for _ in range(passes):
            before = atoms
            atoms = _update_atoms(fitted, weights, atoms, chunk)
            _update_weights(fitted, weights, atoms, _SWEEPS, chunk)
            errors.append(_error(fitted, weights, atoms, chunk) / max(energy, 1e-30))
            if errors[-1] > errors[-2]:  # by rounding: nothing is left to gain
                atoms = before
                errors.pop()
                break
            if errors[-2] - errors[-1] <= tol:
                break
    return atoms, torch.tensor(errors, dtype=torch.float64)


def _draw(x: Tensor, count: int, seed: int) -> Tensor:
    """That many rows of x, in their order."""
    if count == len(x):
        return x
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return x[rows.to(x.device)]


def _update_weights(x: Tensor, weights: Tensor, atoms: Tensor, sweeps: int, chunk: int) -> None:
    """Coordinate descent on the weights of unit atoms, in place: each weight at its optimum >= 0, given the others."""
    gram = atoms @ atoms.T
    for part in slices(len(x), chunk):
        pull = atoms @ x[part].T  # [K, n]: the pictures of a weight lie side by side
        own = weights[part].T.contiguous()
        for _ in range(sweeps):
            for some in slices(len(atoms), _BLOCK):
                left = pull[some] - gram[some] @ own
                for each in range(some.start, some.stop):
                    step = (own[each] + left[each - some.start]).clamp(min=0) - own[each]
                    own[each] += step
                    left.addr_(gram[some, each], step, alpha=-1)
        weights[part] = own.T


def _update_atoms(x: Tensor, weights: Tensor, atoms: Tensor, chunk: int) -> Tensor:
    """The atoms that fit the weights best, by least squares; those are brought to unit norm, and the weights to it.

    An atom without weight is free: it becomes what is left of one of the pictures that are explained worst.
    """
    length = weights.double().square().sum(dim=0).sqrt()
    used = length > 0
    some = weights[:, used] / length[used].to(weights.dtype)
    gram = torch.zeros(some.shape[1], some.shape[1], dtype=torch.float64, device=x.device)
    pull = torch.zeros(some.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    left = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for part in slices(len(x), chunk):
        gram += some[part].double().T @ some[part].double()
        pull += some[part].double().T @ x[part].double()
        left[part] = (x[part] - weights[part] @ atoms).square().sum(dim=1)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) or float(factor.diagonal().min()) < 1e-5:  # weights that say the same of all pictures
        fitted = torch.linalg.pinv(gram, hermitian=True) @ pull
    else:
        fitted = torch.cholesky_solve(pull, factor)
    fitted = fitted / length[used, None]
    norm = fitted.norm(dim=1)
    weights[:, used] *= norm.to(weights.dtype)
    found = torch.zeros_like(atoms)
    found[used] = normalize(fitted, dim=1).to(atoms.dtype)
    if not bool(used.all()):
        free = (~used).nonzero()[:, 0]
        worst = left.topk(min(len(x), len(free))).indices
        found[free[: len(worst)]] = normalize(x[worst] - weights[worst] @ found, dim=1)
    return found


def _error(x: Tensor, weights: Tensor, atoms: Tensor, chunk: int) -> float:
    """The sum of what is left of all pictures, squared."""
    return sum(float((x[part] - weights[part] @ atoms).double().square().sum()) for part in slices(len(x), chunk))
