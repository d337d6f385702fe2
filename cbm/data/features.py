"""Encoded splits, ready to learn from: features, labels and concept labels in memory or mapped from disk."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.data.dataset import ConceptSpec
from cbm.data.images import Images
from cbm.data.splits import few_shot
from cbm.errors import UserError
from cbm.files.console import warn_once
from cbm.files.names import quoted
from cbm.kernels import class_sums


@dataclass
class FeatureSplit:
    """Features of one split.

    Attributes:
        x: unit-norm features ``[N, D]``: float32, or mapped from disk and then perhaps in half precision.
        y: class indices ``[N]`` int64; labels ``[N, L]`` float32 where an image has any number of them: 1, 0, or NaN if
            unknown.
        names: names of the N images.
        concepts: concept labels ``[N, A]``: 1, 0, or NaN if unknown (levels and numbers where ``FeatureData.specs``
            says so); None if there are none.
        subjects: subject ``[N]`` of each image (a patient); None if unknown.
        groups: values ``[N]`` int64 by name of the group, -1 if unknown (``FeatureData.group_names``).
        values: numbers ``[N, V]`` of the continuous attributes in their units, NaN if unknown; None if there are none.
    """

    x: Tensor
    y: Tensor
    names: list[str]
    concepts: Tensor | None = None
    subjects: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    values: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> "FeatureSplit":
        """The images at ``rows``."""
        index = torch.from_numpy(rows)
        concepts = None if self.concepts is None else self.concepts[index]
        subjects = None if self.subjects is None else self.subjects[rows]
        groups = {name: values[rows] for name, values in self.groups.items()}
        names = [self.names[row] for row in rows]
        values = None if self.values is None else self.values[index]
        return FeatureSplit(self.x[index], self.y[index], names, concepts, subjects, groups, values)

    def class_means(self, num_classes: int) -> Tensor:
        """Mean feature of every class, ``[C, D]``; of a label, the mean of the images that have it."""
        if self.y.ndim == 2:
            present = (self.y == 1).float()
            return (present.T @ self.x.float()) / present.sum(dim=0).clamp(min=1)[:, None]
        return (
            class_sums(self.x, self.y, num_classes)
            / torch.bincount(self.y, minlength=num_classes).clamp(min=1)[:, None]
        )


def unit_norm(features: Tensor, names: list[str]) -> Tensor:
    """Scale raw features to unit norm, ``[N, D]`` float32.

    Raises:
        UserError: a feature is NaN or infinite, or a row is zero; the message names the first.
    """
    features = features.float()
    norms = features.norm(dim=1)
    bad = ~norms.isfinite() | (norms == 0)
    if bad.any():
        first = names[int(bad.nonzero()[0])]
        raise UserError(f"{int(bad.sum())} feature vector(s) are NaN, infinite or zero, first for '{first}'")
    return F.normalize(features, dim=1)


def mean_feature(x: Tensor) -> Tensor:
    """Mean ``[D]`` of features ``[N, D]``, float32 from float64 sums."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(65536):
        total += part.double().sum(dim=0)
    return (total / len(x)).float()


def spaced(x: Tensor, count: int) -> Tensor:
    """``x`` ``[N, ...]``, or ``count`` of its rows at even distances."""
    return x if len(x) <= count else x[torch.arange(count) * len(x) // count]


def split_test(split: FeatureSplit, shots: int, classes: list[str], seed: int) -> tuple[FeatureSplit, FeatureSplit]:
    """Draw some images of every class that has any; returns them and the rest, which shows none of their subjects.

    Classes without images are named in a warning: another domain need not have all classes of a model. Of labels,
    images with and without each are drawn.

    Args:
        split: the images.
        shots: number of images per class to draw, or with a label and without it.
        classes: C class names, for the error message.
        seed: random seed for the draw.

    Raises:
        UserError: a class has too few images, or nothing is left.
    """
    setting = "labelled test pictures: shots"
    y = split.y.numpy()
    if y.ndim == 2:
        present = np.flatnonzero((y == 1).any(axis=0) & (y == 0).any(axis=0))
        labels, lack = y[:, present], "labels are not both present and absent here"
    else:
        present, labels = np.unique(y, return_inverse=True)
        lack = "classes have no images here"
    if not len(present):
        raise UserError(f"{setting}={shots}: there are no images")
    if absent := [name for c, name in enumerate(classes) if c not in present]:
        warn_once(f"{len(absent)} of {len(classes)} {lack} and are left out: {quoted(absent)}")
    rows = few_shot(labels, shots, seed, [classes[c] for c in present], setting, split.subjects)
    rest = np.setdiff1d(np.arange(len(split)), rows)
    if split.subjects is not None:
        rest = rest[~np.isin(split.subjects[rest], split.subjects[rows])]
    if not len(rest):
        why = ", all other images show the same subjects" if len(rows) < len(split) else ""
        raise UserError(f"{setting}={shots}: nothing is left to test on{why}")
    return split.take(rows), split.take(rest)


@dataclass
class CropFeatures:
    """Encoded crops; those of pictures that cannot be read are not among them.

    Attributes:
        x: unit-norm features ``[M, D]``: float32, or mapped from disk and then perhaps in half precision.
        image: row of the picture ``[M]`` that each is cut from.
        box: where it lies in there ``[M, 4]``: left, top, right and bottom as shares of width and height.
        names: names of the crops.
        crops: the crops themselves (``cbm.data.crops.Crops``), to be shown.
    """

    x: Tensor
    image: np.ndarray
    box: np.ndarray
    names: list[str]
    crops: Images

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class FeatureData:
    """Encoded splits of one data set.

    Attributes:
        splits: features by name of the split.
        classes: C class names.
        concept_names: names of the A labelled concepts.
        concept_groups: names of concepts that exclude each other, by name of the group.
        seed: random seed for the order of the training batches.
        encoder: fingerprint of the encoder of the features.
        teacher: features of the same training and validation images, in the same order, from the teacher; None if the
            encoder itself is the teacher.
        class_embeddings: embeddings ``[C, E]`` of the class names from the text-image model, for methods that read
            class names.
        skipped: names of the images of each split that could not be read, and are not in it.
        undrawn: names of the images that are in no split because few were asked for (``shots=``).
        group_names: values of each group, by its name.
        crops: features of parts of the training images, for methods that ask for them (``Method.reads_crops``).
        specs: attributes that are no yes or no.
        negative_embeddings: embeddings ``[L, E]`` of the sentences that say an image does not show a label, where the
            data set has such sentences and a tower reads them.

    Raises:
        ValueError: the teacher's images differ from those of the encoder.
    """

    splits: dict[str, FeatureSplit]
    classes: list[str]
    concept_names: list[str] = field(default_factory=list)
    concept_groups: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    encoder: str | None = None
    teacher: "FeatureData | None" = None
    class_embeddings: Tensor | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    undrawn: frozenset[str] = frozenset()
    group_names: dict[str, list[str]] = field(default_factory=dict)
    crops: CropFeatures | None = None
    specs: list[ConceptSpec] = field(default_factory=list)
    negative_embeddings: Tensor | None = None

    def __post_init__(self):
        for name, split in self.teacher.splits.items() if self.teacher else ():
            if name not in self.splits or split.names != self.splits[name].names:
                raise ValueError(f"the teacher's {name} pictures are not those of the encoder")

    @property
    def train(self) -> FeatureSplit:
        """The training split (the few-shot subset, when shots were asked for)."""
        return self.splits["train"]

    @property
    def val(self) -> FeatureSplit:
        """The validation split."""
        return self.splits["val"]

    @property
    def test(self) -> FeatureSplit:
        """The test split."""
        return self.splits["test"]

    @property
    def many(self) -> bool:
        """Whether an image has any number of labels."""
        return next(iter(self.splits.values())).y.ndim == 2

    @property
    def value_specs(self) -> list[ConceptSpec]:
        """The V continuous attributes, in the order of the columns of ``FeatureSplit.values``."""
        return [spec for spec in self.specs if spec.kind == "continuous"]

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.train.x.shape[1]
