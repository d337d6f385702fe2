"""Answers about concepts as a person who errs would give them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def noisy_answers(
    truth: Tensor,
    noise: float,
    seed: int,
    groups: Sequence[Sequence[int]] = (),
    ordered: Sequence[Sequence[int]] = (),
    numbers: Sequence[int] = (),
) -> Tensor:
    """The truth with some answers wrong: inverted; in an exclusive group, another value of the group; of a level, the
    next one up or down; of a number, off by a normal error with a standard deviation of ``noise``.

    Args:
        truth: true concepts ``[N, K]``: 1, 0, a number in standard deviations of the training images, or NaN if
            unknown.
        noise: share of the answers that are wrong; a group is one answer. No number is told exactly: it is off by this
            share of its standard deviation.
        seed: random seed for drawing the wrong answers.
        groups: groups of columns that exclude each other; at most one column of a group is answered with 1.
        ordered: columns of the steps of every ordinal attribute, the lowest first; those up to its level are 1.
        numbers: columns of numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(truth.shape, generator=generator) < noise
    given = torch.where(wrong, 1 - truth, truth)
    steps = {k for group in ordered for k in group}
    for group in (group for group in groups if group and not steps & set(group)):
        true = truth[:, list(group)]
        others = torch.rand(true.shape, generator=generator).where(true == 0, -1.0)  # values it could be taken for
        place = others.argmax(dim=1, keepdim=True)
        other = torch.zeros_like(true).scatter(1, place, (others.gather(1, place) >= 0).to(true))
        other = other.masked_fill(true.isnan(), torch.nan)
        given[:, list(group)] = other.where(wrong[:, [group[0]]], true)
    for group in map(list, ordered):
        true, top = truth[:, group], len(group)
        level = true.nan_to_num().sum(dim=1)
        up = (torch.rand(len(truth), generator=generator) < 0.5).where((level > 0) & (level < top), level == 0)
        said = torch.where(wrong[:, group[0]], level + torch.where(up, 1, -1), level)
        given[:, group] = (torch.arange(1, top + 1) <= said[:, None]).to(true).masked_fill(true.isnan(), torch.nan)
    if numbers:
        off = torch.randn(len(truth), len(numbers), generator=generator)
        given[:, list(numbers)] = truth[:, list(numbers)] + noise * off.to(truth)
    return given
