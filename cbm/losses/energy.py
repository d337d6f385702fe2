"""Training losses of energies: Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024.

The class energy is trained by the exact cross-entropy over the classes (``cross_entropy`` of ``class_scores``). For the
global energy the published text has the likelihood of concepts and class together, which the published code replaces
by that of the class given the concepts (``conditional_loss``). Only the first makes E(c, y) say which concepts go
together; the pseudo-likelihood (Besag, The Statistician, 1975) is consistent for it and needs no partition function.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.solvers.concept_blocks import NEVER, ConceptBlocks
from cbm.solvers.energy import JointEnergy, draw_states

BLOCKS_AT_ONCE = 32


def concept_loss(concept_logit: Tensor, concepts: Tensor, blocks: ConceptBlocks) -> Tensor:
    """Mean negative log-likelihood per variable of the known concepts, each variable by its own evidence.

    Args:
        concept_logit: log-odds ``[B, K]`` of the concepts.
        concepts: concept labels ``[B, K]``: 1, 0, or NaN if unknown; unknown values of an exclusive group are summed
            over.
        blocks: the possible concept vectors.
    """
    logits = blocks.of_values(concept_logit).masked_fill(~blocks.allowed, NEVER)
    known = logits.masked_fill(~blocks.consistent(concepts), NEVER)
    return (logits.logsumexp(-1) - known.logsumexp(-1)).mean()


def complete_states(concepts: Tensor, concept_logit: Tensor, blocks: ConceptBlocks) -> Tensor:
    """Concept labels as value numbers ``[B, blocks]``; unknown values are drawn by the images' own evidence.

    Args:
        concepts: concept labels ``[B, K]``: 1, 0, or NaN if unknown.
        concept_logit: log-odds ``[B, K]`` of the concepts.
        blocks: the possible concept vectors.
    """
    logits = blocks.of_values(concept_logit.detach()).masked_fill(~blocks.consistent(concepts), NEVER)
    return draw_states(logits.softmax(-1), torch.rand(logits.shape[:-1], device=logits.device))


def disturb(states: Tensor, blocks: ConceptBlocks, share: float) -> Tensor:
    """A copy of the states in which a share of the variables has another value, drawn for every image.

    If all images of a class have the same concepts, p(c | y) is a point and energies would fall without end.

    Args:
        states: value numbers ``[B, blocks]``.
        blocks: the possible concept vectors.
        share: share of the variables that change.
    """
    sizes = blocks.allowed.sum(1)
    steps = (torch.rand(states.shape, device=states.device) * (sizes - 1)).long() + 1
    return torch.where(torch.rand(states.shape, device=states.device) < share, (states + steps) % sizes, states)


def pseudo_likelihood(joint: JointEnergy, states: Tensor, y: Tensor) -> Tensor:
    """Mean over images of -B log p(y | c) - sum_b log p(c_b | other variables, y), B the number of variables.

    Any weights of the conditionals are consistent. The class gets the same weight as all variables together, because it
    enters as 1 + u' with u' of unit length, whose gradient is small: with a weight of 1 the energies overfit the
    training images before they have learned the classes.

    If there are more than 32 variables, a random 32 are used in every call.

    Args:
        joint: global energy E.
        states: complete concept vectors ``[B, blocks]`` (``complete_states``).
        y: class indices ``[B]``.
    """
    blocks = joint.blocks
    steps = blocks.of_values(joint.steps.T).permute(1, 2, 0)  # [blocks, V, H]
    hidden = joint.hidden(blocks.concepts(states))  # [B, H]
    count = len(steps)
    loss = count * cross_entropy(-hidden.relu() @ joint.classes.T, y)
    picked = torch.randperm(count)[:BLOCKS_AT_ONCE].to(states.device) if count > BLOCKS_AT_ONCE else slice(None)
    now = states[:, picked]
    steps, allowed = steps[picked], blocks.allowed[picked]
    current = steps[torch.arange(len(steps), device=states.device), now]  # [B, blocks, H]
    tried = (hidden[:, None] - current)[:, :, None] + steps  # [B, blocks, V, H]
    energy = torch.einsum("bjvh,bh->bjv", tried.relu(), joint.classes[y])
    logits = (-energy).masked_fill(~allowed, NEVER)
    return loss + cross_entropy(logits.flatten(0, 1), now.flatten()) * count


def conditional_loss(joint: JointEnergy, concepts: Tensor, y: Tensor) -> Tensor:
    """-log p(y | c) of disturbed concepts, as in the published code.

    In a fifth of the images (rounded up) the same fifth of the concepts is inverted. The labels themselves are not
    changed (the published code changes them if they are integers).

    Args:
        joint: global energy E.
        concepts: concept labels ``[B, K]``, 0 or 1, all known.
        y: class indices ``[B]``.
    """
    rows = torch.randperm(len(concepts))[: -(-len(concepts) // 5)].to(concepts.device)
    columns = torch.randperm(concepts.shape[1])[: -(-concepts.shape[1] // 5)].to(concepts.device)
    turned = concepts.clone()
    turned[rows[:, None], columns] = 1 - turned[rows[:, None], columns]
    return cross_entropy(-joint(turned), y)
