"""Correct one mistake by hand: change a concept's weights until an image is right by a margin.

The manual editing of Oikarinen et al., "Label-Free Concept Bottleneck Models" (ICLR 2023), counted from the concept's
average as everywhere here, so that the average image keeps its logits.
"""

import torch
from torch import Tensor

from cbm.editing.edits import Edit, EditSet
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck

LEAST = 0.1  # standard deviations from the average; nearer, the weight would have to be huge


@torch.no_grad()
def margin_edits(
    model: ConceptBottleneck,
    x: Tensor,
    label: int,
    column: int,
    texts: list[str],
    classes: list[str],
    *,
    margin: float = 0.2,
    why: str | None = None,
) -> EditSet:
    """Two ``reweight`` edits after which the true class of some images wins over its rival by ``margin``, on average.

    For one image with activation a of the concept, rival r and D = z_r - z_y + margin,

        w_y += h,   w_r -= h,   h = D / (2 (a - reference)),

    which makes z_y - z_r the margin exactly. For several images h is the mean of theirs; the rival is the class that
    most often comes first (or second, after y).

    Args:
        model: the bottleneck.
        x: unit-norm features ``[D]`` or ``[n, D]`` of the images.
        label: index of the class y that the images should have.
        column: column of the concept whose weights change.
        texts: texts of the K concepts.
        classes: C class names.
        margin: distance in logits by which the class should win.
        why: reason, kept with the edits.

    Raises:
        UserError: the concept is average on these images, so that no moderate weight could decide.
    """
    x = x.reshape(-1, x.shape[-1])
    z = model(x).double()
    others = z.clone()
    others[:, label] = -torch.inf
    rival = int(others.argmax(dim=1).mode().values)
    away, usable = _away(model, x, column, texts)
    h = float(((z[:, rival] - z[:, label] + margin) / (2 * away))[usable].mean())
    spread = float(model.spread[column])
    return EditSet(
        tuple(
            Edit(
                "reweight", texts[column], (float(model.weights()[c, column]) + change) * spread, (classes[c],), why=why
            )
            for c, change in ((label, h), (rival, -h))
        )
    )


@torch.no_grad()
def label_margin_edits(
    model: ConceptBottleneck,
    x: Tensor,
    label: int,
    column: int,
    texts: list[str],
    classes: list[str],
    *,
    present: bool = True,
    margin: float = 0.2,
    why: str | None = None,
) -> EditSet:
    """One ``reweight`` edit after which some images are said to have a label, or not to have it, by ``margin``.

    For one image with activation a of the concept and distance g of its logit from the threshold,

        w_l += (margin - g) / (a - reference)          (-margin - g, where it should not be there);

    for several images the mean of theirs. Other arguments and errors as for ``margin_edits``.

    Args:
        present: whether the images should have the label.
    """
    x = x.reshape(-1, x.shape[-1])
    lead = model(x)[:, label].double() - model.cut(label)
    away, usable = _away(model, x, column, texts)
    change = float((((margin if present else -margin) - lead) / away)[usable].mean())
    value = (float(model.weights()[label, column]) + change) * float(model.spread[column])
    return EditSet((Edit("reweight", texts[column], value, (classes[label],), why=why),))


def _away(model: ConceptBottleneck, x: Tensor, column: int, texts: list[str]) -> tuple[Tensor, Tensor]:
    """How far a concept is from its average ``[n]``, and for which images that is far enough.

    Raises:
        UserError: for none.
    """
    away = (model.activations(x)[:, column] - model.reference[column]).double()
    usable = away.abs() >= LEAST * float(model.spread[column])
    if not bool(usable.any()) or float(model.spread[column]) == 0:
        raise UserError(
            f"'{texts[column]}' is within {LEAST} standard deviations of its average on these pictures: "
            "no moderate weight of it makes them right; choose another concept"
        )
    return away, usable
