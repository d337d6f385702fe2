"""Linear probe: the black box that every bottleneck is compared with, on the same features."""

import logging
import math
from dataclasses import dataclass

import torch

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.kernels import class_logits, feature_moments
from cbm.layers import LinearProbe
from cbm.losses.classification import mean_loss_by_label
from cbm.methods.base import Built, Method, register_method
from cbm.solvers import fit_labels, fit_logistic

log = logging.getLogger(__name__)


@dataclass
class LinearProbeConfig:
    """Settings of the linear probe."""

    l2_from: float = 1e2
    """Strongest penalty"""
    l2_to: float = 1e-6
    """Weakest penalty"""
    l2_steps: int = 9
    """Number of penalties, evenly spaced in the logarithm; the one with the highest validation accuracy is kept"""


@register_method("linear_probe")
class LinearProbeMethod(Method):
    """Multinomial logistic regression on standardised features, L2 penalty chosen on the validation split."""

    Config = LinearProbeConfig
    concepts_from = None
    trains = False
    many_labels = True

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Solve the problem for every penalty and keep the most accurate one (of equals, the strongest penalty).

        Arguments as for ``Method.build``.
        """
        spread = feature_moments(data.train.x)[1].square().mean().sqrt()  # one factor: directions keep their size
        powers = torch.linspace(math.log10(self.config.l2_from), math.log10(self.config.l2_to), self.config.l2_steps)
        penalties = (10.0 ** powers.double()).tolist()
        if data.many:
            return Built(self._labels(data, penalties, float(spread) ** 2), None)
        path = fit_logistic(
            data.train.x, data.train.y, l2=[p * float(spread) ** 2 for p in penalties], num_classes=len(data.classes)
        )
        accuracy = [float((class_logits(data.val.x, *each).argmax(1) == data.val.y).float().mean()) for each in path]
        best = accuracy.index(max(accuracy))
        log.info("linear probe: l2 = %.1e, validation accuracy %.4f", penalties[best], accuracy[best])
        return Built(LinearProbe(*path[best]), None)

    def _labels(self, data: FeatureData, penalties: list[float], unit: float) -> LinearProbe:
        """A yes or no for every label, with the penalty of its lowest validation loss (of equals, the strongest)."""
        path = fit_labels(data.train.x, data.train.y, l2=[p * unit for p in penalties])
        losses = torch.stack([mean_loss_by_label(class_logits(data.val.x, *each), data.val.y) for each in path])
        best = losses.argmin(dim=0)
        weight, bias = (torch.stack(parts) for parts in zip(*path))
        labels = torch.arange(len(data.classes))
        log.info(
            "linear probe: l2 = %.1e to %.1e, mean validation loss %.4f",
            penalties[int(best.max())], penalties[int(best.min())], float(losses[best, labels].nanmean()),
        )  # fmt: skip
        return LinearProbe(weight[best, labels], bias[best, labels], "sigmoid")
