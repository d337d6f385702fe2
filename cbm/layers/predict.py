"""Logits of many images by any classifier."""

import torch
from torch import Tensor, nn

from cbm.layers.bottleneck import ConceptBottleneck


@torch.no_grad()
def predict_logits(model: nn.Module, x: Tensor, chunk: int = 65536) -> Tensor:
    """Logits ``[N, C]`` of any classifier, computed in chunks.

    Args:
        model: the classifier, from features to logits.
        x: features ``[N, D]``.
        chunk: number of rows per chunk.
    """
    if isinstance(model, ConceptBottleneck):
        return model.logits(x)
    return torch.cat([model(part) for part in x.split(chunk)])
