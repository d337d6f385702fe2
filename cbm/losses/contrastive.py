"""Contrastive objectives between the images of a batch and the concepts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.kernels.shapes import check_matrix, compute_dtype


def contrastive_loss(z: Tensor, *, block: Literal["square", "rectangle"] = "square") -> Tensor:
    """InfoNCE in which image i of the batch and concept i of the bank are a pair (Semenov et al., 2024).

    With m = min(B, K), P1 the softmax over concepts and P0 the softmax over images,

        L = -1/(2m) sum_{i < m} (log P1_ii + log P0_ii)

    The pair is a slot number: nothing says that image i shows concept i, and another order of the same batch is
    another loss. It is here because it was published; ``anchored_contrastive_loss`` repairs it.

    Args:
        z: Bottleneck outputs ``[B, K]``.
        block: "square": both softmaxes run over the first m images and concepts, as in the paper. "rectangle": over
            all K concepts and all B images, as in the published code.

    Returns:
        The loss, 0-d.

    Raises:
        ValueError: If an argument is not as above.
    """
    if block not in ("square", "rectangle"):
        raise ValueError(f"block is {block!r}; expected 'square' or 'rectangle'")
    m = min(check_matrix("z", z).shape)
    z = z.to(compute_dtype(z))
    if block == "square":
        z = z[:m, :m]
    slots = torch.arange(m, device=z.device)
    return (cross_entropy(z[:m], slots) + cross_entropy(z.T[:m], slots)) / 2


def anchored_contrastive_loss(z: Tensor, s: Tensor, top: int = 8) -> Tensor:
    """Contrastive loss with the image-text scores as the pairing: soft targets instead of slot numbers.

    The scores are centred per concept, which removes how well a concept scores in general. The target of an image is
    the softmax over its ``top`` concepts, that of a concept the softmax over its ``top`` images of the batch;

        L = 1/2 (mean_b CE(target_b, softmax_k z_b) + mean_k CE(target_k, softmax_b z_k))

    Neither the order of the batch nor that of the concepts matters. A batch of one image says nothing about it: its
    centred scores are all 0 and its target is uniform.

    Args:
        z: Bottleneck outputs ``[B, K]``.
        s: Scores of the same images and concepts ``[B, K]``, logit scale included. They get no gradient.
        top: Entries of a target, >= 1; more than there are means all. Entries that tie with the last are in it too.

    Returns:
        The loss, 0-d.

    Raises:
        ValueError: If an argument is not as above.
    """
    check_matrix("z", z)
    check_matrix("s", s, *z.shape)
    if top < 1:
        raise ValueError(f"top is {top}; expected >= 1")
    dtype = compute_dtype(z, s)
    z, s = z.to(dtype), s.detach().to(dtype)
    s = s - s.mean(0)
    return (cross_entropy(z, _targets(s, top)) + cross_entropy(z.T, _targets(s.T, top))) / 2


def _targets(scores: Tensor, top: int) -> Tensor:
    """Softmax over the ``top`` largest entries of every row, ties with the last of them included; 0 elsewhere."""
    last = scores.topk(min(top, scores.shape[1]), 1).values[:, -1:]
    return scores.masked_fill(scores < last, -torch.inf).softmax(1)
