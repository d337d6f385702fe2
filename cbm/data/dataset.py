"""``ImageDataset``: labelled images with their splits, as every reader returns them."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from cbm.data.images import Images
from cbm.errors import UserError


class Encoded(Protocol):
    """Features of N images."""

    @property
    def readable(self) -> np.ndarray:
        """Which of them can be used, ``[N]`` bool."""
        ...

    @property
    def errors(self) -> dict[str, str]:
        """Why the others cannot, by the image's name."""
        ...

    def unit_rows(self, rows: np.ndarray, names: list[str]) -> Tensor:
        """Unit-norm features ``[n, D]`` of ``rows``, whose names are for messages."""
        ...


class Given(Encoded, Protocol):
    """Features of N images that were made elsewhere (``cbm.data.given``)."""

    @property
    def dim(self) -> int:
        """Width D."""
        ...

    def take(self, rows: np.ndarray) -> "Given":
        """The features of the images at ``rows``."""
        ...


Task = Literal["one", "many"]
"""What an image has: one of the classes, or any number of labels."""
Kind = Literal["categorical", "ordinal", "continuous"]


@dataclass(frozen=True)
class ConceptSpec:
    """An attribute that is no yes or no.

    Attributes:
        name: its name (``nucleus shape``).
        kind: ``categorical`` (its values exclude each other, one column of 0 and 1 each), ``ordinal`` (one column with
            the level 0 to V - 1), or ``continuous`` (one column with the number in its unit).
        columns: names of its columns in ``ImageDataset.concept_names``: one for each value of a categorical one, its
            own name otherwise.
        values: words of its values, or of its levels from the lowest on; empty for a number.
        unit: of a number, such as "mm".
        low: smallest number that can be; None if any.
        high: largest number that can be; None if any.
    """

    name: str
    kind: Kind
    columns: list[str]
    values: list[str] = field(default_factory=list)
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass
class Split:
    """One part of a data set.

    Attributes:
        images: N images.
        labels: class indices ``[N]`` int64; where an image has any number of labels (``ImageDataset.task`` is "many"),
            ``[N, L]`` float32: 1 present, 0 absent, NaN unknown; between them, in training only, where an unknown one
            was given a target (``cbm.data.labels.settle``).
        concepts: concept labels ``[N, A]``: 1 present, 0 absent, NaN unknown; levels and numbers where
            ``ImageDataset.specs`` says so. None if there are none.
        subjects: subject ``[N]`` of each image (a lesion, a video); images of one subject stay in one split. None if
            unknown.
        groups: values ``[N]`` int64 by name of the group (site, sex): indices into ``ImageDataset.group_names``, -1 if
            unknown.
        features: features of the images, if they were made elsewhere; then nothing is encoded.
        values: numbers ``[N, V]`` of the continuous attributes, in their units and the order of ``ImageDataset.specs``,
            NaN if unknown; None until ``cbm.data.valued`` has set them apart.
    """

    images: Images
    labels: np.ndarray
    concepts: np.ndarray | None = None
    subjects: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    features: Given | None = None
    values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """The images at ``rows``."""
        concepts = None if self.concepts is None else self.concepts[rows]
        subjects = None if self.subjects is None else self.subjects[rows]
        groups = {name: values[rows] for name, values in self.groups.items()}
        features = None if self.features is None else self.features.take(rows)
        values = None if self.values is None else self.values[rows]
        return Split(self.images.take(rows.tolist()), self.labels[rows], concepts, subjects, groups, features, values)


@dataclass
class ImageDataset:
    """Classes, splits, and the names of the labelled concepts.

    Attributes:
        name: name of the data set in tables.
        classes: C class names; a label is an index into them. The names of the L labels if the task is "many".
        splits: splits by name: ``train``, ``val``, ``test``; a reader may leave out ``val`` and ``test``, or ``train``.
        concept_names: names of the A concepts, the columns of ``Split.concepts``.
        concept_groups: names of concepts that exclude each other, by name of the group.
        spurious: names of concepts that go with a class in training but do not belong to it, by class name.
        subject: what the user called subjects: a column, or a pattern; empty if the reader knows them itself.
        group_names: values of each group, by its name; ``Split.groups`` are indices into them.
        doubts: what the reader saw that a person should look at, in sentences.
        faults: what makes every number doubtful, in sentences: such a set is not trained on.
        task: "one" class an image, or "many" labels.
        specs: attributes that are no yes or no.
        template: sentence that says an image shows a label, with ``{}`` for its name; empty for that of the card.
        negative_template: sentence that says an image does not show a label, with ``{}`` for its name ("no {}."); empty
            if the data set has none.
    """

    name: str
    classes: list[str]
    splits: dict[str, Split]
    concept_names: list[str] = field(default_factory=list)
    concept_groups: dict[str, list[str]] = field(default_factory=dict)
    spurious: dict[str, list[str]] = field(default_factory=dict)
    subject: str = ""
    group_names: dict[str, list[str]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    task: Task = "one"
    specs: list[ConceptSpec] = field(default_factory=list)
    template: str = ""
    negative_template: str = ""

    def check(self) -> "ImageDataset":
        """Return the data set if a classifier can be trained on it.

        Raises:
            UserError: there are fewer than two classes, or a class has no training images; of labels, there is none, or
                one that no training image has, or every one.
        """
        if "train" not in self.splits:
            return self  # pictures to evaluate a model of other ones
        if self.task == "many":
            return self._check_labels()
        if len(self.classes) < 2:
            found = f"only '{self.classes[0]}'" if self.classes else "none"
            raise UserError(f"data set '{self.name}': a classifier needs two classes or more, found {found}")
        counts = np.bincount(self.splits["train"].labels, minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts) if count == 0]:
            shown = ", ".join(f"'{name}'" for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise UserError(f"data set '{self.name}': no training images for class {shown}")
        return self

    def _check_labels(self) -> "ImageDataset":
        """``check`` for any number of labels an image: two positives and two negatives of each."""
        if not self.classes:
            raise UserError(f"data set '{self.name}': no labels")
        y = self.splits["train"].labels
        for which, counts in (("", (y == 1).sum(axis=0)), ("out", (y == 0).sum(axis=0))):
            if len(few := np.flatnonzero(counts < 2)):
                name, count = self.classes[few[0]], int(counts[few[0]])
                raise UserError(
                    f"data set '{self.name}': label '{name}' has {count} training picture{'' if count == 1 else 's'} "
                    f"with{which} it: needs 2 (dataset.args.drop=['{name}'] leaves the label out)"
                )
        return self


def class_index(labels: list[str], classes: list[str]) -> np.ndarray:
    """Class indices ``[N]`` of class names.

    Args:
        labels: class name of every image.
        classes: all class names.
    """
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[label] for label in labels], dtype=np.int64)
