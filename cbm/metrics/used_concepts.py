"""The concepts that an image's decision uses most."""

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck


@torch.no_grad()
def used_concepts(model: ConceptBottleneck, x: Tensor, top: int) -> list[list[int]]:
    """Concepts that speak for the predicted class of every image because the image has more of them than usual.

    A concept can also add to a logit by its absence (a negative weight on a score below its reference): that says
    nothing about what the image shows, so it is not among them.

    Args:
        model: bottleneck with K concepts.
        x: unit-norm features ``[N, D]``.
        top: largest number of concepts per image.

    Returns:
        Columns of every image, the largest contribution first; empty where no concept is used like that.
    """
    above = model.activations(x) - model.reference
    values = model.weights()[model(x).argmax(dim=1)] * above
    values = values.masked_fill((above <= 0) | (values <= 0), 0.0)
    largest = values.topk(min(top, values.shape[1]), dim=1)
    return [
        [k for k, value in zip(columns, sizes) if value > 0]
        for columns, sizes in zip(largest.indices.tolist(), largest.values.tolist())
    ]
