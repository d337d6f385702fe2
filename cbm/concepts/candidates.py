"""The candidate concepts of a run: phrases, class names, labels of the data set, or concepts learned from images."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from cbm import config as schema
from cbm.concepts.bank import ConceptBank, load_bank
from cbm.concepts.cav import learn_cavs, majority_owners, read_concept_folders
from cbm.concepts.legibility import warn_illegible
from cbm.concepts.prepare import class_name_bank, find_bank, label_bank, match_classes, prepare_bank
from cbm.concepts.readers import match_concepts, read_bank
from cbm.concepts.vectors import class_vectors_bank, embedded_by, width_fits
from cbm.data import FeatureData, ImageDataset, Split, unit_norm
from cbm.data.encoded import Encoding, encode_images, read_images
from cbm.data.text_store import EncodeText
from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path

log = logging.getLogger(__name__)

DISCOVERED = "discovered:"
"""Before the folder of a run with ``method=discovered``: its named units are the concepts."""
MISSING_CLASSES = ("refuse", "general")


def candidate_bank(
    concepts_from: str | None, cfg: DictConfig, dataset: ImageDataset, encoder: Encoder | None, encode_text: EncodeText
) -> ConceptBank | None:
    """The candidates that a method chooses from, embedded by its text-image model.

    Args:
        concepts_from: source of the method's concepts, see ``cbm.methods.Method``.
        cfg: a ``cbm.config.TrainConfig``.
        dataset: the images of the run.
        encoder: the text-image model: the encoder, or the teacher; None if features are given and nothing is known of
            what made them.
        encode_text: function from phrases to features by the model's text tower; raises an error if there is none.

    Returns:
        The candidates; None if the method needs no concepts, or if images must be encoded first (``concept_images``).

    Raises:
        UserError: the bank cannot be read or does not fit the data set, or the encoder reads no text.
    """
    if concepts_from is None or learns_concepts(concepts_from, cfg):
        return None
    train = dataset.splits["train"]
    fingerprint = None if encoder is None else encoder.fingerprint
    dim = encoder.dim if encoder is not None else train.features.dim if train.features is not None else None
    if concepts_from == "class_names":
        return width_fits(class_bank(cfg, dataset.classes, encoder, encode_text), dim)
    numbers = [spec.name for spec in dataset.specs if spec.kind == "continuous"]
    if concepts_from == "labels" and cfg.concepts.source == "auto" and (train.concepts is not None or numbers):
        count, shown = len(dataset.classes), torch.zeros(len(dataset.classes), 0, dtype=torch.bool)
        if train.concepts is not None:
            shown = majority_owners(torch.from_numpy(train.concepts), torch.from_numpy(train.labels), count)
        shown = torch.nn.functional.pad(shown, (0, len(numbers)))  # no class owns a number
        return label_bank(
            [*dataset.concept_names, *numbers],
            dataset.concept_groups,
            shown,
            dataset.classes,
            dataset.name,
            encode_text if encoder is not None and encoder.has_text else None,
            fingerprint,
        )
    banks = schema.bank_files()
    shipped = [*(file for file in banks.values() if file.suffix == ".json"), banks["general"]]
    source = str(cfg.concepts.source)
    if source.startswith(DISCOVERED):
        found = found_units(resolve_path(source.removeprefix(DISCOVERED)))
        return width_fits(
            prepare_bank(
                found, dataset.classes, encode_text, fingerprint, hygiene=False, max_words=cfg.concepts.max_words,
                remove_class_names=cfg.concepts.remove_class_names,
            ),
            dim,
        )  # fmt: skip
    source = source if source == "auto" else str(resolve_path(source))
    own = cfg.dataset.bank and str(resolve_path(cfg.dataset.bank))
    missing = cfg.concepts.missing_classes
    if missing not in MISSING_CLASSES:
        raise UserError(f"concepts.missing_classes={missing}: {did_you_mean(str(missing), MISSING_CLASSES)}")
    vectors, key = cfg.concepts.embeddings, cfg.concepts.key
    bank = find_bank(source, own, dataset.classes, shipped, None if vectors else key)
    if vectors is not None:
        bank = embedded_by(bank, resolve_path(vectors), key)
    if dataset.task == "many" and bank.classes and not match_classes(bank.classes, dataset.classes):
        log.info("concepts: bank '%s' was written for classes, not for these labels: all share it", bank.name)
        bank = replace(bank, concepts=tuple(replace(concept, classes=()) for concept in bank.concepts))
    if concepts_from == "features" and bank.embeddings is None and (encoder is None or not encoder.has_text):
        log.warning("nothing reads text here, so the concepts that are found stay unnamed: say teacher=NAME (a model "
                    "that reads images and text), or concepts=FILE with vectors")  # fmt: skip
        return None
    bank = prepare_bank(
        bank,
        dataset.classes,
        encode_text,
        fingerprint,
        hygiene=cfg.concepts.hygiene,
        max_words=cfg.concepts.max_words,
        remove_class_names=cfg.concepts.remove_class_names,
        general=read_bank(shipped[-1]) if missing == "general" else None,
    )
    if encoder is not None:
        warn_illegible(bank.texts, encoder)
    return width_fits(bank, dim)


def found_units(run: Path) -> ConceptBank:
    """The units of a run with ``method=discovered`` that have a name, with their atoms as directions.

    Raises:
        UserError: there is no such run, it found no concepts, or none has a name.
    """
    if not (run / "bank" / "bank.json").is_file():
        raise UserError(f"concepts={DISCOVERED}{run}: there is no bank; expected the folder of a finished run")
    bank = load_bank(run / "bank")
    if not any("unit" in concept.provenance for concept in bank.concepts):
        raise UserError(
            f"concepts={DISCOVERED}{run}: its concepts were written down, not found: concepts={run / 'bank'} takes them"
        )
    named = [k for k, concept in enumerate(bank.concepts) if (concept.provenance.get("unit") or {}).get("word")]
    if not named:
        raise UserError(f"concepts={DISCOVERED}{run}: none of its {len(bank)} units has a name")
    return bank.take(named)


def class_bank(cfg: DictConfig, classes: list[str], encoder: Encoder | None, encode_text: EncodeText) -> ConceptBank:
    """A bank with one concept per class: the vectors of ``concepts.class_embeddings``, or prompts that are embedded.

    Args:
        cfg: a ``cbm.config.TrainConfig``.
        classes: C class names.
        encoder: the text-image model, or None.
        encode_text: function from phrases to features.

    Raises:
        UserError: a class has no vector, the prompt has no place for a name, or there is no text tower.
    """
    if cfg.concepts.class_embeddings is not None:
        return class_vectors_bank(classes, resolve_path(cfg.concepts.class_embeddings))
    if encoder is not None:
        warn_illegible(classes, encoder, least=0.5)  # proper names are spelled out in any language
    fingerprint = None if encoder is None else encoder.fingerprint
    return class_name_bank(classes, cfg.dataset.template, encode_text, fingerprint)


@dataclass(frozen=True)
class ConceptImages:
    """Images with concept labels, from which concepts are learned.

    Attributes:
        source: origin of the images.
        names: names of the A concepts.
        groups: names of concepts that exclude each other, by name of the group.
        split: the images; None for the run's own training images.
    """

    source: str
    names: list[str]
    groups: dict[str, list[str]] = field(default_factory=dict)
    split: Split | None = None


def learns_concepts(concepts_from: str | None, cfg: DictConfig) -> bool:
    """Whether the concepts are learned from images (``concepts=cav``)."""
    return concepts_from == "bank" and cfg.concepts.source == "cav"


def concept_images(cfg: DictConfig, dataset: ImageDataset) -> ConceptImages:
    """The images that ``concepts.cav`` names.

    Raises:
        UserError: the images are missing, or have no concept labels.
    """
    cav = cfg.concepts.cav
    if cav.folder is not None and cav.dataset is not None:
        raise UserError("concepts.cav.folder and concepts.cav.dataset are two places to learn concepts from: say one")
    if cav.root is not None and cav.dataset is None:
        raise UserError("concepts.cav.root is where the images of concepts.cav.dataset are: say that too")
    if cav.folder is not None:
        names, split = read_concept_folders(resolve_path(cav.folder))
        return ConceptImages(str(cav.folder), names, split=split)
    if cav.dataset is None:
        _check_concepts(dataset)
        return ConceptImages(dataset.name, dataset.concept_names, dataset.concept_groups)
    # the run's own card keeps its settings: what it tests on is not learned from
    own = cav.dataset == cfg.dataset.name
    card = cfg.dataset.copy() if own else schema.load_card(cav.dataset)
    card.root = cav.root or card.root
    if card.root is None:
        raise UserError(f"concepts.cav.dataset={card.name} needs to know where its images are: say concepts.cav.root=")
    other = _check_concepts(read_images(card, Path(cfg.cache)))
    return ConceptImages(other.name, other.concept_names, other.concept_groups, other.splits["train"])


def _check_concepts(dataset: ImageDataset) -> ImageDataset:
    if "train" not in dataset.splits or dataset.splits["train"].concepts is None or not dataset.concept_names:
        raise UserError(
            f"concepts=cav: data set '{dataset.name}' does not say which concepts its pictures show; learn them from"
            " one that does (concepts.cav.dataset=CARD, e.g. birds) or from pictures in folders "
            "(concepts.cav.folder=DIR)"
        )
    return dataset


def cav_fidelity(cfg: DictConfig) -> str:
    """How concepts are learned from images: as ``concepts.cav.fidelity`` says, else as the method does.

    Post-hoc bottlenecks that follow their paper or its code get the support vector machines of that code.

    Raises:
        UserError: an unknown value.
    """
    said = cfg.concepts.cav.fidelity
    if said not in (None, "repaired", "released"):
        raise UserError(f"concepts.cav.fidelity={said}: {did_you_mean(str(said), ['repaired', 'released'])}")
    published = cfg.method.name == "posthoc" and cfg.method.get("fidelity") in ("paper", "released")
    return said or ("released" if published else "repaired")


def learn_bank(images: ConceptImages, data: FeatureData, encoder: Encoder | None, cfg: DictConfig) -> ConceptBank:
    """Concepts learned from images; a class owns those that most of its labelled training images show.

    Args:
        images: the images with concept labels.
        data: encoded splits of the run.
        encoder: the frozen encoder; None if features are given.
        cfg: a ``cbm.config.TrainConfig``.

    Raises:
        UserError: no concept can be learned.
    """
    if images.split is None:
        x, truth = data.train.x, data.train.concepts
    else:
        stored = encode_images(images.split.images, encoder, Encoding.of(cfg), f"{images.source} (concepts)")
        split = images.split.take(np.flatnonzero(stored.readable))
        x, truth = unit_norm(stored.tensor(), split.images.names), torch.from_numpy(split.concepts)
    if truth is None:
        raise UserError(f"concepts=cav: '{images.source}' does not say which concepts its images show")
    bank = learn_cavs(
        x,
        truth,
        images.names,
        encoder=data.encoder,
        source=images.source,
        per_concept=cfg.concepts.cav.per_concept,
        svm_c=cfg.concepts.cav.svm_c,
        fit=cfg.concepts.cav.fit,
        seed=cfg.seed,
        groups=images.groups,
        fidelity=cav_fidelity(cfg),
        progress=cfg.trainer.progress,
    )
    owners = torch.zeros(len(data.classes), len(bank), dtype=torch.bool)
    if data.train.concepts is not None:
        shown: Tensor = majority_owners(data.train.concepts, data.train.y, len(data.classes))
        for k, column in match_concepts(bank.phrases, data.concept_names):
            owners[:, k] = shown[:, column]
    return bank.owned_by(owners, data.classes)
