"""``evaluate``: measure a finished run on one of its splits or on other images; as trained, edited, or corrected."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from cbm.concepts.units import former_names
from cbm.data import FeatureData, FeatureSplit
from cbm.editing import (
    Comparison,
    DomainEditor,
    EditSet,
    changed_most,
    create_editor,
    edited_logits,
    edited_model,
    load_edits,
    load_gate,
    still_said,
)
from cbm.editing.domains.correct import correct
from cbm.editing.record import Record, model_key
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path, write_atomically
from cbm.files.names import file_name
from cbm.layers import predict_logits, require_concepts
from cbm.metrics import classification_metrics
from cbm.metrics.decisions import (
    Decisions,
    decide,
    decided_groups,
    group_headline,
    headline_intervals,
    keep_decisions,
)
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.groups import worst_group, worst_group_change
from cbm.metrics.multilabel import multilabel_metrics
from cbm.metrics.nec import load_heads
from cbm.report.correction import write_correction
from cbm.run.announce import print_metrics
from cbm.trained import TrainedModel, load
from cbm.trained.domains import edit_context, support_and_tested
from cbm.trained.label_comparison import LabelComparison, compared

log = logging.getLogger("cbm")

STILL_SAID = 0.25  # of what removed concepts said, from which a warning is given


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate a finished run on one of its splits, or on another set of images.

    Args:
        cfg: a ``cbm.config.EvalConfig``.

    Returns:
        The metrics, also written to ``RUN/eval/DATASET-SPLIT.json``; what was decided about every image is in
        ``RUN/eval/DATASET-SPLIT.parquet`` (``cbm.files.predictions``).

    Raises:
        UserError: the run or split does not exist, the classes differ, or the encoder's weights differ from those that
            the model was trained with.
    """
    editor = check_request(cfg)
    model = load(Path(cfg.run), device=cfg.device)
    card = model.card(cfg.dataset)
    dataset, data = model.read((cfg.split,), dataset=cfg.dataset, cache=cfg.cache)
    request = Request(model, data, cfg.split, card, cfg.domain or dataset.name, Path(cfg.cache))
    name = file_name(f"{dataset.name}-{cfg.split}")
    if editor is not None:
        name += f"-{cfg.editor.name}"
        found, how = corrected(request, editor, model.path / "eval" / name), f" corrected by {cfg.editor.name}"
    elif cfg.edits is not None:
        name += "-edited"
        gate = None if cfg.gate is None else resolve_path(cfg.gate)
        found, how = edited(request, resolve_path(cfg.edits), gate), f" with {cfg.edits}"
    else:
        found, how = plain(request), ""
    kept = model.path / "eval" / f"{name}.parquet"
    keep_decisions(kept, found.decisions, model.classes, dataset.name, cfg.split)
    content = json.dumps(found.metrics, indent=1).encode()
    write_atomically(file := model.path / "eval" / f"{name}.json", content)
    if cfg.output is not None:
        write_atomically(Path(cfg.output), content)
    print_metrics(f"{model.path} on {dataset.name}/{cfg.split}{how}", found.metrics, found.decisions.split.y, cfg.split)
    if (worst := worst_group(decided_groups(found.decisions, data))) is not None:
        percent = f"{100 * worst.accuracy:.1f}% of {worst.count} pictures"
        log.info("the worst of the groups with ten or more pictures: %s (%s)", worst.name, percent)
    found.say_more()
    log.info("all numbers: %s", file)
    return found.metrics


def check_request(cfg: DictConfig) -> DomainEditor | None:
    """Check the settings; returns the editor, if there is one.

    Raises:
        UserError: settings contradict each other, or the split or editor is unknown.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("which run? say run=runs/NAME")
    if cfg.editor is not None and cfg.edits is not None:
        raise UserError("edits= are yours and editor= makes its own: say one of them")
    if cfg.gate is not None and cfg.edits is None:
        raise UserError("gate= says which pictures edits= are for: say edits= too")
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split}: {did_you_mean(cfg.split, ['train', 'val', 'test'])}")
    return None if cfg.editor is None else create_editor(cfg.editor)


@dataclass(frozen=True)
class Request:
    """The model and the images to evaluate.

    Attributes:
        model: the model of the run.
        data: encoded splits, including the one that is evaluated.
        split: name of that split.
        card: data set card of the images.
        domain: name of the domain that the images come from, for edits that are bound to one.
        cache: folder of the feature store.
    """

    model: TrainedModel
    data: FeatureData
    split: str
    card: DictConfig
    domain: str
    cache: Path


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation.

    Attributes:
        metrics: all numbers of the file that is written, computed from the same decisions.
        decisions: what was decided about every image.
        say_more: function that logs further findings.
    """

    metrics: dict[str, float]
    decisions: Decisions
    say_more: Callable[[], None] = lambda: None


def plain(request: Request) -> Evaluated:
    """Evaluate the model as it was trained."""
    model, heads = request.model, load_heads(request.model.path / "nec.safetensors")
    cuts = model.cut_points(request.cache)
    metrics = evaluate_split(model.model, model.bank, request.data, request.split, heads, cuts)
    decisions = decide(model.model, model.bank, request.data, request.split, heads)
    metrics |= headline_intervals(decisions, request.split) | group_headline(decisions, request.data, request.split)
    return Evaluated(metrics | counted(request.data, request.split), decisions)


def counted(data: FeatureData, split: str) -> dict[str, float]:
    """How many images of a split were measured, and how many could not be read, if there were such."""
    found = {f"data/n_{split}": float(len(data.splits[split]))}
    if lost := data.skipped.get(split):
        found[f"data/n_skipped_{split}"] = float(len(lost))
    return found


def edited(request: Request, file: Path, gate_file: Path | None) -> Evaluated:
    """Evaluate the model after the edits of a file, which act on images that pass the gate, if there is one.

    Args:
        request: the model and the images.
        file: file of edits.
        gate_file: file of a gate, or None.

    Raises:
        UserError: a file does not exist, the model has no concepts to edit, or a concept, class or image is unknown.
    """
    edits, gate = load_edits(file), None if gate_file is None else load_gate(gate_file)
    model, bank, classes, domain = request.model.model, request.model.bank, request.model.classes, request.domain
    bottleneck = require_concepts(model, bank)
    assert bank is not None
    edits = edits.renamed(former_names(bank))
    if edits.record is not None:
        here = f"{request.domain}/{request.split}"
        for warning in edits.record.warnings(model_key(bottleneck, bank.texts, classes), here):
            log.warning("%s", warning)
    split = request.data.splits[request.split]
    edits.check_pictures(split.names)
    before = predict_logits(bottleneck, split.x)
    inside = None if gate is None else gate(split.x)
    after = edited_logits(bottleneck, edits, bank, classes, split.x, split.names, before, domain, inside)
    comparison = compared(bottleneck, before, after, split.y, classes)
    one_model = (
        None if edits.samples or gate is not None else edited_model(bottleneck, edits, bank.texts, classes, domain)
    )
    decisions = decisions_of(request, request.data, comparison, one_model)
    metrics = decided_metrics(request, request.data, comparison, one_model, decisions)
    log.info("%d edits:%s", len(edits), "".join(f"\n  {edit}" for edit in edits.edits))
    if elsewhere := sorted(edits.domains - {domain}):
        log.info("pictures of '%s': edits of '%s' do not act (domain= says otherwise)", domain, elsewhere[0])
    metrics |= removal(edits, comparison, request)
    if edits.record is not None and edits.record.before is not None and edits.record.after is not None:
        metrics["edits/expected_change"] = edits.record.after - edits.record.before

    def say_more() -> None:
        say_changes(comparison)
        if edits.record is not None:
            log.info("as expected or not: %s", edits.record)

    return Evaluated(metrics, decisions, say_more)


def removal(edits: EditSet, comparison: Comparison | LabelComparison, request: Request) -> dict[str, float]:
    """How much of what removed concepts said the others still say (``edits/still_said``); a warning if that is much.

    Nothing where an edit does anything else, or is for some classes or images only.
    """
    if not len(edits) or any(
        edit.op not in ("remove", "mask") or edit.classes or edit.samples or edit.domain not in (None, request.domain)
        for edit in edits.edits
    ):
        return {}
    share = still_said(comparison.before, comparison.after, comparison.y)
    if math.isnan(share):
        return {}
    if share > STILL_SAID:
        log.warning(
            "of what the removed concepts said, the others still say %.0f %%: they go round the edit (python -m cbm "
            "rebalance %s --concept '%s' --with-alike finds them and fits the head again)",
            100 * share, request.model.path, edits.edits[0].concept,
        )  # fmt: skip
    return {"edits/still_said": share}


def corrected(request: Request, editor: DomainEditor, folder: Path) -> Evaluated:
    """Evaluate the model after an editor has corrected it for these images.

    Args:
        request: the model and the images.
        editor: the editor with its settings.
        folder: folder for the edits and a page that explains them.

    Raises:
        UserError: the model cannot be edited in this way, or there are too few labelled images.
    """
    model, data = request.model, request.data
    support, tested = support_and_tested(model, request.card, editor, data.splits[request.split], request.cache)
    context = edit_context(model, request.card, support, tested, domain=request.domain, cache=request.cache)
    assert model.bank is not None
    images = f"{request.domain}/{request.split}" if editor.support is None else editor.support
    key = model_key(context.model, model.bank.texts, model.classes)
    correction = correct(context, tested, editor, Record(model.path.name, key, images))
    one_model = None if correction.proposal.gate is not None else correction.proposal.model
    rest = replace(data, splits={**data.splits, request.split: tested})
    decisions = decisions_of(request, rest, correction.comparison, one_model)
    metrics = decided_metrics(request, rest, correction.comparison, one_model, decisions) | correction.metrics()
    write_correction(folder, correction, str(model.path))

    def say_more() -> None:
        say_changes(correction.comparison)
        log.info("%s", correction.summary())
        log.info("edits and a page to read: %s", folder)

    return Evaluated(metrics, decisions, say_more)


def decisions_of(
    request: Request, data: FeatureData, comparison: Comparison | LabelComparison, one_model: torch.nn.Module | None
) -> Decisions:
    """What was decided about every image after edits; arguments as of ``decided_metrics``."""
    if one_model is None:
        cuts = comparison.thresholds if isinstance(comparison, LabelComparison) else None
        return Decisions(comparison.after, data.splits[request.split], thresholds=cuts)
    return replace(decide(one_model, request.model.bank, data, request.split), logits=comparison.after)


def decided_metrics(
    request: Request,
    data: FeatureData,
    comparison: Comparison | LabelComparison,
    one_model: torch.nn.Module | None,
    decisions: Decisions,
) -> dict[str, float]:
    """Metrics of the decisions after edits, all computed from the logits that decided.

    Args:
        request: the model and the images.
        data: encoded splits; the evaluated split holds the images of ``comparison``.
        comparison: logits before and after.
        one_model: the model that decides about all images; None if a gate or edits of single images mix several models.
            Then numbers that describe one model (accuracy at equal sparsity, concepts per image, ...) are left out.
        decisions: what was decided about every image, for the intervals.
    """
    split = request.split
    metrics = {}
    if one_model is not None:
        cuts = request.model.cut_points(request.cache)
        metrics = evaluate_split(one_model, request.model.bank, data, split, cuts=cuts)
    decided = (
        multilabel_metrics(comparison.after, comparison.y, comparison.thresholds)
        if isinstance(comparison, LabelComparison)
        else classification_metrics(comparison.after, comparison.y)
    )
    metrics |= {f"{split}/{key}": value for key, value in decided.items()}
    metrics |= headline_intervals(decisions, split) | group_headline(decisions, data, split)
    metrics |= comparison.metrics() | changed_groups(comparison, data.splits[split])
    return metrics | counted(data, split)


def changed_groups(comparison: Comparison | LabelComparison, split: FeatureSplit) -> dict[str, float]:
    """How much better the worst group of classes is decided after edits, with keys ``edits/...``; nothing without
    groups, nor of labels."""
    if isinstance(comparison, LabelComparison):
        return {}
    before, after = ((each.argmax(dim=1) == comparison.y).numpy() for each in (comparison.before, comparison.after))
    if (change := worst_group_change(after, before, split)) is None:
        return {}
    return {
        "edits/worst_group_change": change.value,
        "edits/worst_group_change_low": change.low,
        "edits/worst_group_change_high": change.high,
        "edits/groups_changed": float(sum(p < 0.05 for p in change.tests.values())),
    }


def say_changes(comparison: Comparison | LabelComparison) -> None:
    """Log what the edits changed."""
    log.info("%s", comparison)
    for of, count, before, after in changed_most(comparison):
        if isinstance(comparison, LabelComparison):
            log.info("%s: balanced accuracy %.3f -> %.3f on %d pictures", of, before, after, count)
        else:
            log.info("%s: %.3f -> %.3f of %d pictures right", of, before, after, count)
