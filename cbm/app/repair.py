"""Before and after, step by step: what every edit did to the split, and what a head says that is fitted again without
what the edits remove (``cbm.editing.rebalance``)."""

import shlex
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.app.session import Session
from cbm.editing import EditSet, prune, rebalance
from cbm.errors import UserError
from cbm.files.run_directory import seed_of
from cbm.layers import ConceptBottleneck
from cbm.metrics.groups import group_table, worst_group
from cbm.metrics.multilabel import auroc
from cbm.metrics.side_by_side import Row, side_by_side

AS_TRAINED, REMOVE, REFIT, REBALANCE = "as trained", "removed", "removed, head fitted again", "removed and rebalanced"
STEPS = 40
"""Steps that are measured, the last ones."""


@dataclass(frozen=True)
class Step:
    """The state after one change of the edits.

    Attributes:
        number: its place from the first state, which has no edits.
        words: what was changed, a line for each edit.
        quality: accuracy on the split; of labels the mean AUROC.
        worst: accuracy of the worst group of ten pictures, and its name; None without groups, and of labels.
        now: whether the tab is there.
    """

    number: int
    words: list[str]
    quality: float
    worst: tuple[float, str] | None
    now: bool


@torch.no_grad()
def timeline(tab: Session) -> list[Step]:
    """The states of a tab's edits, those that were taken back too, with what they do to the split."""
    states, here = tab.editor.timeline
    first = max(len(states) - STEPS, 0)
    found = []
    for number in range(first, len(states)):
        before = states[number - 1] if number else EditSet()
        new = states[number].edits[len(before) :] or states[number].edits
        words = [str(edit) for edit in new] if number else ["no edits"]
        quality, worst = _quality(tab, states[number])
        found.append(Step(number, words, quality, worst, number == here))
    return found


def _quality(tab: Session, edits: EditSet) -> tuple[float, tuple[float, str] | None]:
    explorer, split = tab.explorer, tab.explorer.split
    logits = tab.editor.preview(edits, split.x, split.names, explorer.logits)
    if explorer.many:
        return float(auroc(logits, split.y).nanmean()), None
    worst = _worst(tab, logits)
    return float((logits.argmax(dim=1) == split.y).double().mean()), worst


def _worst(tab: Session, logits: Tensor) -> tuple[float, str] | None:
    explorer = tab.explorer
    if not explorer.split.groups:
        return None
    found = worst_group(group_table(logits, explorer.split, explorer.classes, explorer.data.group_names))
    return None if found is None else (found.accuracy, found.name)


@dataclass(frozen=True)
class Repaired:
    """A model without some concepts, four ways.

    Attributes:
        removed: texts of the concepts.
        rows: the models side by side on the pictures of the split.
        auroc: how well the class is told from what is removed.
        effective: how many equal training pictures the weighted ones count as.
        command: what writes the rebalanced model, as it is typed.
    """

    removed: list[str]
    rows: dict[str, Row]
    auroc: float
    effective: float
    command: str


def removed_by(tab: Session) -> list[str]:
    """Concepts that the edits of a tab remove or mask in all pictures for all classes."""
    return list(
        dict.fromkeys(
            edit.concept
            for edit in tab.edits.edits
            if edit.op in ("remove", "mask") and edit.samples is None and edit.classes is None
        )
    )


def fit_again(tab: Session) -> Repaired:
    """Fit the head again on the run's training pictures without what the edits of a tab remove.

    Raises:
        UserError: nothing is removed for all pictures and classes, other pictures than the run's own are looked at, or
            ``cbm.editing.rebalance`` refuses.
    """
    explorer, texts = tab.explorer, removed_by(tab)
    model = explorer.bottleneck
    if not isinstance(model, ConceptBottleneck) or explorer.many:
        raise UserError("a head is fitted again for models that say one class per picture by a linear head on concepts")
    if not texts:
        raise UserError("remove concepts first, for all pictures and all classes: a head is fitted again without them")
    if explorer.card != explorer.model.config.dataset:
        raise UserError("a head is fitted again for the run's own pictures: open it without --dataset and --root")
    names = dict.fromkeys(("train", "val", explorer.name))
    _, data = explorer.model.read(tuple(names), cache=explorer.cache, as_trained=True)
    if "val" not in data.splits:
        raise UserError("the data set has no validation pictures, which choose the penalty of the new head")
    removed = torch.tensor([text in texts for text in explorer.bank.texts])
    found = rebalance(model, removed, data.train, data.val, seed=seed_of(explorer.model.config.seed))
    models = {
        AS_TRAINED: model,
        REMOVE: prune(model, removed.expand(len(explorer.classes), -1)),
        REFIT: found.refit.model,
        REBALANCE: found.rebalanced.model,
    }
    rows = side_by_side(models, explorer.split, explorer.data, REMOVE)
    named = [word for text in texts for word in ("--concept", text)]
    command = shlex.join(["python", "-m", "cbm", "rebalance", str(explorer.model.path), *named, "--out", "FOLDER"])
    return Repaired(texts, rows, found.auroc, found.rebalanced.rows, command)
