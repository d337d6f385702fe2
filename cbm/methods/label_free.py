"""Label-free CBM: Oikarinen et al., "Label-Free Concept Bottleneck Models", ICLR 2023. Concepts for any backbone.

Phrases are filtered by their meaning and scores (section 3.1); for those that stay, a text-image model, the teacher,
scores the images, p = T t_k, and the backbone learns a direction that repeats the scores (section 3.2, equation 2),

    w_k = argmax_w  <q'^3, p'^3> / (|q'^3| |p'^3|)          q = X w, ' removes the mean

Concepts it does not learn are left out. A sparse linear layer on the standardised q decides (section 3.3).

Without a teacher the encoder teaches itself. The phrase's own embedding then has similarity 1, which is the maximum: it
is the direction, and nothing is learned (``repaired``); ``paper`` searches for it all the same.

``fidelity=paper`` follows the published procedure: raw cosines of texts, an absolute cutoff for the best images, Adam
from a random start that stops at the first validation without improvement. ``repaired`` (default) compares texts after
removing what they share, has no absolute cutoff (cosines differ by encoder), and starts from the ridge regression. Both
judge a concept on validation images and stop each concept by itself; the published code used the test set for that.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.filters import drop_long, drop_near_class_names, drop_near_duplicates, drop_unseen, top_activation
from cbm.concepts.own_labels import other_concepts
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.methods.base import Built, Method, one_of, register_method
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, fit_sparse_head
from cbm.solvers.projection import fit_projection

log = logging.getLogger(__name__)


@dataclass
class LabelFreeConfig(SparseHeadConfig):
    """Settings of Label-free CBM; a cutoff that is None is not applied."""

    fidelity: str = "repaired"
    """repaired | paper"""
    max_characters: int | None = 30
    class_cutoff: float | None = 0.85
    """Similarity to a class name from which on a phrase is left out"""
    duplicate_cutoff: float | None = 0.90
    """Similarity of two phrases from which on only the more generic one stays"""
    clip_cutoff: float | None = None
    """Mean cosine of a phrase's five best training images that it must exceed; None: 0.25 (paper) or no filter
    (repaired); -1: no filter"""
    interpretability_cutoff: float | None = 0.45
    """Similarity of the learned direction's scores to the teacher's, on validation images, that it must exceed"""
    projection_steps: int = 1000
    """Largest number of steps to learn the directions"""


@register_method("label_free")
class LabelFree(Method):
    """logits = W standardise(x T^T) + b, W sparse; T repeats a teacher's scores of the phrases."""

    Config = LabelFreeConfig
    trains = False
    uses_teacher = True
    many_labels = True

    def __init__(self, config: LabelFreeConfig):
        super().__init__(config)
        self.reads_class_names = config.class_cutoff is not None
        check_sparse_head(config)
        self.repaired = one_of("method.fidelity", config.fidelity, ("repaired", "paper")) == "repaired"
        if config.projection_steps < 0:
            raise UserError(f"method.projection_steps={config.projection_steps}: expected 0 or more")
        if config.clip_cutoff is None and not self.repaired:
            config.clip_cutoff = 0.25

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Filter the phrases, learn their directions, leave out those that are not learned, fit the sparse layer.

        Arguments as for ``Method.build``.
        """
        bank = self.required(bank, "a concept bank")
        candidates = len(bank)
        bank = self._filter_texts(bank, data.class_embeddings, data.classes)
        pictures = (data.teacher or data).train.x
        bank = self._apply(
            bank, "clip_cutoff", lambda b, cutoff: drop_unseen(b, top_activation(pictures, b.directions()), cutoff)
        )
        directions, similarity = self._learn(data, bank.directions())
        learned = directions is not bank.embeddings
        concepts = tuple(
            replace(c, score=value, provenance={**c.provenance, "projection": value} if learned else c.provenance)
            for c, value in zip(bank.concepts, similarity.tolist())
        )
        bank = replace(bank, concepts=concepts, embeddings=directions, encoder=data.encoder)
        bank = self._apply(bank, "interpretability_cutoff", lambda b, cutoff: _drop_unlearned(b, similarity, cutoff))
        log.info(
            "concepts: %d of %d candidates; similarity to the teacher's scores %.2f on average, %.2f at least",
            len(bank),
            candidates,
            *((v := torch.tensor([c.score or 0.0 for c in bank.concepts])).mean(), v.min()),
        )
        allowed = other_concepts(bank, data)
        return Built(fit_sparse_head(data, bank.directions(), self.config, allowed=allowed), bank)

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple[Method, ConceptBank]:
        """The method without filters on the names that passed them, because random directions would not pass."""
        row = {text: k for k, text in enumerate(candidates.texts)}
        unfiltered = replace(
            self.config,
            max_characters=None,
            class_cutoff=None,
            duplicate_cutoff=None,
            clip_cutoff=-1.0,
            interpretability_cutoff=None,
        )
        return LabelFree(unfiltered), replace(candidates.take(row[t] for t in used.texts), concepts=used.concepts)

    def _filter_texts(self, bank: ConceptBank, class_embeddings: Tensor | None, classes: list[str]) -> ConceptBank:
        def near_classes(bank: ConceptBank, cutoff: float) -> ConceptBank:
            if class_embeddings is None:
                raise UserError(
                    f"method.class_cutoff={cutoff:g} compares phrases with class names, whose embeddings are missing: "
                    "say class_embeddings= [C, D] (of the text tower), or class_cutoff=None to keep such phrases"
                )
            texts = bank.directions()
            return drop_near_class_names(bank, texts, class_embeddings, classes, cutoff, centred=self.repaired)

        def near_others(bank: ConceptBank, cutoff: float) -> ConceptBank:
            return drop_near_duplicates(bank, bank.directions(), cutoff, centred=self.repaired)

        bank = self._apply(bank, "max_characters", drop_long)
        bank = self._apply(bank, "class_cutoff", near_classes)
        return self._apply(bank, "duplicate_cutoff", near_others)

    def _learn(self, data: FeatureData, concepts: Tensor) -> tuple[Tensor, Tensor]:
        """Directions ``[K, D]`` in the space of the features, and their validation similarity ``[K]``."""
        teacher = data.teacher
        if teacher is None and self.repaired:
            return concepts, torch.ones(len(concepts))
        teacher = teacher or data
        return fit_projection(
            data.train.x,
            teacher.train.x,
            concepts,
            val_x=data.val.x,
            val_teacher_x=teacher.val.x,
            start="ridge" if self.repaired else "random",
            steps=self.config.projection_steps,
            patience=1 if self.repaired else 0,
            seed=data.seed,
        )

    def _apply(
        self, bank: ConceptBank, setting: str, leave_out: Callable[[ConceptBank, Any], ConceptBank]
    ) -> ConceptBank:
        """The bank after a filter, or the bank as it is if the filter's cutoff is None.

        Raises:
            UserError: no concept is left, or none of some class.
        """
        cutoff = getattr(self.config, setting)
        if cutoff is None:
            return bank
        left = leave_out(bank, cutoff)
        bare = [name for name in bank.classes if name not in left.classes]
        if bare or not len(left):
            whom = f"class '{bare[0]}'" if bare else "any class"
            more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
            way = "smaller" if setting in ("clip_cutoff", "interpretability_cutoff") else "larger"
            raise UserError(
                f"method.{setting}={cutoff:g} leaves {len(left)} of {len(bank)} concepts of bank '{bank.name}', "
                f"and none for {whom}{more}: a {way} number keeps more"
            )
        return left


def _drop_unlearned(bank: ConceptBank, similarity: Tensor, cutoff: float) -> ConceptBank:
    """Leave out concepts whose direction does not repeat the teacher's scores; similarity ``[K]``."""
    reasons = [
        None if value > cutoff else f"not learned: similarity {value:.2f} to the teacher's scores, wanted {cutoff:g}"
        for value in similarity.tolist()
    ]
    return bank.keep(reasons, "interpretability")
