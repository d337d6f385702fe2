"""Does a correction hold for labelled images that it was not made with? The test that every editor passes.

A correction is made again without some of the labelled images, and decides about those. The images are compared one by
one: the log-loss of the right class before and after, every class weighing the same. Editors change how certain a model
is, so both sides are taken at the temperature that suits the other images best; a correction that only makes a model
less certain gains nothing. The differences are tested by flipping their signs (Fisher, "The Design of Experiments",
1935): if the correction neither helped nor harmed, each would be as likely as its opposite. A correction whose gain is
not significant at 5 % is not made. Images of one subject (a patient, a slide) are left out together and count as one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.05
LEAST = 3  # labelled images per class: with fewer nothing can be said of a correction
FOLDS = 20  # more labelled images than that are left out several at a time
TEMPERATURES = (0.0, *torch.logspace(-4, 2, 16, base=2.0, dtype=torch.float64).tolist())
EXACT = 36  # images whose signs are all flipped; with more, signs are drawn
DRAWN = 50_000


@dataclass(frozen=True)
class Judgement:
    """What a correction does for labelled images that it was made without.

    Attributes:
        n: number of labelled images.
        p: one-sided p-value of "the correction does not lower the log-loss".
        loss: mean log-loss before and after, every class weighing the same.
        accuracy: balanced accuracy before and after; reported, not tested.
        accepted: whether the correction is made.
        reason: the judgement in words.
    """

    n: int
    p: float
    loss: tuple[float, float]
    accuracy: tuple[float, float]
    accepted: bool
    reason: str


def judge(
    before: Tensor, after: Tensor, y: Tensor, level: float = LEVEL, subjects: np.ndarray | None = None
) -> Judgement:
    """Judge a correction by the logits of images that it was made without.

    Args:
        before: logits ``[n, C]`` of the model as it was.
        after: logits ``[n, C]`` of corrections made without the image.
        y: class indices ``[n]``.
        level: largest p-value of a correction that is made.
        subjects: subjects ``[n]`` of the images, if they are known.

    Example:
        >>> import torch
        >>> y = torch.arange(12) % 3
        >>> right, wrong = 4.0 * torch.eye(3)[y], 4.0 * torch.eye(3)[(y + 1) % 3]
        >>> judge(wrong, right, y).accepted, judge(right, wrong, y).accepted, judge(right, right, y).p
        (True, False, 1.0)
    """
    return _judgement(before, after, y, sign_flip_p(by_subject(loss_gains(before, after, y), subjects)), level)


def judge_both(
    before: Tensor,
    after: tuple[Tensor, Tensor],
    y: Tensor,
    level: float = LEVEL,
    subjects: np.ndarray | None = None,
) -> list[Judgement]:
    """Judge two corrections together: neither is made by chance more often than ``level``, and nor is one of the two.

    The larger of the two sums, each in units of its own differences, must be significant (Westfall and Young,
    "Resampling-based multiple testing", 1993), and then each correction by itself: closed testing.

    Args:
        before: logits ``[n, C]`` of the model as it was.
        after: logits ``[n, C]`` of either correction, made without the image.
        y: class indices ``[n]``.
        level: largest p-value of a correction that is made.
        subjects: subjects ``[n]`` of the images, if they are known.
    """
    gains = torch.stack([by_subject(loss_gains(before, z, y), subjects) for z in after])
    either = largest_sum_p(gains)
    return [_judgement(before, z, y, max(either, sign_flip_p(d)), level) for z, d in zip(after, gains)]


def loss_gains(before: Tensor, after: Tensor, y: Tensor) -> Tensor:
    """By how much a correction lowers the log-loss of every image, ``[n]``; every class weighs the same."""
    first, then = (tempered_losses(in_units(z), y) for z in (before, after))
    return balanced_weights(y) * (first - then)


def by_subject(gains: Tensor, subjects: np.ndarray | None) -> Tensor:
    """Differences ``[n]`` of images as sums over their subjects, if these are known."""
    if subjects is None:
        return gains
    number = torch.from_numpy(np.unique(subjects, return_inverse=True)[1].reshape(-1))
    return gains.new_zeros(int(number.max()) + 1).index_add_(0, number, gains)


def _judgement(before: Tensor, after: Tensor, y: Tensor, p: float, level: float) -> Judgement:
    share = balanced_weights(y)
    losses = [share * tempered_losses(in_units(z), y) for z in (before, after)]
    hits = [share * (z.argmax(dim=1) == y) for z in (before, after)]
    n, accepted = len(y), p <= level
    right = [int((part > 0).sum()) for part in hits]
    told = f"left out, {right[0]} of {n} labelled pictures are right before, {right[1]} after"
    reason = f"{told} (p = {p:.2g})" if accepted else f"no edit: {told}, which may be chance (p = {p:.2g})"
    loss, accuracy = ((float(a.sum()), float(b.sum())) for a, b in (losses, hits))
    return Judgement(n, p, loss, accuracy, accepted, reason)


def too_few(y: Tensor) -> str | None:
    """Why nothing can be said of corrections made with labelled images of these classes ``[n]``; None if it can."""
    present = len(y.unique())
    if len(y) >= LEAST * present:
        return None
    return f"no edit: {len(y)} labelled pictures of {present} classes are too few to check one ({LEAST} per class)"


def balanced_weights(y: Tensor) -> Tensor:
    """Weights ``[n]`` that sum to 1, the same for every class that is there."""
    share = 1 / torch.bincount(y).clamp(min=1)[y].double()
    return share / share.sum()


def folds(y: Tensor, most: int = FOLDS, subjects: np.ndarray | None = None) -> list[tuple[Tensor, Tensor]]:
    """Rows that are left out and rows that stay, with every class spread over the folds.

    Args:
        y: class indices ``[n]``.
        most: largest number of folds.
        subjects: subjects ``[n]`` of the images, which are left out together.
    """
    number = torch.arange(len(y))
    if subjects is not None:
        number = torch.from_numpy(np.unique(subjects, return_inverse=True)[1].reshape(-1))
    units, count = int(number.max()) + 1, min(int(number.max()) + 1, most)
    kind = torch.stack([y[number == unit][0] for unit in range(units)])
    of_unit = torch.empty_like(kind)
    of_unit[kind.argsort(stable=True)] = torch.arange(units) % count
    fold = of_unit[number]
    return [((fold == i).nonzero()[:, 0], (fold != i).nonzero()[:, 0]) for i in range(count)]


def in_units(z: Tensor) -> Tensor:
    """Logits ``[n, C]`` on one scale, whatever the model's: the median lead of a decision is 3."""
    lead = z.double().topk(2, dim=1).values.diff().neg().median()
    return z.double() * (3 / lead.clamp(min=1e-12))


def losses_by_temperature(z: Tensor, y: Tensor) -> Tensor:
    """Log-losses ``[T, n]`` of logits ``[n, C]`` multiplied by each of the factors ``TEMPERATURES``, 0 among them."""
    scaled = torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None, None] * z.double()
    return scaled.logsumexp(dim=-1) - scaled.gather(-1, y[None, :, None].expand(len(scaled), -1, 1))[..., 0]


def tempered_losses(z: Tensor, y: Tensor) -> Tensor:
    """Log-losses ``[n]``, each at the temperature that suits the other images best.

    Args:
        z: logits ``[n, C]``.
        y: class indices ``[n]``.
    """
    losses = losses_by_temperature(z, y)
    weighed = losses * balanced_weights(y)
    best = (weighed.sum(dim=1, keepdim=True) - weighed).argmin(dim=0)
    return losses[best, torch.arange(len(y))]


def sign_flip_p(gains: Tensor) -> float:
    """One-sided p-value of "these differences ``[n]`` are as likely to be negative as positive", by their sum.

    Up to 36 differences it is exact: the share of all 2^n choices of signs whose sum is no smaller. The sums of two
    halves are enough for that. With more, 50,000 choices are drawn.

    Example:
        >>> import torch
        >>> sign_flip_p(torch.ones(5))
        0.03125
    """
    gains = gains.double()
    n, total = len(gains), float(gains.sum())
    if not bool(gains.any()):
        return 1.0
    bound = total - 1e-9 * float(gains.abs().sum())
    if n > EXACT:
        generator = torch.Generator().manual_seed(0)
        signs = 1.0 - 2.0 * torch.randint(2, (DRAWN, n), generator=generator, dtype=torch.float64)
        return (1 + int((signs @ gains >= bound).sum())) / (1 + DRAWN)
    first, second = (_sums(part) for part in (gains[: n // 2], gains[n // 2 :]))
    second = second.sort().values
    reached = len(second) - torch.searchsorted(second, bound - first)
    return int(reached.sum()) / math.ldexp(1, n)


def largest_sum_p(gains: Tensor) -> float:
    """One-sided p-value of "all of these differences ``[m, n]`` are as likely to be negative as positive".

    It goes by the largest of the m sums, each in units of the root of its sum of squares. Up to 16 images all choices
    of signs are tried, else 50,000 are drawn.
    """
    gains = gains.double()
    size = gains.square().sum(dim=1, keepdim=True).sqrt()
    if not bool((size > 0).any()):
        return 1.0
    gains = gains / size.clamp(min=1e-300)
    n, bound = gains.shape[1], float(gains.sum(dim=1).max()) - 1e-9
    if n <= 16:
        signs = 1.0 - 2.0 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()
        return float(((signs @ gains.T).max(dim=1).values >= bound).double().mean())
    generator = torch.Generator().manual_seed(0)
    signs = 1.0 - 2.0 * torch.randint(2, (DRAWN, n), generator=generator, dtype=torch.float64)
    return (1 + int(((signs @ gains.T).max(dim=1).values >= bound).sum())) / (1 + DRAWN)


def _sums(gains: Tensor) -> Tensor:
    """The sums of all choices of signs, ``[2^n]``."""
    sums = gains.new_zeros(1)
    for gain in gains:
        sums = torch.cat([sums + gain, sums - gain])
    return sums
