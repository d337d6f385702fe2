"""What is told while concept embeddings are trained."""

import torch
from torch import Tensor


def told_at_random(
    p: Tensor, concepts: Tensor, share: float, *, per_batch: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """RandInt (Espinosa Zarlenga et al., NeurIPS 2022, section 4): some probabilities take the value of their label, so
    that the class head learns to read concepts that a person has set.

    Args:
        p: probabilities ``[B, K]``.
        concepts: labels ``[B, K]``: 1, 0, or NaN if unknown; what is unknown is not told. Left as they are.
        share: chance of a concept to be told.
        per_batch: whether the same concepts are told of all images of a batch, as the released code does; by default
            they are drawn for every image.
        generator: source of randomness; torch's own by default.

    Example:
        >>> told_at_random(torch.tensor([[0.3, 0.4]]), torch.tensor([[1.0, float("nan")]]), 1.0)
        tensor([[1.0000, 0.4000]])
    """
    rows = 1 if per_batch else len(p)
    told = torch.rand(rows, p.shape[1], generator=generator, device=p.device) < share
    return torch.where(told & ~concepts.isnan(), concepts.to(p), p)
