"""The name-tied head: a linear head that may only use what the concepts' names say of the classes.

    W[c, k] = s * gain_k * A[k, c]        gain_k >= 0

``A`` comes from text alone (``cbm.metrics.reader``). The labels set one non-negative gain per concept and one bias per
class, and nothing else, so a head cannot re-label a direction: it can only listen more to some names than to others.

    F(gain, b) = mean_i cross-entropy(s A^T diag(gain) z_i + b, y_i) + lam / N * (|gain - 1|^2 + |b|^2)

is convex with a curvature of at least ``2 lam / N``, which turns its gradient into a certificate. As ``lam`` grows,
every gain becomes 1 and the head becomes the reader, whom no label has taught; the temperature s is that of the reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbm.kernels.shapes import check_labels, check_matrix
from cbm.solvers import LinearScores, fit_scale

_ROWS_FOR_SCALE = 16384  # plenty for one number


@dataclass(frozen=True)
class NameTied:
    """A solved name-tied head.

    Attributes:
        gain: factor [K] on what every name says, 0 or more; exactly 0 for a name that is not listened to.
        bias: biases [C].
        scale: temperature s of the reader.
        loss: objective F.
        gap: F is at most this much above its minimum (in nats, computed in float64).
    """

    gain: Tensor
    bias: Tensor
    scale: float
    loss: float
    gap: float

    def weight(self, says: Tensor) -> Tensor:
        """Weights [C, K] of the scores the head was solved on; ``says`` [K, C] is what the names say."""
        return self.scale * (self.gain[:, None] * says).T


def solve_name_tied(
    scores: LinearScores,
    y: Tensor,
    says: Tensor,
    *,
    lam: float = 0.3,
    scale: float | None = None,
    tol: float = 1e-6,
    max_iter: int = 5000,
) -> NameTied:
    """Fit the gains of a name-tied head by projected quasi-Newton steps (L-BFGS-B; Byrd et al., SIAM J. Sci. Comput.
    1995) until its certificate is at most ``tol``, or rounding stops it.

    Args:
        scores: scores z [N, K] of the training images on the concepts.
        y: class indices [N].
        says: what every name says of every class, A [K, C].
        lam: strength of the pull towards the reader.
        scale: temperature s; by default that of the reader, which is near 0 for one who cannot tell the classes. To
            compare names with exchanged ones, give both the same.
        tol: how far above its minimum the objective may be, in nats.
        max_iter: iterations, at most.

    Raises:
        ValueError: a shape does not fit, or ``lam`` is not above 0.

    Example:
        >>> z = torch.eye(4).repeat(25, 1)  # each image shows one of four words; the last word misleads
        >>> y, says = torch.tensor([0, 0, 1, 1]).repeat(25), torch.tensor([[1.0, -1], [1, -1], [-1, 1], [1, -1]])
        >>> head = solve_name_tied(LinearScores(z, mean=torch.zeros(4), std=torch.ones(4)), y, says)
        >>> bool(head.gain[3] == 0) and head.gap < 1e-6
        True
    """
    from scipy.optimize import minimize

    check_matrix("says", says)
    check_labels(y, len(scores), says.shape[1])
    if len(says) != scores.count:
        raise ValueError(f"says has {len(says)} rows, expected one for each of {scores.count} concepts")
    if not lam > 0:
        raise ValueError(f"lam is {lam}; expected a number > 0")
    says = says.to(scores.device, scores.dtype)
    scale = _reader_scale(scores, y, says) if scale is None else scale
    count, curvature = len(says), 2 * lam / len(scores)

    def objective(point: np.ndarray, scores: LinearScores = scores) -> tuple[float, np.ndarray]:
        gain, bias = torch.from_numpy(point).to(scores.device).split([count, says.shape[1]])
        weight = scale * (gain[:, None] * says.to(gain)).T
        loss, by_weight, by_bias = _loss(scores, y, weight.to(scores.dtype), bias.to(scores.dtype))
        off = torch.cat([gain - 1, bias])
        slope = torch.cat([scale * (by_weight.double() * says.T.double()).sum(dim=0), by_bias.double()])
        loss += 0.5 * curvature * float(off.square().sum())
        return loss, (slope + curvature * off).cpu().numpy()

    exact = scores.to(torch.float64)
    lowest = np.r_[np.zeros(count), np.full(says.shape[1], -np.inf)]
    point = np.r_[np.ones(count), np.zeros(says.shape[1])]
    bounds = [(0 if np.isfinite(low) else None, None) for low in lowest]
    gap = np.inf
    for precise in (scores, exact):  # the second starts where rounding stopped the first
        found = minimize(objective, point, (precise,), "L-BFGS-B", True, bounds=bounds,
                         options={"maxcor": 20, "maxiter": max_iter, "maxfun": 2 * max_iter, "ftol": 1e-15,
                                  "gtol": 1e-3 * (curvature * tol) ** 0.5})  # fmt: skip
        point = np.maximum(found.x, lowest)
        loss, slope = objective(point, exact)
        gap = _certificate(point, slope, lowest, curvature)
        if gap <= tol:
            break
    gain, bias = torch.from_numpy(point).to(says).split([count, says.shape[1]])
    return NameTied(gain, bias, scale, loss, gap)


def _certificate(point: np.ndarray, slope: np.ndarray, lowest: np.ndarray, curvature: float) -> float:
    """How far a function of at least this curvature can be above its minimum over ``point >= lowest``.

    It is the largest fall of the quadratic that bounds it from below, coordinate by coordinate.
    """
    step = np.maximum(lowest - point, -slope / curvature)
    return float(-(slope * step + 0.5 * curvature * step**2).sum())


def _loss(scores: LinearScores, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
    """Mean cross-entropy, and its gradients [C, K] and [C] by the weights and biases, in one pass over the rows."""
    vectors, offset = scores.vectors(weight, bias)
    products, sums, loss = torch.zeros_like(vectors), torch.zeros_like(offset), 0.0
    for rows in scores.chunks(len(vectors)):
        part, labels = scores.part(rows), y[rows, None].to(scores.device)
        p = scores.logits(part, vectors, offset).log_softmax(dim=1)
        loss -= float(p.gather(1, labels).sum(dtype=torch.float64))
        p = p.exp_().scatter_add_(1, labels, p.new_full((), -1.0).expand(labels.shape))
        scores.collect(products, p, part)
        sums += p.sum(dim=0)
    n = len(scores)
    return loss / n, scores.pull(products / n, sums / n), sums / n


def _reader_scale(scores: LinearScores, y: Tensor, says: Tensor) -> float:
    """The temperature of the reader, who listens to every name alike."""
    rows = torch.arange(min(len(scores), _ROWS_FOR_SCALE)) * len(scores) // min(len(scores), _ROWS_FOR_SCALE)
    vectors, offset = scores.vectors(says.T, says.new_zeros(says.shape[1]))
    logits = torch.cat([scores.logits(scores.part(part), vectors, offset) for part in rows.split(4096)])
    spread = float(logits.std()) or 1.0
    return fit_scale(logits.cpu(), y[rows].cpu(), 1 / spread)
