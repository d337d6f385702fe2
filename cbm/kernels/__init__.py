"""Tensor operations of concept bottlenecks: pure functions, same signature on CPU and GPU, differentiable."""

from cbm.kernels.gumbel import gumbel_noise, gumbel_topk_gate, soft_khot, topk_gate
from cbm.kernels.linear import choose_plan, class_vectors, linear_bottleneck_logits
from cbm.kernels.moments import score_moments
from cbm.kernels.scores import concept_scores, topk_concepts

__all__ = [
    "choose_plan",
    "class_vectors",
    "concept_scores",
    "gumbel_noise",
    "gumbel_topk_gate",
    "linear_bottleneck_logits",
    "score_moments",
    "soft_khot",
    "topk_concepts",
    "topk_gate",
]
