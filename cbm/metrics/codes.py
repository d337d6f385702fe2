"""How much of a picture its words say: reconstruction and sparsity of sparse codes.

A high number is no evidence for names: random directions with the pictures' covariance reconstruct them better than any
words do. And the cosine of a picture with its reconstruction starts at the length of the mean picture, not at 0, so the
cosine that no words at all would have stands beside it.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cbm.layers import Coded, ConceptBottleneck, SparseCode

RARE = 1e-3
"""Share of the images below which a word is rare."""


@torch.no_grad()
def code_metrics(model: ConceptBottleneck, x: Tensor) -> dict[str, float]:
    """Metrics of the codes of images; empty for a model without a sparse code.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.

    Returns:
        ``code_r2``: share of the variance about the training mean that the words say, by their best length;
        ``code_cosine`` and ``code_cosine_mean_only``: mean cosine of image and reconstruction, and with no words;
        ``code_cosine_centred``: mean cosine of what is away from the mean; ``code_l0``: words per image, mean, and its
        maximum ``code_l0_max``; ``code_empty``: share of images without a word; ``code_used``: share of the words that
        some image uses; ``code_rare``: share of them that fewer than one image in a thousand uses.
    """
    layer = model.activation
    if not isinstance(layer, Coded) or not len(x):
        return {}
    codes = layer.code(x, model.concepts)
    away, said = x.float() - layer.mean, codes.reconstruct(layer.parts(model.concepts))
    if isinstance(layer, SparseCode):  # the radius may be another
        factor = (away * said).sum(dim=1) / said.square().sum(dim=1).clamp(min=1e-12)
        said = factor[:, None] * said
    spread = (x.float() - x.float().mean(dim=0)).square().sum()
    fires = torch.bincount(codes.columns[codes.columns >= 0], minlength=len(model.concepts)) / len(x)
    mean_only = cosine_similarity(x.float(), layer.mean.expand_as(away)).mean() if bool(layer.mean.any()) else 0.0
    return {
        "code_r2": float(1 - (away - said).square().sum() / spread.clamp(min=1e-12)),
        "code_cosine": float(cosine_similarity(x.float(), layer.mean + said).mean()),
        "code_cosine_mean_only": float(mean_only),
        "code_cosine_centred": float(cosine_similarity(away, said).mean()),
        "code_l0": float(codes.count.double().mean()),
        "code_l0_max": float(codes.count.max()),
        "code_empty": float((codes.count == 0).double().mean()),
        "code_used": float((fires > 0).double().mean()),
        "code_rare": float((fires < RARE).double().mean()),
    }


@torch.no_grad()
def said_share(model: ConceptBottleneck, x: Tensor) -> Tensor:
    """Share ``[N]`` of every image's squared distance from the mean that its words say; the rest no word explains.

    Args:
        model: a bottleneck with a sparse code.
        x: unit-norm features ``[N, D]``.

    Raises:
        TypeError: the model has no sparse code.
    """
    if not isinstance(model.activation, Coded):
        raise TypeError("the model has no sparse code")
    away = x.float() - model.activation.mean
    said = model.activation.code(x, model.concepts).reconstruct(model.activation.parts(model.concepts))
    return cosine_similarity(away, said).clamp(min=0).square()
