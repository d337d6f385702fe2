"""Concept Matrix Search (Semenov et al., arXiv 2404.03323, 2024): zero-shot classification by way of concepts.

An image is written as its cosines with the concepts, and so is every class name; the class whose row is most like the
image's wins (``cbm.solvers.concept_matrix`` has the rules and the algebra). Nothing is trained and no label is used.

Written as a bottleneck, the concepts are scaled by their norm, the activation is the identity, the cube or the largest
score, and the head holds the classes' rows.
The image's own norm divides all its logits, changes no decision, and is replaced by its mean over the training
images. Column sums and centres are those of the training images (the published code takes those of the images it
is evaluated on).
"""

from dataclasses import dataclass

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, spaced
from cbm.errors import UserError
from cbm.kernels import concept_scores
from cbm.layers import ConceptBottleneck, Cube, Largest, LinearHead
from cbm.methods.base import Built, Method, one_of, register_method
from cbm.solvers import concept_matrix


@dataclass
class CMSConfig:
    """Settings of Concept Matrix Search."""

    rule: str = "similarity"
    """How an image is compared with a class: similarity (cosine of the rows) | cubed (cosine of the cubed rows) | max
    (the class row at the strongest concept)"""
    norm: str = "none"
    """Sums that the cosines are divided by: none | row | col"""
    center: bool = False
    """Subtract every concept's mean over the training images, and over the classes, first (not in the paper; not
    together with norm)"""


@register_method("cms")
class CMS(Method):
    """Compares images and class names by their cosines with the concepts."""

    Config = CMSConfig
    trains = False
    reads_class_names = True

    def __init__(self, config: CMSConfig):
        super().__init__(config)
        one_of("method.rule", config.rule, ("similarity", "cubed", "max"))
        one_of("method.norm", config.norm, ("none", "row", "col"))
        if config.center and config.norm != "none":
            raise UserError(
                f"method.norm={config.norm} divides by sums that centring makes zero: say method.center=false"
            )

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make a bottleneck whose head holds the classes' rows; arguments as for ``Method.build``.

        Raises:
            UserError: the encoder reads no text, or the sums of ``method.norm`` are not positive.
        """
        bank = self.required(bank, "a concept bank")
        if data.class_embeddings is None or data.class_embeddings.shape[1] != data.dim:
            raise UserError(
                "method=cms compares images with class names: it needs an encoder that reads text (class_embeddings= "
                "[C, D] for ConceptClassifier)"
            )
        x, directions = data.train.x, bank.directions()
        try:
            matrix = concept_matrix(
                data.class_embeddings,
                directions,
                norm=self.config.norm,
                center=self.config.center,
                image_mean=x.double().mean(dim=0),
            )
        except ValueError as error:
            raise UserError(f"method.norm={self.config.norm}: {error}") from error
        concepts = directions * matrix.weight[:, None].float()
        offset, rows = (matrix.offset * matrix.weight).float(), matrix.rows
        if self.config.rule == "max":
            offset = offset.masked_fill(matrix.weight == 0, 1e9)  # concepts that were left out are never the largest
            model = ConceptBottleneck(concepts, LinearHead(rows.float()), scale=logit_scale, activation=Largest(offset))
            return Built(model.calibrate(x), bank)
        pictures = concept_scores(spaced(x, 4096), concepts, beta=-offset)
        activation = None
        if self.config.rule == "cubed":
            activation, rows, pictures = Cube(offset), rows**3, pictures**3
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
        scale = logit_scale / max(float(pictures.norm(dim=1).mean()), 1e-30)
        bias = None if activation else (-scale * (rows @ offset.double())).float()
        head = LinearHead(rows.float(), bias)
        model = ConceptBottleneck(concepts, head, scale=scale, activation=activation)
        return Built(model.calibrate(x), bank)
