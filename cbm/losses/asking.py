"""Losses of a network that learns what to ask about (``cbm.layers.LearnedAsking``)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gumbel_softmax


def open_questions(told: Tensor, concepts: Tensor, member: Tensor) -> Tensor:
    """Questions ``[B, U]`` bool that would tell something: about a concept that is known and was not told.

    Args:
        told: what was told ``[B, K]``, 1 or 0.
        concepts: labels ``[B, K]``; NaN if unknown.
        member: which concepts a question is about ``[U, K]``.
    """
    return ((told < 0.5) & ~concepts.isnan()).float() @ member.T > 0


def tell(told: Tensor, picked: Tensor, concepts: Tensor, member: Tensor) -> Tensor:
    """What is told ``[B, K]`` after the picked questions ``[B, U]`` (1 or 0) were answered; a new tensor.

    Of what was told before nothing changes, and what nobody knows is not told. Other arguments as for
    ``open_questions``.

    Example:
        >>> told, label = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, float("nan")]])
        >>> tell(told, torch.tensor([[1.0]]), label, torch.ones(1, 3)).tolist()
        [[1.0, 1.0, 0.0]]
    """
    return told + (picked @ member) * (1 - told) * ~concepts.isnan()


def ask_and_tell(
    score: Callable[[Tensor, Tensor], Tensor],
    p: Tensor,
    concepts: Tensor,
    slope: Tensor,
    told: Tensor,
    member: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Some questions in a row, chosen by the network, and by how much it misses the best ones.

    Espinosa Zarlenga et al., NeurIPS 2023 (IntCEM), section 4: at every step the target is the question whose answer
    raises the true class's logit most, and the next question is a straight-through Gumbel-softmax sample of the scores
    (temperature 1), so that the class loss after the last answer trains the network too. Questions that tell nothing
    new are not asked, in training as in use.

    Args:
        score: the network, from probabilities ``[B, K]`` after what was told ``[B, K]`` to scores ``[B, U]``.
        p: probabilities ``[B, K]`` before anything is told.
        concepts: labels ``[B, K]``: 1, 0, or NaN if unknown.
        slope: by how much the true class's logit grows with a concept's probability ``[B, K]`` (of labels, the sum over
            those that are there less those that are not).
        told: what is told before ``[B, K]``, 1 or 0; not changed.
        member: which concepts a question is about ``[U, K]``.
        steps: number of questions.

    Returns:
        What is told after ``[B, K]``, 1 or 0, with a gradient for the network; and the mean cross-entropy of the scores
        with the best question, 0 where nothing was left to ask.
    """
    label = concepts.where(~concepts.isnan(), p)
    missed, asked = p.sum() * 0.0, 0
    for _ in range(steps):
        open_ = open_questions(told, concepts, member)
        rows = open_.any(dim=1)
        if not bool(rows.any()):
            break
        q = told * label + (1 - told) * p
        scores = score(q, told).masked_fill(~open_, -torch.inf)[rows]
        best = ((label - q) * slope).detach() @ member.T
        missed = missed + cross_entropy(scores, best.masked_fill(~open_, -torch.inf).argmax(dim=1)[rows])
        picked = torch.zeros_like(best).index_put((rows.nonzero()[:, 0],), gumbel_softmax(scores, hard=True))
        told = tell(told, picked, concepts, member)
        asked += 1
    return told, missed / max(asked, 1)
