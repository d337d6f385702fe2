"""``python -m cbm adapt``: correct finished runs for another domain with a few labelled pictures, and nothing trained.

What the labels would have bought otherwise is always shown beside it:

    unedited       the model of the run
    test-time      ``cbm.editing.test_time``: masked and amplified concepts, those that hold for pictures left out
    recentre       every concept's mean is put where the source domain has it: as many edits as concepts
    refit          a new head, fitted to the labelled pictures alone (logistic regression on standardised concepts)

Edits are bound to the domain: pictures of the source domain keep their logits bit by bit. What the edits would do to
them if they were applied there too is in the last column.
"""

import json
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cbm import config as schema
from cbm.concepts import load_bank
from cbm.data import FeatureSplit
from cbm.editing import EditSet, edited_model
from cbm.editing.edits import Edit
from cbm.editing.test_time import Plan, plan_edits, recentre, source_card
from cbm.errors import UserError
from cbm.evaluation import accuracy
from cbm.inputs import encode_splits, load_encoder, read_images
from cbm.layers import ConceptBottleneck, load_model
from cbm.layers.activations import Sigmoid
from cbm.run import reorder_classes, set_up_logging
from cbm.run_directory import open_run
from cbm.spurious import split_test

log = logging.getLogger("cbm")


@dataclass(frozen=True)
class Adaptation:
    """One draw of labelled pictures.

    Attributes:
        plan: what test-time editing found.
        edits: the same as edits of the model.
        target: accuracy on the other domain's test pictures that were not drawn, by the names above.
        source: accuracy on the own test pictures, were the edits applied there too.
    """

    plan: Plan
    edits: EditSet
    target: dict[str, float]
    source: dict[str, float]


def adapt(
    run: Path, dataset: str, cache: Path, *, root: Path | None = None, shots: int = 4, draws: int = 1,
    guard: str = "default", protect: tuple[str, ...] = (),
) -> list[Adaptation]:  # fmt: skip
    """Edit a run's model for another domain, once for every draw of labelled pictures from its test split.

    The pictures that are not drawn are tested.

    Args:
        run: a finished run of a bottleneck without residual.
        dataset: card of the domain; it has the run's classes.
        cache: of features.
        root: where its pictures are, if the card does not say.
        shots: labelled pictures per class.
        draws: how often they are drawn, with seeds 0, 1, ...
        guard: see ``plan_edits``.
        protect: concepts that may not be masked.

    Raises:
        UserError: no such run or card, a model that cannot be edited so, other classes, or too few pictures.
    """
    set_up_logging()
    path, cfg = open_run(run)
    cfg.cache, cfg.shots, cfg.val_shots = str(cache), "all", "all"
    model = load_model(path / "model.safetensors")
    if not isinstance(model, ConceptBottleneck):
        raise UserError(f"run '{path}' has no linear head on concepts to edit (method={cfg.method.name})")
    if model.residual is not None:
        raise UserError(
            f"run '{path}' decides past its concepts too (a residual): test-time editing would not reach it"
        )
    bank = load_bank(path / "bank")
    classes = json.loads((path / "about.json").read_text())["classes"]
    encoder = load_encoder(cfg.encoder)
    source = encode_splits(reorder_classes(read_images(cfg.dataset, cache), classes), encoder, cfg, ("val", "test"))
    cfg.dataset = schema.load_card(dataset)
    if root is not None:
        cfg.dataset.root = str(root)
    target = encode_splits(reorder_classes(read_images(cfg.dataset, cache), classes), encoder, cfg, ("test",))
    weight = model.weights()
    bias = weight.new_zeros(len(weight)) if model.head.bias is None else model.head.bias.detach()
    card = source_card(model.activations(source.val.x), source.val.y, weight, bias)
    protected = [bank.index(text) for text in protect]
    found = []
    for seed in range(draws):
        support, rest = split_test(target.test, shots, classes, seed)
        a = model.activations(support.x)
        plan = plan_edits(
            a, support.y, weight, bias, card, guard=guard, protect=protected, seed=seed,
            pivot="zero" if isinstance(model.activation, Sigmoid) else "target",
        )  # fmt: skip
        shift = recentre(a, support.y, card)
        everywhere = EditSet(tuple(Edit("shift", text, float(shift[k])) for k, text in enumerate(bank.texts)))
        edits = plan.edits(bank.texts, dataset)
        models = {
            "unedited": model,
            "test-time": edited_model(model, edits, bank.texts, classes),
            "recentre": edited_model(model, everywhere, bank.texts, classes),
        }
        on = {
            name: {kind: accuracy(each.logits(split.x), split.y) for kind, each in models.items()}
            for name, split in (("target", rest), ("source", source.test))
        }
        on["target"]["refit"] = refitted_accuracy(model, support, rest)
        log.info("draw %d: %s", seed, plan.reason)
        found.append(Adaptation(plan, edits, on["target"], on["source"]))
    return found


def refitted_accuracy(model: ConceptBottleneck, support: FeatureSplit, test: FeatureSplit) -> float:
    """What a head fitted to a few labelled pictures alone gets right."""
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    head.fit(model.activations(support.x).numpy(), support.y.numpy())
    chunks = [head.predict(model.activations(part).numpy()) for part in test.x.split(4096)]
    return float(np.mean(np.concatenate(chunks) == test.y.numpy()))


def overlap(found: list[Adaptation]) -> float:
    """Mean Jaccard overlap of the edited concepts over pairs of draws; NaN if there is no pair with edits."""
    sets = [{change.concept for change in each.plan.changes} for each in found]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i] if a | b]
    return statistics.mean(pairs) if pairs else float("nan")
