"""``python -m cbm adapt``: editors of finished runs for another domain, side by side over draws of labelled images.

Edits are bound to the domain: images from home keep their logits bit by bit. What the edits (or the other models that
some editors make) would do to these, were they applied there too, is measured beside it.
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
    """One draw of labelled images.

    Attributes:
        proposals: of every editor, by name.
        target: accuracy on the other domain's test images that were not drawn, of every editor and unedited.
        source: accuracy on the own test images, were the same done there too.
    """

    proposals: dict[str, Proposal]
    target: dict[str, float]
    source: dict[str, float]


def adapt(
    run: Path, dataset: str, cache: Path, *, editors: list[str], root: Path | None = None, shots: int = 4,
    draws: int = 1, guard: str = "default", protect: tuple[str, ...] = (),
) -> list[Adaptation]:  # fmt: skip
    """Correct a run's model for another domain, once for every draw of labelled images from its test split.

    The images that are not drawn are tested.

    Args:
        run: a finished run of a bottleneck.
        dataset: card of the domain; it has the run's classes.
        cache: of features.
        editors: names of ``cbm.editing.EDITORS``.
        root: where its images are, if the card does not say.
        shots: labelled images per class.
        draws: how often they are drawn, with seeds 0, 1, ...
        guard: of test-time editing.
        protect: concepts that test-time editing may not mask.

    Raises:
        UserError: no such run, card or editor, a model that cannot be edited so, other classes, or too few images.
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
    """Mean Jaccard overlap of the edited concepts over pairs of draws; NaN if there is no pair with edits."""
    sets = [{edit.concept for edit in each.edits.edits} if each.edits else set() for each in proposals]
    pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2) if a | b]
    return statistics.mean(pairs) if pairs else float("nan")
