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

from cbm.data.features import FeatureSplit, split_test
from cbm.editing import EDITORS, Proposal, create_editor
from cbm.editing.domains.guard import LEVEL
from cbm.layers import ConceptBottleneck, one_class
from cbm.metrics import class_accuracies
from cbm.metrics.bootstrap import Units, accuracy_intervals
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
        balanced: the same as the mean of the classes, which is what editors try to raise.
        intervals: 95 % intervals of both over these images, by editor and then ``accuracy`` and ``accuracy_macro``.
        source: accuracy on the source domain's test images, if the same correction were applied there.
    """

    proposals: dict[str, Proposal]
    target: dict[str, float]
    balanced: dict[str, float]
    intervals: dict[str, dict[str, tuple[float, float]]]
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
    level: float | None = LEVEL,
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
        level: largest p-value of the guard at which a correction is made; None makes every correction, unchecked.
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
    one_class(model.model, "an editor for another domain")
    card = model.card(dataset, root)
    home = model.split("test", cache=cache)
    there = model.split("test", dataset=card, cache=cache)
    found = []
    for seed in range(draws):
        support, rest = split_test(there, shots, model.classes, seed)
        context = edit_context(model, card, support, rest, domain=dataset, cache=cache)
        settings = {"seed": seed, "level": level}
        proposals = {
            name: create_editor({"name": name, **settings, **own.get(name, {})}).propose(context) for name in editors
        }
        models = {UNEDITED: context.model} | {name: proposal.model for name, proposal in proposals.items()}
        log.info("draw %d: %s", seed, "; ".join(f"{name}: {proposal.reason}" for name, proposal in proposals.items()))
        found.append(_measured(proposals, models, rest, home, len(model.classes)))
    return found


def _measured(
    proposals: dict[str, Proposal],
    models: dict[str, ConceptBottleneck],
    rest: FeatureSplit,
    home: FeatureSplit,
    classes: int,
) -> Adaptation:
    """The corrected models on the images of the domain that were not drawn, and on those of the source domain."""
    decided = {name: each.logits(rest.x).argmax(dim=1) for name, each in models.items()}
    right = {name: (each == rest.y).numpy() for name, each in decided.items()}
    units = Units(rest.y.numpy(), rest.subjects)
    return Adaptation(
        proposals,
        {name: float(each.mean()) for name, each in right.items()},
        {name: float(class_accuracies(each, rest.y, classes).nanmean()) for name, each in decided.items()},
        {name: accuracy_intervals(each, units) for name, each in right.items()},
        {name: accuracy(each.logits(home.x), home.y) for name, each in models.items()},
    )


def mean_interval(found: list[Adaptation], name: str, key: str) -> str:
    """The ends of an editor's interval, mean over the draws, in percent: ``[80.1, 85.9]``."""
    low, high = (statistics.mean(each.intervals[name][key][end] for each in found) for end in (0, 1))
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def overlap(proposals: list[Proposal]) -> float:
    """Mean Jaccard overlap of the edited concepts over pairs of draws; NaN if no pair has edits."""
    sets = [{edit.concept for edit in each.edits.edits} if each.edits else set() for each in proposals]
    pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2) if a | b]
    return statistics.mean(pairs) if pairs else float("nan")
