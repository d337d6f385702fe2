"""Learn concept directions in a backbone's feature space that reproduce a teacher's concept scores.

Label-free CBM (Oikarinen et al., ICLR 2023), equation 2: concept k gets the row w_k for which q = X w_k is most similar
to the teacher's activations p = T t_k,

    sim(w_k) = <q'^3, p'^3> / (|q'^3| |p'^3|)        q' = q - mean(q), p' = p - mean(p), cubed elementwise

The cubes weigh the images on which the concept is strongest. The similarity does not depend on the scale of w_k, and
every concept is a problem of its own: early stopping is per concept too, unlike in the published code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix, compute_dtype

BATCH = 50_000  # rows per step, drawn anew from more rows than that
RIDGES = (1.0, 1e-1, 1e-2, 1e-3)  # in units of the features' mean variance
_PROGRESS = 1e-6  # a smaller improvement of the validation similarity does not count
_HISTORY = 8  # pairs kept by L-BFGS
_CHUNK = 8192  # rows per partial product of the covariance


def cos_cubed(q: Tensor, p: Tensor) -> Tensor:
    """Cosine of the cubed, centred columns.

    Args:
        q: First matrix ``[N, K]``.
        p: Second matrix ``[N, K]``.

    Returns:
        Cosines ``[K]`` in -1 .. 1; exactly 0, with a gradient of 0, if a column of either matrix is constant.
    """
    check_matrix("q", q)
    check_matrix("p", p, *q.shape)
    dtype = compute_dtype(q, p)
    return (_cubes(q.to(dtype)) * _cubes(p.to(dtype))).sum(0)


def _cubes(value: Tensor) -> Tensor:
    """Cubes of the standardised columns, scaled to unit norm."""
    cubes = _standardise(value)[0].pow(3)
    return cubes / _norm(cubes)


def _standardise(value: Tensor) -> tuple[Tensor, Tensor]:
    """Columns with mean 0 and variance 1 (constant ones: 0), and the factor 1 / standard deviation [K].

    Without it the cubes of cosines that vary by 1e-3 would underflow. The factor is a constant to autograd: what is
    made of the columns does not depend on it.
    """
    centred = value - value.mean(0)
    with torch.no_grad():
        deviation = centred.square().mean(0).sqrt()
        constant = deviation <= 16 * torch.finfo(value.dtype).eps * value.abs().amax(0)
        factor = deviation.reciprocal().masked_fill(constant, 0)
    return centred * factor, factor


def _norm(cubes: Tensor) -> Tensor:
    return cubes.square().sum(0).clamp(min=1e-30).sqrt()


def _similarity(weight: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """Similarity [k] of ``x @ weight.T`` and activations whose unit-norm cubes are ``target`` [N, k]."""
    return (_cubes(x @ weight.T) * target).sum(0)


def _loss(weight: Tensor, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """1 - similarity [k] and its gradient [k, D]."""
    q, factor = _standardise(x @ weight.T)
    squares = q.square()
    cubes = q.mul_(squares)
    norm = _norm(cubes)
    similarity = cubes.div_(norm).mul(target).sum(0)
    slope = cubes.mul_(similarity).sub_(target).mul_(squares).mul_(3 * factor / norm)
    return 1 - similarity, slope.sub_(slope.mean(0)).T @ x


def fit_projection(
    x: Tensor,
    teacher_x: Tensor,
    concepts: Tensor,
    *,
    val_x: Tensor,
    val_teacher_x: Tensor,
    start: Literal["ridge", "random"] = "ridge",
    steps: int = 1000,
    lr: float = 1e-3,
    patience: int = 1,
    validate_every: int | None = None,
    block: int = 512,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Learn a direction for every concept; each keeps the weights with its best validation similarity.

    Args:
        x: Backbone features ``[N, D]``.
        teacher_x: The teacher's features of the same images ``[N, E]``.
        concepts: The teacher's concept directions ``[K, E]``; the activations are ``teacher_x @ concepts.T``.
        val_x: Backbone features ``[V, D]`` of validation images.
        val_teacher_x: The teacher's features ``[V, E]`` of validation images.
        start: "ridge": start from the ridge regression of the activations on ``x`` (the penalty is chosen per concept
            on the validation images) and use preconditioned L-BFGS. "random": start from PyTorch's default
            initialisation and use Adam, as published (with ``patience=0``).
        steps: Largest number of steps.
        lr: Learning rate of Adam; L-BFGS needs none.
        patience: Number of validations in a row without improvement after which a concept may still continue.
        validate_every: Steps between validations; by default 1 for "ridge" and the published 50 for "random".
        block: Number of concepts solved together; memory is O((N + V) * block), counting at most `BATCH` rows of N.
        seed: Random seed for the initialisation, and for the batches if ``x`` has more than `BATCH` rows.

    Returns:
        W ``[K, D]``, float32, rows of unit norm (zero where the activations or ``x`` do not vary), and the similarity
        of every row on the validation images ``[K]``.

    Raises:
        ValueError: If a shape does not fit or an option is out of range.
    """
    check_matrix("x", x)
    check_matrix("teacher_x", teacher_x, rows=len(x))
    check_matrix("concepts", concepts, columns=teacher_x.shape[1])
    check_matrix("val_x", val_x, columns=x.shape[1])
    check_matrix("val_teacher_x", val_teacher_x, rows=len(val_x), columns=teacher_x.shape[1])
    if start not in ("ridge", "random"):
        raise ValueError(f"start is {start!r}; expected 'ridge' or 'random'")
    every = validate_every if validate_every is not None else (1 if start == "ridge" else 50)
    if min(steps, patience) < 0 or min(every, block) < 1 or not lr > 0:
        raise ValueError(
            f"steps={steps}, patience={patience}, validate_every={validate_every}, block={block}, lr={lr}; "
            "expected steps and patience >= 0 and the others > 0"
        )
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        pictures = _Pictures(x, teacher_x)
        val_x, val_teacher_x = val_x.float() - pictures.mean, val_teacher_x.float()
        if start == "ridge":
            regression = _Regression(pictures)
        bound = x.shape[1] ** -0.5
        random = torch.rand(len(concepts), x.shape[1], generator=torch.Generator().manual_seed(seed))
        random = random.mul_(2 * bound).sub_(bound).to(x.device)
        fitted = []
        for own, weight in zip(concepts.float().split(block), random.split(block)):
            target = _cubes(val_teacher_x @ own.T)
            if start == "ridge":
                weight = regression.best(own, val_x, target)
                solver: _Lbfgs | _Adam = _Lbfgs(weight, regression.eigenvalues, regression.axes)
            else:
                solver = _Adam(weight, lr)
            pictures.rewind(seed)
            fitted.append(_train(solver, pictures, own, val_x, target, steps, patience, every))
    weight, similarity = (torch.cat(parts) for parts in zip(*fitted))
    return weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-30), similarity


def _train(
    solver: _Lbfgs | _Adam,
    pictures: _Pictures,
    concepts: Tensor,
    val_x: Tensor,
    val_target: Tensor,
    steps: int,
    patience: int,
    every: int,
) -> tuple[Tensor, Tensor]:
    """The best weights [k, D] and similarities [k] of one block; concepts that have stopped leave the computation."""
    kept, best = solver.weight.clone(), _similarity(solver.weight, val_x, val_target)
    active = torch.arange(len(concepts), device=kept.device)
    failures = torch.zeros_like(active)
    for step in range(steps):
        if step == 0 or (pictures.drawn and step % solver.same_batch == 0):
            x, teacher_x = pictures.batch()
            target = _cubes(teacher_x @ concepts[active].T)
            solver.restart()
        solver.step(x, target)
        if (step + 1) % every and step + 1 < steps:
            continue
        value, before = _similarity(solver.weight, val_x, val_target), best[active]
        better = value > before
        kept[active[better]], best[active[better]] = solver.weight[better], value[better]
        failures = torch.where(value > before + _PROGRESS, 0, failures + 1)
        going = failures <= patience
        if not going.any():
            break
        if not going.all():
            active, failures = active[going], failures[going]
            target, val_target = target[:, going], val_target[:, going]
            solver.keep(going)
    return kept, best


class _Pictures:
    """Centred features and the teacher's, of all training images or of a batch drawn from them."""

    def __init__(self, x: Tensor, teacher_x: Tensor):
        self.x, self.teacher_x = x, teacher_x
        self.mean = (sum(part.double().sum(0) for part in x.split(_CHUNK)) / len(x)).float()
        self.drawn = len(x) > BATCH
        self._all = None if self.drawn else (x.float() - self.mean, teacher_x.float())

    def rewind(self, seed: int) -> None:
        """Draw the same batches again."""
        self._generator = torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Features [n, D] and the teacher's [n, E], float32."""
        if self._all is not None:
            return self._all
        rows = torch.randperm(len(self.x), generator=self._generator)[:BATCH].to(self.x.device)
        return self.x[rows].float() - self.mean, self.teacher_x[rows].float()


class _Regression:
    """Ridge regression of any activations from one eigendecomposition of the features' covariance."""

    def __init__(self, pictures: _Pictures):
        x, teacher_x = pictures.x, pictures.teacher_x
        covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        products = torch.zeros(x.shape[1], teacher_x.shape[1], dtype=torch.float64, device=x.device)
        offset = teacher_x[0].float()  # most of the common vector of the teacher's features
        for part, teacher in zip(x.split(_CHUNK), teacher_x.split(_CHUNK)):
            part = part.float() - pictures.mean
            covariance += part.T @ part
            products += part.T @ (teacher.float() - offset)
        self.eigenvalues, self.axes = torch.linalg.eigh(covariance / len(x))
        self.eigenvalues.clamp_(min=0)
        self._products = self.axes.T @ products / len(x)

    def best(self, concepts: Tensor, val_x: Tensor, val_target: Tensor) -> Tensor:
        """Weights [k, D] with, for every concept, the penalty that serves it best on the validation images."""
        spectra, unit = self._products @ concepts.double().T, self.eigenvalues.mean().clamp(min=1e-30)
        fits = [(self.axes @ (spectra / (self.eigenvalues + r * unit)[:, None])).T.float() for r in RIDGES]
        values = torch.stack([_similarity(fit, val_x, val_target) for fit in fits])
        return torch.stack(fits)[values.argmax(0), torch.arange(len(concepts), device=values.device)]


class _Adam:
    """Adam (Kingma and Ba, 2015) on independent rows."""

    same_batch = 1

    def __init__(self, weight: Tensor, lr: float):
        self.weight, self.lr = weight, lr
        self.first, self.second, self.count = torch.zeros_like(weight), torch.zeros_like(weight), 0

    def restart(self) -> None:
        """Moments are kept from batch to batch."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.weight, self.first, self.second = self.weight[rows], self.first[rows], self.second[rows]

    def step(self, x: Tensor, target: Tensor) -> None:
        """One update of every row."""
        gradient = _loss(self.weight, x, target)[1]
        self.count += 1
        self.first = torch.lerp(self.first, gradient, 0.1)
        self.second = torch.lerp(self.second, gradient.square(), 0.001)
        size = (self.second / (1 - 0.999**self.count)).sqrt_().add_(1e-8)
        self.weight = self.weight - self.lr / (1 - 0.9**self.count) * self.first / size


class _Lbfgs:
    """L-BFGS (Nocedal and Wright, algorithm 7.4) on independent rows, each with its own step length.

    The inverse Hessian starts from (cov(x) + mean variance)^-1. A row whose candidate does not descend stays where it
    is and tries a shorter step in the next one.
    """

    same_batch = 10

    def __init__(self, weight: Tensor, eigenvalues: Tensor, axes: Tensor):
        deviation = ((weight.double() @ axes).square() @ eigenvalues).sqrt().float()
        self.weight = weight / deviation.clamp(min=1e-30)[:, None]
        self.axes, self.inverse = axes.float(), (eigenvalues + eigenvalues.mean().clamp(min=1e-30)).reciprocal().float()

    def restart(self) -> None:
        """Forget the curvature of the batch before."""
        self.loss: Tensor | None = None
        self.gradient = torch.zeros_like(self.weight)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.length = torch.ones_like(self.weight[:, 0])
        self.gamma = torch.full_like(self.length, 1 / 3)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        assert self.loss is not None
        self.weight, self.loss, self.gradient = self.weight[rows], self.loss[rows], self.gradient[rows]
        self.pairs = [(change[rows], turn[rows], weight[rows]) for change, turn, weight in self.pairs]
        self.length, self.gamma = self.length[rows], self.gamma[rows]

    def step(self, x: Tensor, target: Tensor) -> None:
        """One evaluation: every row moves or shortens its step."""
        if self.loss is None:
            self.loss, self.gradient = _loss(self.weight, x, target)
        direction = -self._newton(self.gradient)
        candidate = self.weight + self.length[:, None] * direction
        loss, gradient = _loss(candidate, x, target)
        descends = loss <= self.loss + 1e-4 * self.length * (direction * self.gradient).sum(1)
        change, turn = candidate - self.weight, gradient - self.gradient
        product = (change * turn).sum(1)
        curved = descends & (product > 0)
        inverse = product.reciprocal().masked_fill(~curved, 0)
        self.pairs = [*self.pairs, (change, turn, inverse)][-_HISTORY:]
        ratio = product / (turn * self._precondition(turn)).sum(1).clamp(min=1e-30)
        self.gamma = torch.where(curved, ratio, self.gamma)
        self.weight = torch.where(descends[:, None], candidate, self.weight)
        self.gradient = torch.where(descends[:, None], gradient, self.gradient)
        self.loss, self.length = torch.where(descends, loss, self.loss), torch.where(descends, 1, 0.4 * self.length)

    def _precondition(self, gradient: Tensor) -> Tensor:
        return (gradient @ self.axes * self.inverse) @ self.axes.T

    def _newton(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times ``gradient``; pairs with weight 0 do nothing."""
        result, weights = gradient, []
        for change, turn, inverse in reversed(self.pairs):
            weights.append(inverse * (change * result).sum(1))
            result = result - weights[-1][:, None] * turn
        result = self._precondition(result) * self.gamma[:, None]
        for (change, turn, inverse), weight in zip(self.pairs, reversed(weights)):
            result = result + (weight - inverse * (turn * result).sum(1))[:, None] * change
        return result
