"""Inference as in the published code of energy-based bottlenecks (Xu et al., ICLR 2024), for comparison only.

Class and concepts become softmaxes over logits that start at zero; a mixture p of class vectors is normalised, a
mixture q_k of a concept's two vectors too, and Adam makes

    E_class(u(p)) + sum_k E_k(v_k(q_k)) + 0.01 E_global([q > 0.5], u(p)),     u(p) = p U / |p U|

small, averaged over a batch, until the mean class energy has not fallen by 1.0 for ten steps. The mixture of unit
vectors, once normalised, is none of the classes, so the winner is not the class of lowest energy; thresholded concepts
pass no gradient, so no concept learns of another; and an image's answer depends on its batch. What is known is then
put in (logits of 5 and -5), the class starts again from zero, and only the global energy counts.

Vectors enter by inner products alone: a step here costs [B, M] and [B, K] numbers, not [B, K, H].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 64  # of the published configurations
LEAST_GAIN, PATIENCE, RATE, KNOWN = 1.0, 10, 0.1, 5.0


@dataclass(frozen=True)
class ReleasedEnergies:
    """Inner products of B images with U ``[M, H]``, the class vectors, and V ``[K, 2, H]``, those of the concepts.

    Attributes:
        of_class: ``[B, M]``, < w_y . r_class, U_m >, vectors as they are.
        class_gram: ``[M, M]``, U U^T.
        of_concept: ``[B, K, 2]``, < w_k . r_concept, V_kj >.
        concept_gram: ``[K, 2, 2]``.
        of_both: concepts ``[B, K]`` to ``[B, M]``, < w_g . relu(P(c)), U_m >.
    """

    of_class: Tensor
    class_gram: Tensor
    of_concept: Tensor
    concept_gram: Tensor
    of_both: Callable[[Tensor], Tensor]


def released_inference(
    energies: ReleasedEnergies, clamp: Tensor | None = None, *, strict: bool = False
) -> tuple[Tensor, Tensor, int]:
    """Class probabilities ``[B, M]``, concept probabilities ``[B, K]`` and the number of steps, for one batch.

    Args:
        energies: inner products of the batch.
        clamp: known concepts ``[B, K]``: 1 present, 0 absent, NaN unknown; concepts are inferred first, then
            overwritten.
        strict: whether the class starts again and follows from the concepts alone also if none is known. The published
            code leaves it where the class energy has put it.
    """
    classes, concepts = torch.zeros_like(energies.of_class), torch.zeros_like(energies.of_concept)
    steps = _descend(energies, classes, concepts, (1.0, 1.0, 0.01))
    if strict and clamp is None:
        clamp = energies.of_concept.new_full(concepts.shape[:2], float("nan"))
    if clamp is not None:
        known = torch.stack([1 - 2 * clamp, 2 * clamp - 1], dim=2) * KNOWN
        concepts = known.where(~known.isnan(), concepts)
        classes = torch.zeros_like(classes)
        steps += _descend(energies, classes, concepts, (0.0, 0.0, 3.0))
    probability = concepts.softmax(dim=2)[..., 1]
    return classes.softmax(dim=1), probability if clamp is None else clamp.where(~clamp.isnan(), probability), steps


def _descend(energies: ReleasedEnergies, classes: Tensor, concepts: Tensor, weights: tuple[float, ...]) -> int:
    """Change the logits ``[B, M]`` and ``[B, K, 2]`` in place by Adam; returns the number of steps."""
    optimizer = torch.optim.Adam([classes.requires_grad_(), concepts.requires_grad_()], lr=RATE)
    best, waited, steps = float("inf"), 0, 0
    with torch.enable_grad():
        while waited < PATIENCE:
            p, q = classes.softmax(dim=1), concepts.softmax(dim=2)
            p_norm = (p @ energies.class_gram * p).sum(dim=1).clamp(min=1e-24).sqrt()
            q_norm = torch.einsum("bki,kij,bkj->bk", q, energies.concept_gram, q).clamp(min=1e-24).sqrt()
            e_class = ((p * energies.of_class).sum(dim=1) / p_norm).mean()
            e_concept = ((q * energies.of_concept).sum(dim=2) / q_norm).mean(dim=0).sum()
            e_both = ((p * energies.of_both((q[..., 1] > 0.5).float())).sum(dim=1) / p_norm).mean()
            optimizer.zero_grad()
            (weights[0] * e_class + weights[1] * e_concept + weights[2] * e_both).backward()
            optimizer.step()
            steps += 1
            if (now := float(e_class.detach())) < best - LEAST_GAIN:
                best, waited = now, 0
            else:
                waited += 1
    classes.requires_grad_(False)
    concepts.requires_grad_(False)
    return steps
