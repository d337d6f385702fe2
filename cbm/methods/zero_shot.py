"""Zero-shot CLIP (Radford et al., ICML 2021): every class is one concept, its own name; nothing is trained."""

from dataclasses import dataclass

import torch

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.kernels import score_moments
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.methods.base import Built, Method, register_method


@dataclass
class ZeroShotConfig:
    """Zero-shot classification has no settings; the prompt is the data set's ``template``."""


@register_method("zero_shot")
class ZeroShot(Method):
    """Classifies by ``logit_scale`` times the cosine of the image with the class's prompt."""

    Config = ZeroShotConfig
    concepts_from = "class_names"
    trains = False

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make a bottleneck with one concept per class and the identity as head; arguments as for ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        reference, spread = score_moments(data.train.x, bank.directions())
        head = LinearHead(torch.eye(len(data.classes)))
        model = ConceptBottleneck(bank.directions(), head, scale=logit_scale, reference=reference, spread=spread)
        return Built(model, bank)
