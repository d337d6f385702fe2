"""Objectives on the outputs of a bottleneck: pure functions of tensors that return a 0-d loss."""

from cbm.losses.contrastive import anchored_contrastive_loss, contrastive_loss
from cbm.losses.gumbel import gumbel_nll
from cbm.losses.similarity import similarity_loss

__all__ = ["anchored_contrastive_loss", "contrastive_loss", "gumbel_nll", "similarity_loss"]
