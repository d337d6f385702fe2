"""Grounded bottlenecks: concepts from what a detector saw in the pictures, classes from a sparse layer on them.

Srivastava, Yan, Weng, "VLG-CBM: Training Concept Bottleneck Models with Vision-Language Guidance", NeurIPS 2024. A
detector labels the concepts (``cbm.concepts.detections``), a linear layer learns every concept from its known labels,

    V, a = argmin  mean over known labels of binary cross-entropy(V z + a)  +  l2 / 2 |V|^2,    z standardised features

and the certified elastic net of the other sparse methods decides from V z.

The published labels are gated by the class: the detector is asked about the concepts of the picture's true class, and
every other concept is called absent without having been looked for. A concept then learns the classes that own it.
``fidelity=released`` does that. ``repaired`` (default) takes what nobody looked for as unknown. How far the class
decides what was looked for is measured and said either way, and where the true concepts are known, so is a model that
is more accurate than they allow.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cbm.concepts.bank import ConceptBank
from cbm.concepts.detections import Detections, detected_labels, looked_for, owned_concepts, read_detections
from cbm.concepts.own_labels import other_concepts
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.files import resolve_path
from cbm.files.names import quoted
from cbm.layers import ConceptBottleneck
from cbm.methods.base import Built, Method, one_of, register_method
from cbm.methods.clip_labels import Sharing, seen_by_clip
from cbm.methods.concept_layer import learn_concepts
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, fit_sparse_head
from cbm.solvers import fit_logistic

log = logging.getLogger(__name__)

CUTOFFS = {"repaired": 0.9, "released": 0.9998}
"""Likeness of scores from which on two concepts are one."""
FOLLOWS = 0.5
"""Share of the variance of what was looked for that the class explains, from which on it is said."""


@dataclass
class GroundedConfig(SparseHeadConfig):
    """Settings of grounded bottlenecks."""

    labels: str = "detector"
    """Who says what a picture shows: detector (the table ``detections``) | pseudo (CLIP, by its cosines)"""
    detections: str | None = None
    """CSV file of a detector: path,concept,score[,x0,y0,x1,y1][,asked], or path and a column of scores per concept"""
    fidelity: str = "repaired"
    """repaired: a concept that was not looked for is unknown | released: it is absent"""
    threshold: float | None = None
    """Score above which a concept is present; None: 0.15 of a detector; of CLIP 0 standard deviations above the median
    (repaired) or a cosine of 0.2 (released)"""
    share: bool = False
    """Whether classes share concepts that CLIP scores alike (labels=pseudo)"""
    merge_cutoff: float | None = None
    """Likeness of scores from which on two concepts are one; None: a correlation of 0.9 (repaired) or a cosine of
    0.9998 (released)"""
    own_concepts: int = 5
    """Concepts that a class keeps of those it does not share, with share=true"""


@register_method("grounded")
class Grounded(Method):
    """Concepts from a detector's labels, classes from few concepts."""

    Config = GroundedConfig
    concepts_from = "labels"
    trains = False
    many_labels = True

    def __init__(self, config: GroundedConfig):
        super().__init__(config)
        one_of("method.fidelity", config.fidelity, ("repaired", "released"))
        check_sparse_head(config)
        one_of("method.labels", config.labels, ("detector", "pseudo"))
        self.pseudo = config.labels == "pseudo"
        of_clip = {"repaired": 0.0, "released": 0.2}[config.fidelity]
        threshold = config.threshold
        self.threshold = threshold if threshold is not None else of_clip if self.pseudo else 0.15
        if not self.pseudo and not 0 <= self.threshold < 1:
            raise UserError(f"method.threshold={threshold}: expected a number from 0 to below 1")
        if self.pseudo and config.detections is not None:
            raise UserError("method.labels=pseudo asks CLIP and reads no method.detections: say one of them")
        if config.share and not self.pseudo:
            raise UserError("method.share=true merges concepts that CLIP scores alike: say method.labels=pseudo")
        cutoff = CUTOFFS[config.fidelity] if config.merge_cutoff is None else config.merge_cutoff
        if not 0 < cutoff <= 1:
            raise UserError(f"method.merge_cutoff={cutoff:g}: expected a number above 0, at most 1")
        if config.own_concepts < 1:
            raise UserError(f"method.own_concepts={config.own_concepts}: expected 1 or more")
        self.sharing = Sharing(cutoff, config.own_concepts) if config.share else None
        if config.detections is not None and not resolve_path(config.detections).is_file():
            raise UserError(f"method.detections={config.detections}: there is no such file")

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Learn the concepts from the detector's labels, then solve the sparse layer; arguments as for
        ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        released = self.config.fidelity == "released"
        if self.pseudo:
            bank, found = seen_by_clip(bank, data, threshold=self.threshold, centred=not released, sharing=self.sharing)
        elif self.config.detections is not None:
            found = read_detections(resolve_path(self.config.detections), bank, data)
        else:
            raise UserError(
                "method=grounded learns from what a detector saw: say method.detections=FILE (path,concept,score), or "
                "method.labels=pseudo to ask CLIP; method=supervised learns from the data set's own labels, "
                "method=label_free from a text-image model"
            )
        owners = bank.owners(data.classes)
        owned = {name: owned_concepts(data.splits[name], owners) for name in ("train", "val")}
        unasked = "absent" if released else "unknown"
        labels = {
            name: detected_labels(found, name, owned[name], threshold=self.threshold, unasked=unasked)
            for name in ("train", "val")
        }
        self._say_labels(found, owned["train"], labels["train"], data, unasked)
        source = "method.labels=pseudo" if self.pseudo else f"method.detections={self.config.detections}"
        bank, columns = _learnable(bank, labels["train"], source)
        directions, self.facts["concept_l2"] = learn_concepts(data, {k: c[:, columns] for k, c in labels.items()})
        model = fit_sparse_head(data, directions, self.config, allowed=other_concepts(bank, data))
        self._compare_with_truth(model, bank, data)
        return Built(model, bank)

    def _say_labels(self, found: Detections, owned: Tensor, labels: Tensor, data: FeatureData, unasked: str) -> None:
        """How much was looked for and found, and how far the class decides it."""
        asked = looked_for(found, "train", owned)
        follows = explained_by_class(asked, data.train.y, len(data.classes))
        self.facts |= {
            "labels_asked": float(asked.float().mean()),
            "labels_present": float((labels == 1).float().mean()),
            "asked_follows_class": follows,
        }
        source = "pseudo-labels" if self.pseudo else "detections"
        log.info("%s: about %d of %d training pictures; %.1f %% of the %s labels were looked for, %.1f %% are present",
                 source, int(found.listed["train"].sum()), len(labels), 100 * self.facts["labels_asked"],
                 f"{labels.numel():,}", 100 * self.facts["labels_present"])  # fmt: skip
        if follows >= FOLLOWS:
            log.warning("%s: which concepts were looked for follows the class (it explains %.0f %% of the "
                        "variance): %.1f %% of the labels are taken as %s without a look%s",
                        source, 100 * follows, 100 - 100 * self.facts["labels_asked"], unasked,
                        ", so concepts learn which classes own them" if unasked == "absent" else "")  # fmt: skip

    def _compare_with_truth(self, model: ConceptBottleneck, bank: ConceptBank, data: FeatureData) -> None:
        """Whether the classes are told better than the true concepts allow, where these are known."""
        matches = match_concepts(bank.phrases, data.concept_names)
        train, val = data.train.concepts, data.val.concepts
        if data.many or train is None or val is None or len(matches) < len(bank):
            return
        columns = [column for _, column in matches]
        c, c_val = (truth[:, columns].nan_to_num(0.5) for truth in (train, val))
        ((weight, bias),) = fit_logistic(c, data.train.y, l2=1e-3, num_classes=len(data.classes), tol=1e-4)
        allowed = float(((c_val @ weight.T + bias).argmax(dim=1) == data.val.y).float().mean())
        reached = float((model(data.val.x).argmax(dim=1) == data.val.y).float().mean())
        self.facts |= {"val_accuracy": reached, "val_accuracy_true_concepts": allowed}
        error = (allowed * (1 - allowed) / len(c_val)) ** 0.5
        if reached > allowed + 2 * error:
            log.warning("concept labels follow the class: validation accuracy %.2f exceeds what the true concepts "
                        "allow (%.2f): the concepts say more than their names", reached, allowed)  # fmt: skip


def explained_by_class(asked: Tensor, y: Tensor, num_classes: int) -> float:
    """Share of the variance of what was looked for that the class, or the labels, explain linearly; 0 where everything
    or nothing was looked for.

    Args:
        asked: which concepts were looked for in which pictures ``[N, K]`` bool.
        y: class indices ``[N]``, or labels ``[N, L]``.
        num_classes: number of classes.

    Example:
        >>> asked = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
        >>> explained_by_class(asked, torch.tensor([0, 0, 1, 1]), 2), explained_by_class(asked, torch.arange(4) % 2, 2)
        (1.0, 0.0)
    """
    away = asked.double() - asked.double().mean(dim=0)
    total = float(away.square().sum())
    if total == 0:
        return 0.0
    known = one_hot(y, num_classes).double() if y.ndim == 1 else y.nan_to_num().double()
    known = known - known.mean(dim=0)
    solution = torch.linalg.lstsq(known, away, driver="gelsd").solution  # classes may have no picture
    return round(1 - float((away - known @ solution).square().sum()) / total, 6)


def _learnable(bank: ConceptBank, labels: Tensor, source: str) -> tuple[ConceptBank, Tensor]:
    """The concepts that are present on some training picture and absent on another, and their columns.

    Raises:
        UserError: there are none.
    """
    present, absent = ((labels == value).any(dim=0).tolist() for value in (1, 0))
    reasons = [
        None if yes and no else "never detected" if not yes else "never looked for and not found"
        for yes, no in zip(present, absent)
    ]
    kept = torch.tensor([k for k, reason in enumerate(reasons) if reason is None], dtype=torch.long)
    if not len(kept):
        raise UserError(
            f"{source}: no concept of bank '{bank.name}' is present on one training picture and absent on another"
        )
    if left := [text for text, reason in zip(bank.texts, reasons) if reason]:
        log.info("concepts: %d of %d left out, never detected or always: %s", len(left), len(bank), quoted(left))
    return bank.keep(reasons, "detections"), kept
