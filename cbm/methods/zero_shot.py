"""Zero-shot CLIP (Radford et al., ICML 2021): every class is one concept, its own name; nothing is trained.

A label is one concept too: the sentence that says it is there less the one that says it is not,

    logit_l = logit_scale (cos(x, t+) - cos(x, t-))            0 or more: it is there

CLIP reads negation badly, so the AUROC of t+ alone is measured beside (``method/auroc_positive_alone``, on validation).
"""

from dataclasses import dataclass, replace

import torch

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.kernels import score_moments
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.methods.base import Built, Method, link_of, register_method
from cbm.metrics.multilabel import auroc


@dataclass
class ZeroShotConfig:
    """Zero-shot classification has no settings; the prompt is the data set's ``template``."""


@register_method("zero_shot")
class ZeroShot(Method):
    """Classifies by ``logit_scale`` times the cosine of the image with the class's prompt."""

    Config = ZeroShotConfig
    concepts_from = "class_names"
    trains = False
    many_labels = True
    chooses_thresholds = False  # it says what the sentences say

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make a bottleneck with one concept per class and the identity as head; arguments as for ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        if data.many:
            present = bank.directions()
            absent = self.required(data.negative_embeddings, "sentences for absent labels (negative_template)")
            self.facts = {"auroc_positive_alone": float(auroc(data.val.x @ present.T, data.val.y).nanmean())}
            bank = replace(bank, embeddings=present - absent)
        reference, spread = score_moments(data.train.x, bank.directions())
        head = LinearHead(torch.eye(len(data.classes)))
        model = ConceptBottleneck(
            bank.directions(), head, scale=logit_scale, reference=reference, spread=spread, link=link_of(data)
        )
        return Built(model, bank)
