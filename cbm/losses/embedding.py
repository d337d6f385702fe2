"""What is told while concept embeddings are trained."""

import torch
from torch import Tensor


def drawn_to_tell(
    concepts: Tensor, share: float, *, per_batch: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """RandInt (Espinosa Zarlenga et al., NeurIPS 2022, section 4): which probabilities ``[B, K]`` bool take the value
    of their label, so that the class head learns to read concepts that a person has set.

    Args:
        concepts: labels ``[B, K]``: 1, 0, or NaN if unknown; what is unknown is not told.
        share: chance of a concept to be told.
        per_batch: whether the same concepts are told of all images of a batch, as the released code does; by default
            they are drawn for every image.
        generator: source of randomness; torch's own by default.

    Example:
        >>> drawn_to_tell(torch.tensor([[1.0, float("nan")]]), 1.0)
        tensor([[ True, False]])
    """
    rows = 1 if per_batch else len(concepts)
    told = torch.rand(rows, concepts.shape[1], generator=generator, device=concepts.device) < share
    return told & ~concepts.isnan()
