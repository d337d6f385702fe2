"""Does editing undo a spurious correlation? The model-editing experiment of PCBM on any data set that names one.

In training some concepts go with a class without belonging to it (``ImageDataset.spurious``); in the test split they do
not. A finished run's model is edited, and compared on the test split with models that use labels of that split:

    unedited                    the model of the run
    prune                       the class's weights on its spurious concepts are set to zero
    prune with alike            and so are those on concepts whose scores go with theirs within classes
    remove columns              no class uses a concept any more that is spurious for some class
    prune + normalise           as prune, and the remaining weights are scaled to the former sum of absolute weights
    prune random concepts       as many concepts of every class, drawn at random from those it uses
    retrain without them        the method fitted anew on the training images without these concepts
    retrain without alike       and without those that look alike
    remove + refit              an elastic net fitted anew on the training images without the columns
    rebalance                   and so is it on images that count as if these concepts had nothing to do with the class
    fine-tune (oracle)          the head fitted anew on a fifth of the test images, with their labels

All are measured on the other four fifths of the test images.
"""

import logging
import statistics
from pathlib import Path

import torch
from torch import Tensor

from cbm.concepts import ConceptBank
from cbm.concepts.readers import normalise_text
from cbm.data import FeatureData, FeatureSplit
from cbm.data.features import split_test
from cbm.editing import look_alikes, prune, rebalance
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, one_class, require_linear
from cbm.methods import create_method, fit_method
from cbm.metrics.side_by_side import Row, side_by_side
from cbm.trained import load

log = logging.getLogger("cbm")

TARGET_SHARE = 0.2  # of the test pictures, for the oracle


def edit_spurious(run: Path, cache: Path) -> dict[str, Row]:
    """Accuracy on the test split, and that of its worst group, before and after the edits, by the names above.

    The last two are left out where a model cannot be rebalanced (``cbm.editing.rebalance``); a line says why.

    Raises:
        UserError: the run does not exist, the model has no concepts, the data set names no spurious concepts, or the
            model's bank contains none of them.
    """
    trained = load(run)
    path, cfg, model = trained.path, trained.config, require_linear(trained.model, trained.bank)
    one_class(model, "removing spurious concepts")
    bank = trained.bank
    assert bank is not None
    dataset, data = trained.read(("train", "val", "test"), cache=cache, as_trained=True)
    if not dataset.spurious:
        raise UserError(
            f"data set '{dataset.name}' names no spurious concepts: use dataset=birds_spurious, or a CSV card with a "
            "column 'spurious'"
        )
    removed = spurious_weights(bank, dataset.spurious, dataset.classes)
    if not removed.any():
        named = sorted({concept for concepts in dataset.spurious.values() for concept in concepts})
        raise UserError(f"run '{path}': none of the spurious concepts is in its bank, e.g. '{named[0]}'")
    if removed.any(dim=0).all():
        raise UserError(f"run '{path}': every concept of its bank is spurious, none would be left: use more concepts")
    shots = max(2, round(TARGET_SHARE * int(data.test.y.bincount(minlength=len(data.classes)).min())))
    target, rest = split_test(data.test, shots, data.classes, cfg.seed)
    random = random_weights(model.weights(), removed, cfg.seed)
    columns = (~removed.any(dim=0)).nonzero().flatten().tolist()
    with_alike = torch.stack([_with_look_alikes(model, row, data.train) for row in removed])
    unlike = (~with_alike.any(dim=0)).nonzero().flatten().tolist()

    def fitted(train: FeatureSplit, val: FeatureSplit, concepts: ConceptBank) -> ConceptBottleneck:
        method, concepts = create_method(cfg.method).as_control(concepts, concepts)
        part = FeatureData({"train": train, "val": val, "test": rest}, data.classes, seed=cfg.seed)
        fit, _ = fit_method(method, part, concepts, trained.logit_scale, seed=cfg.seed, trainer=cfg.trainer)
        return require_linear(fit)

    judge, tune = split_test(target, max(1, shots // 4), data.classes, cfg.seed)
    models = {
        "unedited": model,
        "prune": prune(model, removed),
        "prune + normalise": prune(model, removed, normalise=True),
        "prune with alike": prune(model, with_alike),
        "remove columns": prune(model, removed.any(dim=0).expand_as(removed)),
        "prune random concepts": prune(model, random),
        "retrain without them": fitted(data.train, data.val, bank.take(columns)),
        "retrain without alike": fitted(data.train, data.val, bank.take(unlike)),
        "fine-tune (oracle)": fitted(tune, judge, bank),
    }
    try:
        found = rebalance(model, removed.any(dim=0), data.train, data.val, seed=cfg.seed)
        models |= {"remove + refit": found.refit.model, "rebalance": found.rebalanced.model}
    except UserError as error:
        log.warning("run '%s' is not rebalanced: %s", path, error)
    return side_by_side(models, rest, data, "remove columns")


def _with_look_alikes(model: ConceptBottleneck, given: Tensor, train: FeatureSplit) -> Tensor:
    """The given concepts ``[K]`` (bool) and those that go with them."""
    found = given.clone()
    found[[each.concept for each in look_alikes(model, given, train.x, train.y)]] = True
    return found


def spurious_weights(bank: ConceptBank, spurious: dict[str, list[str]], classes: list[str]) -> Tensor:
    """The concepts of the bank that are spurious for each class, by name: ``[C, K]`` bool.

    Args:
        bank: the K concepts.
        spurious: spurious concepts by class name.
        classes: C class names.
    """
    names = {c: {normalise_text(concept) for concept in concepts} for c, concepts in spurious.items()}
    texts = [normalise_text(text) for text in bank.texts]
    return torch.tensor([[text in names.get(c, ()) for text in texts] for c in classes])


def random_weights(weights: Tensor, removed: Tensor, seed: int) -> Tensor:
    """Draw as many used concepts of every class as are removed from it, ``[C, K]`` bool.

    Args:
        weights: weights ``[C, K]`` of the head.
        removed: weights ``[C, K]`` (bool) that are removed.
        seed: random seed for the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros_like(removed)
    for c, row in enumerate(weights):
        used = row.nonzero().flatten()
        count = int((removed[c] & (row != 0)).sum())
        chosen[c, used[torch.randperm(len(used), generator=generator)[:count]]] = True
    return chosen


def mean_and_error(values: list[float], *, signed: bool = False) -> str:
    """``87.5 ± 0.4`` in percent: the mean and its standard error."""
    mean = f"{100 * statistics.mean(values):{'+' if signed else ''}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else mean
