"""How much a phrase tells the classes apart, from class means alone.

The similarity of phrase c and class y is the mean dot product over the images of y, which is one dot product with the
class mean: S(c, y) = t_c . mu_y. Three scores are computed from S [M, C]:

    mutual information   p(c, y) = S(c, y) / (C sum_c' S(c', y))     what LaBo's published code computes
                         MI(c) = p(c) (log C - H[p(. | c)]) = p(c) KL(p(. | c) || uniform) >= 0
    negative entropy     q(y | c) = S(c, y) / sum_y' S(c, y')        LaBo (CVPR 2023), discriminability score
                         D(c) = sum_y q(y | c) log q(y | c), in [-log C, 0]

    posterior entropy    r(y | c) = softmax_y(S(c, y) / sigma)       ours: the same D(c) of another distribution

The first two read S as unnormalised probabilities, so they need S > 0: entries below `SMALLEST` (CLIP cosines of
unrelated pairs can be negative) are raised to it, and `discriminability` says how many were. They also see little where
all cosines are alike (0.2 +- 0.02 is nearly uniform) and break where half of them are negative. The third takes the
similarities in units of sigma, the standard deviation of S about each phrase's mean over the classes: what all classes
share, and the encoder's scale, do not matter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix

SMALLEST = 1e-6  # floor under a similarity, in units of the dot product

Score = Literal["posterior_entropy", "mutual_information", "negative_entropy"]


def class_similarity(concepts: Tensor, class_means: Tensor) -> Tensor:
    """Mean dot product of every phrase with the images of every class, ``concepts @ class_means.T``.

    Args:
        concepts: Phrase embeddings [M, D].
        class_means: Mean image feature of every class [C, D].

    Returns:
        Similarity S [M, C], float64 (in float32 one of the best 50 phrases of a class changes places now and then).

    Raises:
        ValueError: If a shape does not fit.
    """
    check_matrix("concepts", concepts)
    check_matrix("class_means", class_means, columns=concepts.shape[1])
    return concepts.double() @ class_means.double().T


def mutual_information(similarity: Tensor) -> Tensor:
    """Mutual information between phrase and class, times M, one share per phrase.

    The paper's value is O(1/M) because p(c) is about 1/M; multiplied by the number of phrases it is O(1), so a weight
    chosen for one bank means the same for another. (LaBo's published scale of 1e7 is for the value without M.)
    Does not depend on the order of the classes, nor on a factor on one class's column.

    Args:
        similarity: S [M, C]. Entries below `SMALLEST` are raised to it.

    Returns:
        M * MI(c) >= 0, [M], float64.

    Raises:
        ValueError: If ``similarity`` is not a matrix.
    """
    similarity = _positive(check_matrix("similarity", similarity))
    return _mutual_information(similarity, similarity.sum(0), len(similarity))


def negative_entropy(similarity: Tensor) -> Tensor:
    """Negative entropy of the classes given a phrase, in nats.

    Args:
        similarity: S [M, C]. Entries below `SMALLEST` are raised to it.

    Returns:
        D(c) in [-log C, 0], [M], float64.

    Raises:
        ValueError: If ``similarity`` is not a matrix.
    """
    similarity = _positive(check_matrix("similarity", similarity))
    return torch.special.entr(similarity / similarity.sum(1, keepdim=True)).sum(1).neg()


def posterior_entropy(similarity: Tensor, sigma: float) -> Tensor:
    """Negative entropy of the class posterior ``softmax_y(S / sigma)``, in nats.

    Args:
        similarity: S [M, C], of either sign.
        sigma: The unit of S, > 0: its standard deviation about each phrase's mean over the classes.

    Returns:
        D(c) in [-log C, 0], [M], float64.

    Raises:
        ValueError: If ``similarity`` is not a matrix or sigma is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; expected > 0")
    log_posterior = (check_matrix("similarity", similarity).double() / sigma).log_softmax(1)
    return (log_posterior.exp() * log_posterior).sum(1)


def discriminability(
    concepts: Tensor, class_means: Tensor, score: Score = "posterior_entropy", *, chunk: int = 16384
) -> tuple[Tensor, int]:
    """Score every phrase, streaming over phrases: O(chunk * C) memory for a million of them.

    All but negative entropy take two passes: one for the column sums of S or for sigma, one for the scores.

    Args:
        concepts: Phrase embeddings [M, D].
        class_means: Mean image feature of every class [C, D].
        score: "posterior_entropy", "mutual_information" (times M) or "negative_entropy".
        chunk: Phrases per step.

    Returns:
        Scores [M] (float64, the larger the more discriminative), and how many of the M * C similarities were below
        `SMALLEST` and had to be raised (always 0 for "posterior_entropy"). More than a few mean that the features are
        not ones where S can be read as a probability.

    Raises:
        ValueError: If a shape does not fit or the score is unknown.
    """
    check_matrix("concepts", concepts)
    check_matrix("class_means", class_means, columns=concepts.shape[1])
    if score not in ("posterior_entropy", "mutual_information", "negative_entropy"):
        raise ValueError(
            f"score is {score!r}; expected 'posterior_entropy', 'mutual_information' or 'negative_entropy'"
        )
    blocks = concepts.split(chunk)
    if score == "posterior_entropy":
        centred = class_means.double() - class_means.double().mean(0)
        square = sum(float((part.double() @ centred.T).square().sum()) for part in blocks)
        sigma = (square / (len(concepts) * len(class_means))) ** 0.5
        if sigma == 0:  # all classes look the same
            return torch.full((len(concepts),), -float(torch.tensor(len(class_means)).double().log())).double(), 0
        return torch.cat([posterior_entropy(class_similarity(part, class_means), sigma) for part in blocks]), 0

    columns = torch.zeros(len(class_means), dtype=torch.float64, device=concepts.device)
    scores, clamped = [], 0
    for part in blocks:
        similarity = class_similarity(part, class_means)
        clamped += int((similarity < SMALLEST).sum())
        if score == "negative_entropy":
            scores.append(negative_entropy(similarity))
        else:
            columns += _positive(similarity).sum(0)
    if score == "mutual_information":
        for part in blocks:
            similarity = _positive(class_similarity(part, class_means))
            scores.append(_mutual_information(similarity, columns, len(concepts)))
    return torch.cat(scores), clamped


def _positive(similarity: Tensor) -> Tensor:
    return similarity.double().clamp(min=SMALLEST)


def _mutual_information(similarity: Tensor, columns: Tensor, phrases: int) -> Tensor:
    """M p(c) KL(p(y|c) || uniform) of a block of rows [m, C], given the column sums [C] over all M phrases."""
    classes = similarity.shape[1]
    joint = similarity * (phrases / classes / columns)  # M p(c, y)
    marginal = joint.sum(1)  # M p(c)
    given = joint / marginal[:, None]  # p(y | c)
    divergence = torch.special.xlogy(given, given * classes).sum(1)
    return marginal * divergence.clamp(min=0)
