"""Edits of energy-based bottlenecks: concepts that are set are held fixed; the other concepts and the class follow.

Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024. Energies have no weights of concepts for classes, so
only activations are edited:

    set present | absent        the concept is known
    set NUMBER, scale, shift    the log-odds of the concept, read from the image, are replaced or changed
    mask                        the image's evidence is ignored: the concept follows from the others
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cbm.editing.edits import Edit, EditSet
from cbm.errors import UserError
from cbm.layers import EnergyBottleneck
from cbm.layers.energy import ReleasedEnergyBottleneck
from cbm.solvers.energy import Posterior, infer


class EditedEnergies(nn.Module):
    """An energy bottleneck after edits.

    Args:
        model: the energies, which are not changed.
        edits: the edits, which all act.
        texts: texts of the K concepts.

    Raises:
        UserError: an edit that energies do not support, or edits that contradict each other.
    """

    def __init__(self, model: EnergyBottleneck, edits: EditSet, texts: Sequence[str]):
        super().__init__()
        count = len(texts)
        self.model = model
        self.clamp, self.scale, self.shift = torch.full((count,), math.nan), torch.ones(count), torch.zeros(count)
        column = {text: k for k, text in enumerate(texts)}
        for edit in edits.edits:
            k = column[edit.concept]
            if edit.classes is not None or edit.op in ("remove", "reweight"):
                raise UserError(
                    f"edit '{edit}': an energy-based model has no weights of concepts for classes; "
                    "set, mask, scale or shift the concept for all classes"
                )
            self.clamp[k] = math.nan
            if isinstance(edit.value, str):
                self.clamp[k] = float(edit.value == "present")
            elif edit.op in ("set", "mask"):
                self.scale[k], self.shift[k] = 0.0, 0.0 if edit.value is None else edit.number
            elif edit.op == "scale":
                self.scale[k], self.shift[k] = edit.number * self.scale[k], edit.number * self.shift[k]
            else:
                self.shift[k] += edit.number
        self.evidence = bool((self.scale != 1).any() or (self.shift != 0).any())
        if self.evidence and isinstance(model, ReleasedEnergyBottleneck):
            raise UserError("inference as released knows concepts that are told (set present, absent), nothing else")

    @torch.no_grad()
    def infer(self, x: Tensor) -> Posterior:
        """Infer concepts and class of images from features ``[N, D]``."""
        model = self.model
        clamp = None if bool(self.clamp.isnan().all()) else self.clamp.to(x).expand(len(x), -1)
        if not self.evidence:
            return model.infer(x, clamp=clamp)
        said = model.concept_weight * model.concept_logits(x) * self.scale.to(x) + self.shift.to(x)
        seen = model.class_weight * model.class_scores(x)
        return infer(seen, said, model.joint().times(float(model.joint_weight)), clamp=clamp, vectors=model.vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of p(y | x), ``[N, M]``, of features ``[N, D]``."""
        return self.infer(x).class_probability.clamp(min=1e-30).log()


def energy_guided_edits(model: EnergyBottleneck, x: Tensor, told: EditSet, texts: Sequence[str]) -> EditSet:
    """Propose which concepts of an image change when some are set, as edits.

    The concepts that are set are held fixed, and the concepts and class of lowest energy are found; every concept whose
    decision changes is proposed, so that a person can look at it and keep or refuse it.

    Args:
        model: the energies.
        x: unit-norm features ``[D]`` of the image.
        told: edits that set concepts present or absent.
        texts: texts of the K concepts.
    """
    before = EditedEnergies(model, EditSet(), texts).infer(x[None]).concepts[0]
    after = EditedEnergies(model, told, texts).infer(x[None]).concepts[0]
    said = {edit.concept for edit in told.edits}
    why = "follows from " + ", ".join(f"'{text}'" for text in sorted(said))
    changed = [k for k in (before != after).nonzero()[:, 0].tolist() if texts[k] not in said]
    follow = (Edit("set", texts[k], "present" if after[k] > 0.5 else "absent", why=why) for k in changed)
    return told + EditSet(tuple(follow))
