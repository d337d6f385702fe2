"""``python -m cbm rebalance``: remove concepts from a finished run, and fit its head again as if they said nothing.

The rows, for the model at hand, since their order can turn from one model to the next:

    as trained       the model of the run
    remove           the concepts are held at their mean; what the edits in ``edits.yaml`` do
    remove + refit   the head is fitted again on the other concepts
    rebalance        and so is it on images that count as if the removed concepts had nothing to do with the class
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.editing import Edit, EditSet, LookAlike, Rebalanced, look_alikes, prune, rebalance, still_said
from cbm.errors import UserError, did_you_mean
from cbm.files import new_folder
from cbm.files.names import quoted
from cbm.files.run_directory import seed_of
from cbm.layers import one_class, require_linear
from cbm.metrics.side_by_side import Row, side_by_side
from cbm.run.spurious import spurious_weights
from cbm.trained import TrainedModel, load
from cbm.trained.model import write_model

log = logging.getLogger("cbm")

AS_TRAINED, REMOVE, REFIT, REBALANCE = "as trained", "remove", "remove + refit", "rebalance"


@dataclass(frozen=True)
class RebalancedRun:
    """A run's model without some concepts.

    Attributes:
        rows: the models side by side, by the names above.
        edits: the removals, as edits of the run's model.
        found: the heads that were fitted again, with their certificates.
        model: the rebalanced model.
    """

    rows: dict[str, Row]
    edits: EditSet
    found: Rebalanced
    model: TrainedModel

    def save(self, folder: Path) -> None:
        """Write the rebalanced model and ``edits.yaml`` to a folder; both or, if it is interrupted, neither.

        Raises:
            UserError: the folder exists already, or the disk is full.
        """
        with new_folder(folder) as whole:
            write_model(self.model, whole, str(folder))
            self.edits.save(whole / "edits.yaml")


def rebalance_run(
    path: Path,
    cache: Path,
    *,
    concepts: Sequence[str] = (),
    with_alike: bool = False,
    column: str | None = None,
    split: str = "test",
) -> RebalancedRun:
    """Remove concepts from a run's model, fit its head again, and measure every step.

    Args:
        path: the run directory.
        cache: folder of the feature store.
        concepts: texts of the concepts to remove; by default those that the data set names as spurious for some class.
        with_alike: whether the concepts are removed too whose scores go with these (``cbm.editing.look_alikes``).
        column: a column of groups of the training images to balance, in place of the activations of these concepts.
            Then no concept need be removed.
        split: images on which the rows are measured: ``test``, or ``val`` while something is still chosen by them.

    Raises:
        UserError: the run does not exist or has no linear concepts, no concept is named, one is unknown, there is no
            such column, or ``cbm.editing.rebalance`` refuses.
    """
    trained = load(path)
    model = require_linear(trained.model, trained.bank)
    one_class(model, "rebalancing")
    assert trained.bank is not None
    dataset, data = trained.read(("train", "val", "test"), cache=cache, as_trained=True)
    if "val" not in data.splits:
        raise UserError(
            f"data set '{dataset.name}' has no validation images, which choose the penalty: add a split 'val'"
        )
    removed = removed_columns(trained, concepts, dataset.spurious, needed=column is None)
    if with_alike:
        others = look_alikes(model, removed, data.train.x, data.train.y)
        removed[[each.concept for each in others]] = True
        say_look_alikes(others, trained.bank.texts)
    if column is not None and column not in data.train.groups:
        known = list(data.train.groups)
        nearest = did_you_mean(column, known) if known else f"data set '{dataset.name}' has no columns of groups"
        raise UserError(f"--group '{column}': {nearest}")
    found = rebalance(model, removed, data.train, data.val, column=column, seed=seed_of(trained.config.seed))
    models = {
        AS_TRAINED: model,
        REMOVE: prune(model, removed.expand(len(trained.classes), -1)),
        REFIT: found.refit.model,
        REBALANCE: found.rebalanced.model,
    }
    if bool(removed.any()):
        left = still_said(model.logits(data.train.x), models[REMOVE].logits(data.train.x), data.train.y)
        log.info("after the removal, the other concepts still say %.0f %% of what these said in a class", 100 * left)
    texts = [text for text, out in zip(trained.bank.texts, removed.tolist()) if out]
    why = "goes with the class in the training images without belonging to it"
    made = copy.copy(trained)
    made.model = found.rebalanced.model
    made.changes = (*trained.changes, f"head fitted again without {len(texts)} concepts, images rebalanced")
    edits = EditSet(tuple(Edit("remove", text, why=why) for text in texts))
    return RebalancedRun(side_by_side(models, data.splits[split], data, REMOVE), edits, found, made)


def say_look_alikes(others: Sequence[LookAlike], texts: Sequence[str]) -> None:
    """Log which concepts are removed with the named ones, and through which: to look at before the model is kept."""
    for each in others:
        log.info("'%s' goes with '%s' (r = %.2f) and is removed too", texts[each.concept], texts[each.via],
                 each.correlation)  # fmt: skip
    if not others:
        log.info("no other concept goes with these")


def removed_columns(
    trained: TrainedModel, concepts: Sequence[str], spurious: Mapping[str, Sequence[str]], *, needed: bool
) -> Tensor:
    """Which concepts are removed, ``[K]`` bool: the named ones, else those that the data set names.

    Raises:
        UserError: a name is unknown, or nothing is named though it is ``needed``.
    """
    assert trained.bank is not None
    texts = trained.bank.texts
    EditSet(tuple(Edit("remove", text) for text in concepts)).check(texts, trained.classes)
    if concepts:
        return torch.tensor([text in concepts for text in texts])
    listed = {name: list(values) for name, values in spurious.items()}
    removed = spurious_weights(trained.bank, listed, trained.classes).any(dim=0)
    if needed and not bool(removed.any()):
        named = sorted({text for values in listed.values() for text in values})
        what = f"{quoted(named)}, none of which is" if named else "no spurious concept that is"
        raise UserError(
            f"the data set of run '{trained.path}' names {what} in its bank: expected --concept NAME, such as "
            f"'{texts[0]}'"
        )
    return removed
