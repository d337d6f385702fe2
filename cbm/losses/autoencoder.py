"""Objectives of dictionaries in training (``cbm.layers.autoencoder`` says what the kinds are):

    |x~ - x^|^2                                  summed over D, mean over the batch
    + |e - e^|^2 / 32                            AuxK: what dead units make of the rest e of the pictures (Gao et al.,
                                                 "Scaling and evaluating sparse autoencoders", ICLR 2025, A.2)
    + penalty * sum_k h_k                        relu
    + penalty * (number of units that fire)      jumprelu

The rest is not differentiated. The dead units' weights are taken without their offsets and are not cut off at 0, and
offsets below 0 are drawn up to it: a unit that lies below the others would get no gradient, or learn to explain by a
negative weight that it never has. ``matryoshka`` takes the mean of the first term over the first K / 16, K / 8, ..., K
units.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

AUX_WEIGHT = 1 / 32
PREFIXES = (16, 8, 4, 2, 1)
"""The units that must reconstruct by themselves: the first K divided by these."""
STEER = 0.02
"""How fast the penalty follows the number of units that fire: its logarithm moves by so much per step, at most."""
BANDWIDTH = 0.03
"""Width of the window around a threshold in which it gets a gradient; pictures have length 1."""
MEMORY = 0.01
"""Weight of the newest batch in the threshold of ``batch_topk``."""


class InTraining(Protocol):
    """What the objectives ask of a dictionary in training (``cbm.layers.autoencoder.Autoencoder``)."""

    kind: str
    k: int
    training: bool
    encoder: nn.Parameter
    offset: nn.Parameter
    bias: nn.Parameter
    step: Tensor
    silent: Tensor
    threshold: Tensor
    penalty: Tensor
    steered: bool
    replacement: tuple[Tensor, Tensor] | None

    def __len__(self) -> int: ...

    @property
    def now(self) -> int:
        """How many units of a picture may fire."""
        ...

    def atoms(self) -> Tensor:
        """The atoms ``[K, D]``."""
        ...

    def away(self, x: Tensor) -> Tensor:
        """Pictures from the mean."""
        ...

    def scores(self, away: Tensor) -> Tensor:
        """Weights before the gate."""
        ...

    def strongest(self, away: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest positive weights and their units."""
        ...

    def fixed(self) -> Tensor:
        """Learned thresholds ``[K]``."""
        ...


class Jump(torch.autograd.Function):
    """``h`` where ``h > threshold``, else 0, and whether it is above; with the straight-through gradients of
    Rajamanoharan et al., 2024, eq. 11 and 12: a rectangular window of width ``BANDWIDTH``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[B, K]`` and thresholds ``[K]`` to weights and counts ``[B, K]``."""
        ctx.save_for_backward(h, threshold)
        above = h > threshold
        return h.where(above, 0.0), above.to(h.dtype)

    @staticmethod
    def backward(ctx: Any, of_value: Tensor, of_count: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of weights and thresholds."""
        h, threshold = ctx.saved_tensors
        window = ((h - threshold).abs() < BANDWIDTH / 2).to(h.dtype) / BANDWIDTH
        of_threshold = -(threshold * window * of_value + window * of_count).sum(dim=0)
        return of_value * (h > threshold), of_threshold


def autoencoder_loss(model: InTraining, x: Tensor, *, dead_after: int, aux: int = 0) -> Tensor:
    """The training loss of a batch. It counts how long every unit has been silent, and steers penalty and threshold.

    Args:
        model: the dictionary in training.
        x: features ``[B, D]``.
        dead_after: pictures without firing after which a unit is dead.
        aux: dead units per picture that are given the rest to explain; 0 for none.
    """
    away = model.away(x)
    said, fired, extra = CODES[model.kind](model, away)
    loss = _squared(away - said) if model.kind != "matryoshka" else _nested(model, away)
    if model.training:
        _count_silence(model, fired, len(x))
        model.step.add_(1)
    loss = loss + extra
    dead = model.silent > dead_after
    if aux and bool(dead.any()):
        loss = loss + AUX_WEIGHT * _auxiliary(model, away, (away - said).detach(), dead.nonzero().flatten(), aux)
    return loss


def reconstruction_error(model: InTraining, x: Tensor) -> Tensor:
    """Mean squared error of a batch ``[B, D]`` from the k strongest units of every picture: the same for all kinds."""
    away = model.away(x)
    values, units = model.strongest(away)
    return _squared(away - _decode(model.atoms(), values, units) - model.bias)


def validation_error(model: InTraining, x: Tensor) -> Tensor:
    """``reconstruction_error``, and how far more units than k fire on average, from a tenth more on, as a share of k:
    while the penalty is steered, a dictionary that explains more by more units is no better."""
    error = reconstruction_error(model, x)
    if not model.steered:
        return error
    scores = model.scores(model.away(x))
    count = (scores > (model.fixed() if model.kind == "jumprelu" else 0.0)).sum() / len(x)
    return error + (count / model.k - 1.1).clamp(min=0)


def _squared(rest: Tensor) -> Tensor:
    return rest.square().sum(dim=1).mean()


def _decode(atoms: Tensor, values: Tensor, units: Tensor) -> Tensor:
    return embedding_bag(units, atoms, per_sample_weights=values, mode="sum")


def _strongest(model: InTraining, away: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """What the k strongest units say ``[B, D]``, which of all units fire ``[K]``, and no penalty."""
    values, units = model.strongest(away)
    return _decode(model.atoms(), values, units) + model.bias, _fired(units[values > 0], len(model)), 0.0


def _fired(units: Tensor, count: int) -> Tensor:
    return torch.bincount(units.flatten(), minlength=count) > 0


def _batch_topk(model: InTraining, away: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """The same of the k B largest weights of the batch."""
    weights = model.scores(away).relu()
    most = min(model.now * len(away), weights.numel())
    passed = weights.detach().flatten().topk(most).indices  # exactly so many, however many are equal
    kept = torch.zeros_like(weights).flatten().index_fill(0, passed, 1.0).view_as(weights)
    weights = weights * kept
    positive = weights.detach()[weights > 0]
    if model.training and len(positive):
        least, known = positive.min(), model.threshold[0] >= 0
        model.threshold.copy_(torch.where(known, torch.lerp(model.threshold, least, MEMORY), least))
    return weights @ model.atoms() + model.bias, (weights > 0).any(dim=0), 0.0


def _relu(model: InTraining, away: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """The same of all positive weights, with their sum as penalty."""
    weights = model.scores(away).relu()
    above = weights > 0
    _steer(model, above.sum() / len(away))
    return weights @ model.atoms() + model.bias, above.any(dim=0), model.penalty.clone() * weights.sum(dim=1).mean()


def _jumprelu(model: InTraining, away: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """The same of the weights above their thresholds, with their number as penalty."""
    weights, above = Jump.apply(model.scores(away), model.fixed())
    count = above.sum(dim=1).mean()
    _steer(model, count.detach())
    return weights @ model.atoms() + model.bias, (above > 0).any(dim=0), model.penalty.clone() * count


CODES = {
    "topk": _strongest,
    "matryoshka": _strongest,
    "archetypal": _strongest,
    "batch_topk": _batch_topk,
    "relu": _relu,
    "jumprelu": _jumprelu,
}


def _steer(model: InTraining, count: Tensor) -> None:
    """Raise the penalty while more units fire on average than may, lower it while fewer do."""
    if model.training and model.steered:
        miss = (count.clamp(min=1e-3) / model.now).log().clamp(-1.0, 1.0)
        model.penalty.mul_((STEER * miss).exp()).clamp_(1e-8, 1e4)


def _nested(model: InTraining, away: Tensor) -> Tensor:
    """Mean over the prefixes of what their units alone leave unsaid."""
    values, units = model.strongest(away)
    atoms = model.atoms()
    lengths = sorted({max(math.ceil(len(model) / part), model.now) for part in PREFIXES})
    errors = [
        _squared(away - _decode(atoms, values.where(units < length, 0.0), units) - model.bias) for length in lengths
    ]
    return torch.stack(errors).mean()


def _count_silence(model: InTraining, fired: Tensor, pictures: int) -> None:
    """Count the pictures since every unit last fired, over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        fired = fired.int()
        torch.distributed.all_reduce(fired, torch.distributed.ReduceOp.MAX)
        pictures *= torch.distributed.get_world_size()
    model.silent.add_(pictures).masked_fill_(fired.bool(), 0)


def _auxiliary(model: InTraining, away: Tensor, rest: Tensor, dead: Tensor, most: int) -> Tensor:
    """How much of the rest the dead units do not explain either, and how far their offsets are below 0."""
    scores = (away - model.bias) @ model.encoder[dead].T
    values, places = scores.topk(min(most, len(dead)), dim=1)
    return _squared(rest - _decode(model.atoms(), values, dead[places])) - model.offset[dead].clamp(max=0).sum()


@torch.no_grad()
def replace_dead(model: InTraining, x: Tensor, *, dead_after: int) -> None:
    """Choose pictures that dead units are to start from, the worse explained the likelier (Bricken et al., 2023): the
    optimizer carries it out after its step.

    Args:
        model: the dictionary in training.
        x: features ``[B, D]``.
        dead_after: pictures without firing after which a unit is dead.
    """
    dead = (model.silent > dead_after).nonzero().flatten()[: len(x)]
    if not len(dead):
        return
    away = model.away(x)
    values, units = model.strongest(away)
    error = (away - _decode(model.atoms(), values, units) - model.bias).square().sum(dim=1)
    rows = torch.multinomial(error.square().clamp(min=1e-12), len(dead))
    model.replacement = dead, away[rows] - model.bias
