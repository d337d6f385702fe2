"""What a run of several labels can say about its concepts: the tests of ``cbm.metrics.integrity`` in terms of AUROC.

The mean AUROC of the labels takes the place of accuracy, and 0.5 that of chance: a model that says the same of every
image has exactly that. Two models are compared by a paired bootstrap of the images.
"""

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck
from cbm.metrics.integrity import Evidence, judged, p_value, renamed_logits
from cbm.metrics.multilabel import AurocDifference, auroc
from cbm.metrics.reader import Reading

CHANCE = 0.5
"""AUROC of a model that says the same of every image."""
CONTROLS = {
    "random": "every concept is a random direction",
    "shuffled": "every name gets another concept's direction",
}
"""What a control is, by its name."""


def label_names_test(readings: list[Reading], why_not: str) -> Evidence:
    """Do the names say the labels?

    Args:
        readings: by the owners of the phrases, by another text encoder, or both; the last one decides.
        why_not: why nobody can read, if nobody can.
    """
    question = "Do the names say the labels?"
    meaning = (
        "A reader who sees only the five words an image gets, and knows what words mean from text alone, should rank "
        "the images that have a label higher than with the words exchanged. Nothing is trained, so no direction can be "
        "re-labelled."
    )
    if not readings:
        return Evidence("names", question, f"cannot be tested: {why_not}", meaning, "untested")
    best = readings[-1]
    by = "" if best.by == "owners" else " by another text encoder"
    finding = (
        f"a reader of five words{by} ranks with an AUROC of {best.accuracy:.3f} ({best.low:.3f} to {best.high:.3f}; "
        f"names exchanged: {best.null:.3f} ± {best.null_sd:.3f}, {p_value(best.p)})"
    )
    finding, status = judged(finding, best)
    return Evidence(
        "names", question, finding, meaning, status, best.accuracy, best.null, (best.low, best.high), best.p
    )


def not_for_labels() -> Evidence:
    """The line for what cannot be judged where images have several labels."""
    return Evidence(
        "association",
        "Do concepts go with their labels?",
        "cannot be tested: an image that has a phrase's label has others too, and what goes with them raises the score "
        "as well",
        "Of classes, a phrase should score higher on images of those it was written for. Labels come together, so a "
        "higher score does not say which of them it is for.",
        "untested",
    )


def control_test(name: str, ours: float, theirs: float, low: float, high: float) -> Evidence:
    """Do the concepts rank labels better than meaningless ones?

    Args:
        name: name of the control, of ``CONTROLS``.
        ours: mean AUROC of the model.
        theirs: that of the same method on the control's concepts.
        low: lower end of the 95 % interval of the difference, on the same images.
        high: upper end.
    """
    return Evidence(
        name,
        f"Do these concepts rank better than {name} ones?",
        f"AUROC {ours:.3f} against {theirs:.3f} of {name} concepts; lead {low:+.3f} to {high:+.3f}".replace("-", "−"),
        f"The same method where {CONTROLS[name]}. Many directions rank well, whatever they are called.",
        "passed" if low > 0 else "failed",
        ours,
        theirs,
    )


def other_label_facts(ours: float, deleted: float, renamed: float, lead: AurocDifference | None) -> list[Evidence]:
    """What every working head passes, and therefore decides nothing; a head that does not work carries nothing.

    Args:
        ours: mean AUROC of the model.
        deleted: mean AUROC with every concept held at its reference value.
        renamed: mean AUROC if scores are dealt out anew after training.
        lead: how much better the model ranks than with every concept deleted, on the same images.
    """
    better = lead is not None and lead.low > 0
    left = f"an AUROC of {deleted:.3f} is left with every concept deleted; chance is {CHANCE}"
    return [
        Evidence(
            "deleted",
            "Lost without its concepts?",
            left if better else f"the concepts decide nothing: of {ours:.3f} {left}",
            "True of every head without a residual that works: what is left says the same of every image.",
            "fact" if better else "failed",
            deleted,
            CHANCE,
        ),
        Evidence(
            "renamed",
            "Does it matter which score is which?",
            f"with the scores dealt out anew after training an AUROC of {renamed:.3f} of {ours:.3f} is left",
            "True of every head that listens to its scores, whatever they are called.",
            "fact",
            renamed,
            ours,
        ),
    ]


@torch.no_grad()
def renamed_auroc(model: ConceptBottleneck, x: Tensor, y: Tensor, draws: int = 5) -> float:
    """Mean AUROC if every concept keeps its weights but gets the score of another concept, mean over seeded draws.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        draws: number of permutations of the concepts (no concept keeps its meaning).
    """
    return sum(float(auroc(logits, y).nanmean()) for logits in renamed_logits(model, x, draws)) / draws


def shown_by_owners(y: Tensor, owners: Tensor) -> Tensor:
    """Whether an image has a label that a concept was written for, ``[N, K]``: 1, 0, or NaN if that is not known.

    Args:
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        owners: which label owns which concept, ``[L, K]`` bool.

    >>> y = torch.tensor([[1.0, float("nan")], [0.0, float("nan")], [0.0, 0.0]])
    >>> shown_by_owners(y, torch.tensor([[True, True], [False, True]])).tolist()
    [[1.0, 1.0], [0.0, nan], [0.0, 0.0]]
    """
    has, unknown = ((each.float() @ owners.float()) > 0 for each in (y == 1, y.isnan()))
    return has.float().masked_fill(unknown & ~has, torch.nan)
