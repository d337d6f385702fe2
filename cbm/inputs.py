"""What a run starts from: pictures, encoded splits, candidate concepts."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from cbm import config as schema
from cbm.concepts import ConceptBank, learn_cavs, read_concept_folders
from cbm.concepts.cav import majority_owners
from cbm.concepts.prepare import EncodeText, class_name_bank, find_bank, label_bank, prepare_bank
from cbm.data import (
    FeatureData,
    FeatureSplit,
    FeatureStore,
    ImageDataset,
    Split,
    TextStore,
    complete_splits,
    few_shot,
    read_dataset,
    unit_norm,
)
from cbm.data.store import StoredFeatures
from cbm.encoders import create_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path
from cbm.methods import Method
from cbm.metrics import match_concepts

log = logging.getLogger("cbm")


# ------------------------------------------------------------------------------------------------------------- pictures


def read_images(card: DictConfig, cache: Path) -> ImageDataset:
    """The data set of a card, with train, val and test splits."""
    root = None if card.root is None else resolve_path(card.root)
    dataset = read_dataset(card.reader, card.name, root, dict(card.args or {}), cache)
    return complete_splits(
        dataset, cache, val_fraction=card.val_fraction, test_fraction=card.test_fraction, seed=card.split_seed
    )


def reorder_classes(dataset: ImageDataset, classes: list[str]) -> ImageDataset:
    """The data set with its labels in the order of a trained model's classes."""
    if dataset.classes == classes:
        return dataset
    if unknown := sorted(set(dataset.classes) - set(classes)):
        raise UserError(
            f"data set '{dataset.name}' has class '{unknown[0]}', which the model does not know: "
            f"{did_you_mean(unknown[0], classes)}"
        )
    new = torch.tensor([classes.index(name) for name in dataset.classes]).numpy()
    splits = {name: replace(split, labels=new[split.labels]) for name, split in dataset.splits.items()}
    return replace(dataset, classes=classes, splits=splits)


def load_encoder(cfg: DictConfig) -> Encoder:
    """The configured encoder."""
    return create_encoder(cfg.model, cfg.pretrained, precision=cfg.precision, device=cfg.device)


def load_teacher(method: Method, cfg: DictConfig, encoder: Encoder) -> Encoder | None:
    """The text-image model whose phrases a method learns to see, or None if that is the encoder itself.

    Raises:
        UserError: the method has no use for one, or the model reads no text.
    """
    if cfg.teacher is None:
        if method.uses_teacher and not encoder.has_text:
            raise UserError(
                f"encoder '{encoder.id}' reads images only: method={cfg.method.name} needs a text-image model to learn "
                "the concepts from, say teacher=NAME (e.g. teacher=vit_b32)"
            )
        return None
    teacher = load_encoder(cfg.teacher)
    if not teacher.has_text:
        raise UserError(f"teacher '{teacher.id}' reads images only: choose a text-image model (e.g. teacher=vit_b32)")
    return None if teacher.fingerprint == encoder.fingerprint else teacher


def encode_splits(
    dataset: ImageDataset, encoder: Encoder, cfg: DictConfig, splits: tuple[str, ...], teacher: Encoder | None = None,
    *, devices: int = 1, nodes: int = 1,
) -> FeatureData:  # fmt: skip
    """Features of the splits; every picture is encoded once, few-shot subsets are taken from the full split.

    A teacher encodes the training and validation pictures too; those that either cannot read are left out. Several
    devices and nodes encode in as many processes.
    """
    encoded: dict[str, FeatureSplit] = {}
    taught: dict[str, FeatureSplit] = {}
    for name in splits:
        if name not in dataset.splits:
            has = " and ".join(dataset.splits)
            raise UserError(f"data set '{dataset.name}' has no pictures for '{name}': it has {has}")
        split = dataset.splits[name]
        stored = [_encode(split, encoder, cfg.encoder, cfg, f"{dataset.name}/{name}", devices, nodes)]
        if teacher is not None and name != "test":
            stored.append(_encode(split, teacher, cfg.teacher, cfg, f"{dataset.name}/{name} (teacher)"))
        readable = np.flatnonzero(np.all([features.readable for features in stored], axis=0))
        shots = {"train": cfg.shots, "val": cfg.val_shots}.get(name, "all")
        setting = "val_shots" if name == "val" else "shots"
        rows = readable[few_shot(split.labels[readable], shots, cfg.seed, dataset.classes, setting)]
        split = split if len(rows) == len(split) else split.take(rows)
        for part, features in zip((encoded, taught), stored):
            part[name] = FeatureSplit(
                features.unit_rows(rows, split.images.names),
                torch.from_numpy(split.labels),
                split.images.names,
                None if split.concepts is None else torch.from_numpy(split.concepts),
            )
        dataset.splits[name] = split
    if "train" in splits:
        dataset.check()  # once more: a class may have lost all its pictures to bad files
    seen = None
    if teacher is not None:
        seen = FeatureData(taught, dataset.classes, seed=cfg.seed, encoder=teacher.fingerprint)
    return FeatureData(
        encoded,
        dataset.classes,
        concept_names=dataset.concept_names,
        concept_groups=dataset.concept_groups,
        seed=cfg.seed,
        encoder=encoder.fingerprint,
        teacher=seen,
    )


def _encode(
    split: Split, encoder: Encoder, settings: DictConfig, cfg: DictConfig, label: str, devices: int = 1, nodes: int = 1
) -> StoredFeatures:
    return FeatureStore(Path(cfg.cache)).encode(
        encoder, split.images, dtype=settings.store_dtype, batch_size=settings.batch_size,
        num_workers=settings.num_workers, on_error=cfg.dataset.on_error, label=label, progress=cfg.trainer.progress,
        devices=devices, nodes=nodes,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- concepts from text


def text_encoder(encoder: Encoder, cache: Path, progress: bool) -> EncodeText:
    """Phrases to unit-norm features, remembered in the store."""
    store = TextStore(cache)
    return lambda texts: unit_norm(store.encode(encoder, texts, progress=progress), texts)


def candidate_bank(
    method: Method, cfg: DictConfig, dataset: ImageDataset, encoder: Encoder, encode_text: EncodeText
) -> ConceptBank | None:
    """The candidates a method chooses from, embedded by its text-image model (``encoder``, or the teacher).

    None if it needs no concepts, or if pictures must be encoded first (``concept_pictures``).
    """
    if method.speaks_through is None or learns_concepts(method, cfg):
        return None
    if method.speaks_through == "class_names":
        return class_name_bank(dataset.classes, cfg.dataset.template, encode_text, encoder.fingerprint)
    train = dataset.splits["train"]
    if method.speaks_through == "labels" and cfg.concepts.source == "auto" and train.concepts is not None:
        shown = majority_owners(torch.from_numpy(train.concepts), torch.from_numpy(train.labels), len(dataset.classes))
        return label_bank(
            dataset.concept_names, dataset.concept_groups, shown, dataset.classes, dataset.name,
            encode_text if encoder.has_text else None, encoder.fingerprint,
        )  # fmt: skip
    shipped = [*sorted(schema.BANKS.glob("*.json")), schema.BANKS / "general.txt"]
    source = cfg.concepts.source if cfg.concepts.source == "auto" else str(resolve_path(cfg.concepts.source))
    own = cfg.dataset.bank and str(resolve_path(cfg.dataset.bank))
    return prepare_bank(
        find_bank(source, own, dataset.classes, shipped), dataset.classes, encode_text, encoder.fingerprint,
        hygiene=cfg.concepts.hygiene, max_words=cfg.concepts.max_words,
        remove_class_names=cfg.concepts.remove_class_names,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- concepts from pictures


@dataclass(frozen=True)
class ConceptPictures:
    """Pictures of which it is known what they show.

    Attributes:
        source: where they come from.
        names: A concept names.
        groups: group name to the names of concepts that exclude each other.
        split: the pictures; None for this run's own training pictures.
    """

    source: str
    names: list[str]
    groups: dict[str, list[str]] = field(default_factory=dict)
    split: Split | None = None


def learns_concepts(method: Method, cfg: DictConfig) -> bool:
    """Whether the concepts are learned from pictures (``concepts=cav``)."""
    return method.speaks_through == "bank" and cfg.concepts.source == "cav"


def concept_pictures(cfg: DictConfig, dataset: ImageDataset) -> ConceptPictures:
    """The pictures ``concepts.cav`` means.

    Raises:
        UserError: they say nothing about concepts, or are not there.
    """
    cav = cfg.concepts.cav
    if cav.folder is not None and cav.dataset is not None:
        raise UserError("concepts.cav.folder and concepts.cav.dataset are two places to learn concepts from: say one")
    if cav.root is not None and cav.dataset is None:
        raise UserError("concepts.cav.root is where the images of concepts.cav.dataset are: say that too")
    if cav.folder is not None:
        names, split = read_concept_folders(resolve_path(cav.folder))
        return ConceptPictures(str(cav.folder), names, split=split)
    if cav.dataset is None:
        _check_concepts(dataset)
        return ConceptPictures(dataset.name, dataset.concept_names, dataset.concept_groups)
    # the run's own card keeps its settings: what it tests on is not learned from
    own = cav.dataset == cfg.dataset.name
    card = cfg.dataset.copy() if own else schema.load_card(cav.dataset)
    card.root = cav.root or card.root
    if card.root is None:
        raise UserError(f"concepts.cav.dataset={card.name} needs to know where its images are: say concepts.cav.root=")
    other = _check_concepts(read_images(card, Path(cfg.cache)))
    return ConceptPictures(other.name, other.concept_names, other.concept_groups, other.splits["train"])


def _check_concepts(dataset: ImageDataset) -> ImageDataset:
    if dataset.splits["train"].concepts is None or not dataset.concept_names:
        raise UserError(
            f"concepts=cav: data set '{dataset.name}' does not say which concepts its pictures show; learn them from"
            " one that does (concepts.cav.dataset=CARD, e.g. birds) or from pictures in folders "
            "(concepts.cav.folder=DIR)"
        )
    return dataset


def learn_bank(pictures: ConceptPictures, data: FeatureData, encoder: Encoder, cfg: DictConfig) -> ConceptBank:
    """Concepts learned from pictures; a class owns those that most of its training pictures are known to show."""
    if pictures.split is None:
        x, truth = data.train.x, data.train.concepts
    else:
        stored = _encode(pictures.split, encoder, cfg.encoder, cfg, f"{pictures.source} (concepts)")
        split = pictures.split.take(np.flatnonzero(stored.readable))
        x, truth = unit_norm(stored.tensor(), split.images.names), torch.from_numpy(split.concepts)
    assert truth is not None
    bank = learn_cavs(
        x, truth, pictures.names, encoder=encoder.fingerprint, source=pictures.source,
        per_concept=cfg.concepts.cav.per_concept, svm_c=cfg.concepts.cav.svm_c, seed=cfg.seed, groups=pictures.groups,
        progress=cfg.trainer.progress,
    )  # fmt: skip
    owners = torch.zeros(len(data.classes), len(bank), dtype=torch.bool)
    if data.train.concepts is not None:
        shown: Tensor = majority_owners(data.train.concepts, data.train.y, len(data.classes))
        for k, column in match_concepts(bank.texts, data.concept_names):
            owners[:, k] = shown[:, column]
    return bank.owned_by(owners, data.classes)
