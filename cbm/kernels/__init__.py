"""Tensor operations of concept bottlenecks: pure functions, same signature on CPU and GPU, differentiable.

Pictures are unit-norm features x [N, D], concepts T [K, D], a head W [C, K]. Whoever projects one on the other does it
here. ``backend.py`` says which code runs; ``gpu/`` has the Triton kernels.
"""

from cbm.kernels.association import association_adam_, association_vectors
from cbm.kernels.bottleneck import fused_bottleneck_logits, fused_bottleneck_loss
from cbm.kernels.graph import captured
from cbm.kernels.gumbel import gumbel_topk_gate, soft_khot, topk_gate
from cbm.kernels.gumbel_topk import gumbel_topk
from cbm.kernels.interventions import intervene, override_logits
from cbm.kernels.linear import choose_plan, class_logits, class_vectors, linear_bottleneck_logits
from cbm.kernels.moments import class_sums, feature_moments, gram, score_moments
from cbm.kernels.noise import gumbel_noise
from cbm.kernels.scores import concept_scores
from cbm.kernels.topk import topk_concepts

__all__ = [
    "association_adam_",
    "association_vectors",
    "captured",
    "choose_plan",
    "class_logits",
    "class_sums",
    "class_vectors",
    "concept_scores",
    "feature_moments",
    "fused_bottleneck_logits",
    "fused_bottleneck_loss",
    "gram",
    "gumbel_noise",
    "gumbel_topk",
    "gumbel_topk_gate",
    "intervene",
    "linear_bottleneck_logits",
    "override_logits",
    "score_moments",
    "soft_khot",
    "topk_concepts",
    "topk_gate",
]
