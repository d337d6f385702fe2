"""From a card to encoded splits: images read, classes in order, every image encoded once, shots taken."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from cbm.data.copies import find_copies, shared_subjects
from cbm.data.dataset import Encoded, ImageDataset
from cbm.data.features import FeatureData, FeatureSplit
from cbm.data.images import Images
from cbm.data.readers import read_dataset
from cbm.data.splits import complete_splits, few_shot
from cbm.data.store import FeatureStore, StoredFeatures, say_skipped
from cbm.data.valued import settled
from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path
from cbm.files.console import warn_once
from cbm.files.names import one_form

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """How images are encoded, and how many of them are taken.

    Attributes:
        cache: folder of the feature store.
        store_dtype: number format of the store, ``float32`` or ``float16``.
        batch_size: images per forward pass.
        num_workers: processes that decode images.
        on_error: ``skip`` unreadable images (they are reported) or ``fail``.
        max_skipped: largest share of unreadable images of a split that is skipped; more of them are an error.
        progress: whether progress bars are shown.
        shots: training images per class, or with and without every label; or ``all``.
        val_shots: validation images per class, or ``all``.
        seed: random seed for drawing the shots, and for the order of training batches.
        devices: processes on this machine that encode.
        nodes: machines that encode.
    """

    cache: Path = Path("cache")
    store_dtype: str = "float32"
    batch_size: int = 256
    num_workers: int = 2
    on_error: str = "skip"
    max_skipped: float = 0.01
    progress: bool = True
    shots: int | str = "all"
    val_shots: int | str = "all"
    seed: int = 0
    devices: int = 1
    nodes: int = 1

    @classmethod
    def of(cls, cfg: DictConfig, encoder: DictConfig | None = None) -> "Encoding":
        """The settings of a run.

        Args:
            cfg: a ``cbm.config.TrainConfig``.
            encoder: an ``EncoderConfig``, if the encoder is not the run's own (a teacher).
        """
        own: Any = cfg.encoder if encoder is None else encoder
        how = cls(
            Path(cfg.cache),
            on_error=cfg.dataset.on_error,
            max_skipped=cfg.dataset.get("max_skipped", cls.max_skipped),  # runs of before do not say it
            progress=cfg.trainer.progress,
            shots=cfg.shots,
            val_shots=cfg.val_shots,
            seed=cfg.seed,
        )
        if own is None:  # features are given: nothing is encoded
            return how
        return replace(how, store_dtype=own.store_dtype, batch_size=own.batch_size, num_workers=own.num_workers)

    def whole(self) -> "Encoding":
        """The same settings, but with all images of every class, as for evaluation."""
        return replace(self, shots="all", val_shots="all")


def read_images(card: DictConfig, cache: Path, *, whole: bool = False) -> ImageDataset:
    """The data set of a card, with train, val and test splits; what is doubtful about it is said, once per process.

    Args:
        card: a ``cbm.config.DatasetConfig``.
        cache: folder in which splits that were drawn are kept.
        whole: whether the images are for evaluation: then those of an undivided set are all of the split ``test``.

    Raises:
        UserError: the data set cannot be read, or a split cannot be drawn.
    """
    root = None if card.root is None else resolve_path(card.root)
    dataset = read_dataset(card.reader, card.name, root, dict(card.args or {}), cache, to_train=not whole)
    for doubt in dataset.doubts:
        warn_once(f"{dataset.name}: {doubt}")
    if dataset.faults:
        raise UserError(f"data set '{dataset.name}': {dataset.faults[0]}")
    dataset = settled(dataset)
    if whole and list(dataset.splits) == ["train"]:
        return _known_or_not(replace(dataset, splits={"test": dataset.splits["train"]}))
    return _known_or_not(
        complete_splits(
            dataset, cache, val_fraction=card.val_fraction, test_fraction=card.test_fraction, seed=card.split_seed
        )
    )


def _known_or_not(dataset: ImageDataset) -> ImageDataset:
    """The data set with labels between absent and present (``args.unknown=soft``) in training only: nothing is measured
    on them."""
    if dataset.task == "many":
        for name in set(dataset.splits) - {"train"}:
            y = dataset.splits[name].labels
            between = np.where((y == 0) | (y == 1), y, np.nan).astype(np.float32)
            dataset.splits[name] = replace(dataset.splits[name], labels=between)
    return dataset


def reorder_classes(dataset: ImageDataset, classes: list[str]) -> ImageDataset:
    """The data set with its labels in the order of a trained model's classes (names in one form).

    A class that the model does not know by its exact name is the one whose name differs in upper and lower case,
    underscores and spaces only, if there is just one and no other class of the set is it. What was matched is said.

    Raises:
        UserError: a class is not among the model's classes; the message names the nearest.
    """
    classes = [one_form(name) for name in classes]
    if dataset.classes == classes:
        return dataset
    matched = _match_loosely(dataset.classes, classes)
    if unknown := sorted(set(dataset.classes) - set(classes) - set(matched)):
        raise UserError(
            f"data set '{dataset.name}' has class '{unknown[0]}', which the model does not know: "
            f"{did_you_mean(unknown[0], classes)}"
        )
    if matched:
        pairs = [f"'{name}' is '{known}'" for name, known in matched.items()]
        said = ", ".join(pairs[:5]) + ", ..." * (len(pairs) > 5)
        warn_once(f"{dataset.name}: classes are matched without regard to case, underscores and spaces: {said}")
    new = np.array([classes.index(matched.get(name, name)) for name in dataset.classes])

    def moved(labels: np.ndarray) -> np.ndarray:
        if labels.ndim == 1:
            return new[labels]
        found = np.full((len(labels), len(classes)), np.nan, dtype=np.float32)  # other labels are unknown here
        found[:, new] = labels
        return found

    splits = {name: replace(split, labels=moved(split.labels)) for name, split in dataset.splits.items()}
    return replace(dataset, classes=classes, splits=splits)


def _match_loosely(names: list[str], classes: list[str]) -> dict[str, str]:
    """The names that are no class, with the one class that each can only be, if no other name can be it."""
    alike: dict[str, list[str]] = {}
    for known in classes:
        alike.setdefault(_loose(known), []).append(known)
    rivals = Counter(map(_loose, names))
    candidates = {name: alike.get(_loose(name), []) for name in names if name not in classes}
    return {name: found[0] for name, found in candidates.items() if len(found) == 1 and rivals[_loose(name)] == 1}


def _loose(name: str) -> str:
    return one_form(name.replace("_", " ").casefold())


def encode_splits(
    dataset: ImageDataset,
    encoder: Encoder | None,
    settings: Encoding,
    splits: tuple[str, ...],
    teacher: tuple[Encoder, Encoding] | None = None,
) -> tuple[ImageDataset, FeatureData]:
    """Features of the splits; every image is encoded once, few-shot subsets are taken from the full split.

    Args:
        dataset: the images.
        encoder: the frozen encoder; None if the features were made elsewhere by something unknown.
        settings: how images are encoded, and how many are taken.
        splits: names of the splits to encode.
        teacher: another encoder with its settings, which encodes the training and validation images too; images that
            either of them cannot read are left out.

    Returns:
        The data set with the images that were taken (the readable ones, or the shots), and their features in the same
        order. The data set that was handed in stays as it is.

    Raises:
        UserError: a split does not exist, there are too few images for the shots, or the images cannot be encoded.
    """
    _say_copies(dataset, settings.cache, splits)
    taken, skipped, lost = dict(dataset.splits), {}, []
    undrawn: set[str] = set()
    encoded: dict[str, FeatureSplit] = {}
    taught: dict[str, FeatureSplit] = {}
    for name in splits:
        if name not in dataset.splits:
            has = " and ".join(dataset.splits)
            raise UserError(f"data set '{dataset.name}' has no pictures for '{name}': it has {has}")
        split = dataset.splits[name]
        label = f"{dataset.name}/{name}"
        given = split.features
        stored: list[Encoded] = [encode_images(split.images, encoder, settings, label) if given is None else given]
        if teacher is not None and name != "test":
            stored.append(encode_images(split.images, *teacher, f"{label} (teacher)"))
        readable = np.flatnonzero(np.all([features.readable for features in stored], axis=0))
        shots = {"train": settings.shots, "val": settings.val_shots}.get(name, "all")
        setting = "val_shots" if name == "val" else "shots"
        unread = np.setdiff1d(np.arange(len(split)), readable)
        skipped[name] = [str(split.images.names[row]) for row in unread.tolist()]
        lost.append((label, len(unread), len(split), stored))
        if given is not None:  # encoding says it itself
            say_skipped(label, given.errors, len(split))
        subjects = None if split.subjects is None else split.subjects[readable]
        rows = readable[few_shot(split.labels[readable], shots, settings.seed, dataset.classes, setting, subjects)]
        if len(rows) < len(readable):
            undrawn |= {str(split.images.names[row]) for row in np.setdiff1d(readable, rows).tolist()}
        split = split if len(rows) == len(split) else split.take(rows)
        if dataset.task == "many" and shots != "all":
            log.info(
                "%s: %s=%s of each of %d labels, with and without it: %d images",
                label, setting, shots, len(dataset.classes), len(rows),
            )  # fmt: skip
        for part, features in zip((encoded, taught), stored):
            part[name] = FeatureSplit(
                features.unit_rows(rows, split.images.names),
                torch.from_numpy(split.labels),
                split.images.names,
                None if split.concepts is None else torch.from_numpy(split.concepts),
                split.subjects,
                split.groups,
                None if split.values is None else torch.from_numpy(split.values),
            )
        taken[name] = split
    dataset = replace(dataset, splits=taken)
    if "train" in splits:
        dataset.check()  # once more: a class may have lost all its images to bad files
    for each in lost:
        _check_skipped(*each, settings.max_skipped)
    seen = None
    if teacher is not None:
        seen = FeatureData(taught, dataset.classes, seed=settings.seed, encoder=teacher[0].fingerprint)
    return dataset, FeatureData(
        encoded,
        dataset.classes,
        concept_names=dataset.concept_names,
        concept_groups=dataset.concept_groups,
        seed=settings.seed,
        encoder=None if encoder is None else encoder.fingerprint,
        teacher=seen,
        skipped=skipped,
        undrawn=frozenset(undrawn),
        group_names=dataset.group_names,
        specs=dataset.specs,
    )


def _say_copies(dataset: ImageDataset, cache: Path, splits: tuple[str, ...]) -> None:
    """Warn about the same content in two splits or classes, and about subjects in two splits.

    Of the splits that are encoded: hashing them is part of that, hashing others could be hours.
    """
    copies = find_copies(dataset, cache, splits)
    for said in (*copies.leaked(), *copies.mislabelled(), *shared_subjects(dataset)):
        warn_once(f"{dataset.name}: {said} (python -m cbm datasets check says more)")


def _check_skipped(label: str, count: int, total: int, stored: list[Encoded], most: float) -> None:
    """More than a few lost images would change what a number means.

    Raises:
        UserError: more than the share ``most`` is lost, and more than one image.
    """
    if count <= max(most * total, 1 if most else 0):
        return
    name, why = next((item for features in stored for item in features.errors.items()), ("?", "?"))
    raise UserError(
        f"{label}: {count:,} of {total:,} image(s) cannot be read ({count / total:.1%}), first '{name}': {why}; at "
        f"most {most:.1%} are skipped: repair them, or say dataset.max_skipped={min(1.0, 1.1 * count / total):.2g}"
    )


def encode_images(images: Images, encoder: Encoder | None, settings: Encoding, label: str) -> StoredFeatures:
    """Features of images, from the store or encoded now.

    Args:
        images: the images.
        encoder: the frozen encoder.
        settings: how images are encoded.
        label: name of the images in messages and progress bars.

    Raises:
        UserError: there is no encoder, or the images cannot be encoded.
    """
    if encoder is None:
        raise UserError(f"{label}: these are images, and there is no encoder to read them: say encoder=NAME")
    return FeatureStore(settings.cache).encode(
        encoder,
        images,
        dtype=settings.store_dtype,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        on_error=settings.on_error,
        label=label,
        progress=settings.progress,
        devices=settings.devices,
        nodes=settings.nodes,
    )
