"""Solvers: pure tensors in, tensors out; no modules, no files, no progress bars."""

from cbm.solvers.discriminability import (
    class_similarity,
    discriminability,
    mutual_information,
    negative_entropy,
    posterior_entropy,
)
from cbm.solvers.logistic import fit_logistic
from cbm.solvers.submodular import greedy_select

__all__ = [
    "class_similarity",
    "discriminability",
    "fit_logistic",
    "greedy_select",
    "mutual_information",
    "negative_entropy",
    "posterior_entropy",
]
