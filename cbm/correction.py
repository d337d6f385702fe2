"""Correct a finished run's model for pictures of another domain: what ``eval.py editor=`` and ``adapt`` share."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from cbm.concepts import ConceptBank
from cbm.concepts.prepare import class_name_bank
from cbm.data import FeatureData, FeatureSplit, ImageDataset, read_dataset
from cbm.data.features import split_test
from cbm.editing import (
    EDITORS,
    Comparison,
    DomainEditor,
    EditContext,
    EditSet,
    Proposal,
    create_editor,
    load_source_card,
    signed,
)
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import resolve_path
from cbm.inputs import encode_splits, reorder_classes, text_encoder
from cbm.layers import ConceptBottleneck
from cbm.report.correction import write_page

BASELINES = ("recentre", "refit")  # stand beside every correction


@dataclass(frozen=True)
class Correction:
    """A model corrected for one domain, and what came of it.

    Attributes:
        name: of the editor.
        context: what the editor looked at.
        proposal: its answer.
        tested: the pictures it was not shown.
        comparison: decisions about these.
        baselines: accuracy of the simplest other uses of the same labels, on the same pictures.
        inside: share of the pictures that pass the gate; 1 without one.
    """

    name: str
    context: EditContext
    proposal: Proposal
    tested: FeatureSplit
    comparison: Comparison
    baselines: dict[str, float]
    inside: float

    def metrics(self) -> dict[str, float]:
        """``edits/...`` beyond those of the comparison."""
        support = self.context.support
        values = {f"edits/{name}_accuracy": value for name, value in self.baselines.items()}
        values |= {"edits/n_support": float(len(support)) if support else 0.0, "edits/share_edited": self.inside}
        if self.proposal.edits is not None:
            values["edits/n_concepts"] = float(len({edit.concept for edit in self.proposal.edits.edits}))
        if self.proposal.source is not None:
            before, after, (low, high) = self.proposal.source
            values |= {"edits/source_accuracy_macro_before": before, "edits/source_accuracy_macro_after": after}
            values |= {"edits/source_change_low": low, "edits/source_change_high": high}
        return values

    def summary(self) -> str:
        """One line for the terminal."""
        edits = self.proposal.edits
        what = "another model" if edits is None else f"{len(edits)} edits" if len(edits) else "nothing is edited"
        return f"{self.name}: {what}; {self.proposal.reason}"


def correct(
    run: Path, cfg: DictConfig, model: nn.Module, bank: ConceptBank | None, data: FeatureData, split: str,
    editor: DomainEditor, domain: str, encoder: Encoder,
) -> Correction:  # fmt: skip
    """Let an editor correct a run's model for one split of a data set.

    Args:
        run: the run directory.
        cfg: its configuration, with the other data set.
        model: its model.
        bank: its concepts.
        data: the encoded split.
        split: which.
        editor: with its settings.
        domain: what the pictures' origin is called.
        encoder: of the run.

    Raises:
        UserError: the model has no concepts to edit, no source card, or too few labelled pictures.
    """
    pictures = data.splits[split]
    if editor.support is None:
        support, tested = split_test(pictures, editor.shots, data.classes, editor.seed)
    else:
        folder = resolve_path(editor.support)
        support, tested = labelled_pictures(folder, editor.shots, editor.seed, data.classes, encoder, cfg), pictures
    context = edit_context(run, cfg, model, bank, data.classes, domain, support, tested, encoder)
    proposal = editor.propose(context)
    passed = torch.full((len(tested),), True) if proposal.gate is None else proposal.gate(tested.x)
    before = context.model.logits(tested.x)
    changed = bool(proposal.edits is None or len(proposal.edits))
    after = torch.where(passed[:, None], proposal.model.logits(tested.x), before) if changed else before
    name = next(name for name, kind in EDITORS.items() if kind is type(editor))
    baselines = {}
    for other in BASELINES:
        if other != name:
            settings = {"name": other, "seed": editor.seed}
            logits = create_editor(settings).propose(context).model.logits(tested.x)
            baselines[other] = float((logits.argmax(dim=1) == tested.y).double().mean())
    if proposal.edits is not None:
        who = f"editor={name}"
        proposal = replace(proposal, edits=EditSet(tuple(signed(edit, who) for edit in proposal.edits.edits)))
    comparison = Comparison(before, after, tested.y, data.classes)
    return Correction(name, context, proposal, tested, comparison, baselines, float(passed.double().mean()))


def edit_context(
    run: Path, cfg: DictConfig, model: nn.Module, bank: ConceptBank | None, classes: list[str], domain: str,
    support: FeatureSplit, pictures: FeatureSplit, encoder: Encoder,
) -> EditContext:  # fmt: skip
    """What an editor may look at: labelled pictures of the domain, others without their labels, the source card."""
    if not isinstance(model, ConceptBottleneck) or bank is None:
        raise UserError(f"run '{run}' has no linear head on concepts to edit (method={cfg.method.name})")
    zero_shot = None
    if encoder.has_text:
        encode_text = text_encoder(encoder, Path(cfg.cache), False)
        names = class_name_bank(classes, cfg.dataset.template, encode_text, encoder.fingerprint)
        assert names.embeddings is not None
        zero_shot = encoder.logit_scale * pictures.x @ names.embeddings.T
    return EditContext(
        model, bank.texts, classes, domain, load_source_card(run / "source_card.safetensors"), support, pictures.x,
        zero_shot,
    )  # fmt: skip


def labelled_pictures(
    folder: Path, shots: int, seed: int, classes: list[str], encoder: Encoder, cfg: DictConfig
) -> FeatureSplit:
    """At most ``shots`` pictures per class of a folder ``FOLDER/CLASS/*.jpg``, encoded; a class may be absent.

    Raises:
        UserError: no such folder, or a class that the model does not know.
    """
    read = reorder_classes(read_dataset("folder", folder.name, folder, {}), classes)
    split = read.splits["train"]
    order = np.random.default_rng(seed).permutation(len(split))
    rows = np.sort(np.concatenate([order[split.labels[order] == c][:shots] for c in range(len(classes))]))
    few = ImageDataset(read.name, classes, {"support": split.take(rows)})
    return encode_splits(few, encoder, cfg, ("support",)).splits["support"]


def write_correction(folder: Path, correction: Correction, run: str) -> None:
    """``edits.yaml``, ``gate.safetensors`` and ``page.html`` of a correction, those that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    if correction.proposal.edits is not None:
        correction.proposal.edits.save(folder / "edits.yaml")
    if correction.proposal.gate is not None:
        correction.proposal.gate.save(folder / "gate.safetensors")
    write_page(
        folder / "page.html", run, correction.name, correction.context, correction.proposal, correction.comparison,
        correction.baselines, correction.inside,
    )  # fmt: skip
