"""``python -m cbm adapt``: editors of finished runs for another domain, side by side over draws of labelled images.

Edits are bound to the domain: images of the source domain keep exactly the same logits. The accuracy that the edits (or
the other models that some editors make) would have in the source domain, if they were applied there too, is measured as
well.
"""

import itertools
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path

from cbm.data.features import split_test
from cbm.editing import EDITORS, Proposal, create_editor
from cbm.metrics.evaluate import accuracy
from cbm.trained import load
from cbm.trained.domains import edit_context

log = logging.getLogger("cbm")

UNEDITED = "unedited"


@dataclass(frozen=True)
class Adaptation:
    """The results for one draw of labelled images.

    Attributes:
        proposals: proposal of every editor, by name.
        target: accuracy on the other domain's test images that were not drawn, by editor and ``unedited``.
        source: accuracy on the source domain's test images, if the same correction were applied there.
    """

    proposals: dict[str, Proposal]
    target: dict[str, float]
    source: dict[str, float]


def adapt(
    run: Path,
    dataset: str,
    cache: Path,
    *,
    editors: list[str],
    root: Path | None = None,
    shots: int = 4,
    draws: int = 1,
    guard: str = "default",
    protect: tuple[str, ...] = (),
) -> list[Adaptation]:
    """Correct a run's model for another domain, once for every draw of labelled images from that domain's test split.

    The images that are not drawn are tested.

    Args:
        run: directory of a finished run of a bottleneck.
        dataset: name of the domain's data set card; it must have the run's classes.
        cache: folder of the feature store.
        editors: names of editors in ``cbm.editing.EDITORS``.
        root: folder of the domain's images, if the card does not say.
        shots: number of labelled images per class.
        draws: number of draws, with seeds 0, 1, ...
        guard: condition that edits of the ``test_time`` editor must meet: lenient, default or strict.
        protect: texts of concepts that the ``test_time`` editor may not mask.

    Returns:
        One result per draw.

    Raises:
        UserError: the run, card or editor does not exist, the model cannot be edited in this way, the classes differ,
            or there are too few images.
    """
    for name in editors:
        EDITORS.find(name)
    own = {"test_time": {"guard": guard, "protect": list(protect)}}
    model = load(run)
    card = model.card(dataset, root)
    home = model.split("test", cache=cache)
    there = model.split("test", dataset=card, cache=cache)
    found = []
    for seed in range(draws):
        support, rest = split_test(there, shots, model.classes, seed)
        context = edit_context(model, card, support, rest, domain=dataset, cache=cache)
        proposals = {
            name: create_editor({"name": name, "seed": seed, **own.get(name, {})}).propose(context) for name in editors
        }
        models = {UNEDITED: context.model} | {name: proposal.model for name, proposal in proposals.items()}
        target, source = (
            {name: accuracy(each.logits(split.x), split.y) for name, each in models.items()} for split in (rest, home)
        )
        log.info("draw %d: %s", seed, "; ".join(f"{name}: {proposal.reason}" for name, proposal in proposals.items()))
        found.append(Adaptation(proposals, target, source))
    return found


def overlap(proposals: list[Proposal]) -> float:
    """Mean Jaccard overlap of the edited concepts over pairs of draws; NaN if no pair has edits."""
    sets = [{edit.concept for edit in each.edits.edits} if each.edits else set() for each in proposals]
    pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2) if a | b]
    return statistics.mean(pairs) if pairs else float("nan")
