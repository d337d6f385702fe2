"""Data sets with attribute labels, in the formats in which they are published."""

from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split
from cbm.data.images import ImageFiles, list_images
from cbm.data.labels import choose_labels
from cbm.data.lists import read_lines, read_numbers
from cbm.data.readers import reader
from cbm.errors import UserError, did_you_mean

NOT_VISIBLE = 1  # of the certainties of CUB


@reader("cub")
def read_cub(name: str, root: Path, level: str = "class", min_classes: int = 10) -> ImageDataset:
    """CUB-200-2011 (Wah et al., 2011), unpacked: ``images.txt``, ``classes.txt``, ``attributes/``, ...

    Args:
        name: name of the data set.
        root: folder of the data set.
        level: ``class`` for the protocol of Koh et al. (ICML 2020): a concept is present in all images of a class if it
            is in most of the training images (ties count as present, "not visible" does not count). ``image`` for every
            image's own labels; "not visible" means unknown.
        min_classes: smallest number of classes with a concept for the concept to be kept (``level=class``).

    Raises:
        UserError: files are missing or damaged, or a setting is out of range.
    """
    if level not in ("class", "image"):
        raise UserError(f"dataset.args.level={level}: {did_you_mean(level, ('class', 'image'))}")
    files = [words[1] for _, words in read_lines(name, root / "images.txt", 2)]
    classes = [words[1].split(".", 1)[-1].replace("_", " ") for _, words in read_lines(name, root / "classes.txt", 2)]
    labels = read_numbers(name, root / "image_class_labels.txt", 2)[:, 1] - 1
    train = read_numbers(name, root / "train_test_split.txt", 2)[:, 1] == 1
    listed = root / "attributes" / "attributes.txt"
    listed = listed if listed.is_file() else root.parent / "attributes.txt"  # where the archive puts it
    attributes = [words[1] for _, words in read_lines(name, listed, 2)]
    marks = read_numbers(name, root / "attributes" / "image_attribute_labels.txt", 4)
    for what, count in (("image_class_labels.txt", len(labels)), ("train_test_split.txt", len(train))):
        if count != len(files):
            raise UserError(f"data set '{name}': {what} has {count} lines, images.txt has {len(files)}")
    for what, numbers, count in (
        ("image_class_labels.txt names classes", labels + 1, len(classes)),
        ("image_attribute_labels.txt names pictures", marks[:, 0], len(files)),
        ("image_attribute_labels.txt names attributes", marks[:, 1], len(attributes)),
    ):
        if numbers.min(initial=1) < 1 or numbers.max(initial=1) > count:
            raise UserError(f"data set '{name}': {what} that do not exist")
    shown = np.full((len(files), len(attributes)), np.nan, np.float32)
    seen = marks[(marks[:, 2] == 1) | (marks[:, 3] != NOT_VISIBLE)]
    shown[seen[:, 0] - 1, seen[:, 1] - 1] = seen[:, 2]
    if level == "class":
        votes = np.zeros((len(classes), len(attributes)))
        np.add.at(votes, labels[train], np.nan_to_num(2 * shown[train] - 1))
        known = np.zeros_like(votes)
        np.add.at(known, labels[train], ~np.isnan(shown[train]))
        shown = ((votes >= 0) & (known > 0)).astype(np.float32)[labels]
        of_classes = np.array([shown[labels == c].max(axis=0, initial=0) for c in range(len(classes))])
        kept = np.flatnonzero(of_classes.sum(axis=0) >= min_classes)
        if not len(kept):
            raise UserError(f"dataset.args.min_classes={min_classes}: so many classes of '{name}' share no attribute")
        shown, attributes = shown[:, kept], [attributes[k] for k in kept]
    groups: dict[str, list[str]] = {}
    phrases = []
    for attribute in attributes:  # has_bill_shape::hooked_seabird -> bill shape: hooked seabird
        group, _, value = attribute.removeprefix("has_").replace("_", " ").partition("::")
        phrases.append(f"{group}: {value}")
        groups.setdefault(group, []).append(phrases[-1])
    pictures = ImageFiles(root / "images", files)
    rows = {"train": np.flatnonzero(train), "test": np.flatnonzero(~train)}
    splits = {part: Split(pictures, labels, shown).take(index) for part, index in rows.items()}
    return ImageDataset(name, classes, splits, phrases, groups)


@reader("awa2")
def read_awa2(name: str, root: Path) -> ImageDataset:
    """Animals with Attributes 2 (Xian et al., 2018), unpacked: the predicates of a class hold for all its images.

    Raises:
        UserError: files are missing or damaged.
    """
    classes = [words[1] for _, words in read_lines(name, root / "classes.txt", 2)]
    predicates = [words[1] for _, words in read_lines(name, root / "predicates.txt", 2)]
    matrix = read_numbers(name, root / "predicate-matrix-binary.txt", len(predicates))
    if len(matrix) != len(classes):
        raise UserError(f"data set '{name}': {len(matrix)} rows of predicates for {len(classes)} classes")
    files, labels = [], []
    for number, folder in enumerate(classes):
        found = list_images(root / "JPEGImages" / folder)
        files += [path.relative_to(root).as_posix() for path in found]
        labels += [number] * len(found)
    index = np.array(labels, dtype=np.int64)
    concepts = matrix[index].astype(np.float32)
    splits = {"train": Split(ImageFiles(root, files), index, concepts)}
    return ImageDataset(name, [folder.replace("+", " ") for folder in classes], splits, predicates)


@reader("celeba")
def read_celeba(
    name: str,
    root: Path,
    concepts: int = 6,
    hidden: int = 2,
    every: int = 12,
    task: str = "classes",
    keep: list[str] | None = None,
    drop: list[str] | None = None,
) -> ImageDataset:
    """CelebA (Liu et al., 2015), unpacked, as a task on concepts (Espinosa Zarlenga et al., NeurIPS 2022).

    The attributes are sorted by how near their frequency is to one half: the first are known, the next are hidden, and
    the class of an image is the combination of all of them. The splits are the published ones. A class without a
    training image is left out. Or the 40 attributes are labels, any number an image (``task=attributes``).

    Args:
        name: name of the data set.
        root: folder of the data set.
        concepts: number of known attributes.
        hidden: number of hidden attributes.
        every: one image in so many is used.
        task: ``classes`` for combinations of attributes, ``attributes`` for labels (-1 is absent); then there are no
            concepts.
        keep: the labels that are taken; by default all.
        drop: labels that are left out.

    Raises:
        UserError: files are missing or damaged, or a setting is out of range.
    """
    if task not in ("classes", "attributes"):
        raise UserError(f"dataset.args.task={task}: {did_you_mean(task, ('classes', 'attributes'))}")
    if task == "classes" and (keep is not None or drop is not None):
        raise UserError("dataset.args.keep and dataset.args.drop choose labels: say dataset.args.task=attributes")
    listed = read_lines(name, root / "list_attr_celeba.txt")
    next(listed, None)  # how many pictures there are
    _, attributes = next(listed, (0, []))
    rows = list(listed)
    used = rows[::every]
    if not rows:
        raise UserError(f"data set '{name}': list_attr_celeba.txt names no pictures")
    if (task == "classes" and concepts + hidden > len(attributes)) or concepts < 1 or hidden < 0:
        raise UserError(
            f"data set '{name}': {concepts} concepts and {hidden} hidden ones of {len(attributes)} attributes"
        )
    for number, words in rows:
        if len(words) != len(attributes) + 1 or set(words[1:]) - {"1", "-1"}:
            raise UserError(
                f"data set '{name}': list_attr_celeba.txt line {number}: expected 1 or -1 for every attribute"
            )
    shown = np.array([[word == "1" for word in words[1:]] for _, words in rows])
    sex = [attribute.lower() for attribute in attributes].index("male") if "Male" in attributes else None
    groups = {} if sex is None else {"sex": shown[::every, sex].astype(np.int64)}
    group_names = {} if sex is None else {"sex": ["female", "male"]}
    chosen = np.abs(shown.mean(axis=0) - 0.5).argsort(kind="stable")[: concepts + hidden]
    values = shown[::every][:, chosen]
    part_of = {words[0]: words[1] for _, words in read_lines(name, root / "list_eval_partition.txt", 2)}
    parts = np.array(["012".find(part_of.get(words[0], "none")) for _, words in used])
    if task == "attributes":
        images = ImageFiles(root / "img_align_celeba", [words[0] for _, words in used])
        whole = Split(images, shown[::every].astype(np.float32), groups=groups)
        splits = {part: whole.take(np.flatnonzero(parts == i)) for i, part in enumerate(("train", "val", "test"))}
        labels = [attribute.replace("_", " ").lower() for attribute in attributes]
        dataset = ImageDataset(name, labels, splits, group_names=group_names, task="many")
        dataset.template, dataset.negative_template = "a photo of a face, {}.", "a photo of a face, not {}."
        return choose_labels(dataset, keep, drop)
    codes = values @ (1 << np.arange(values.shape[1]))
    known = np.unique(codes[parts == 0])
    kept = np.isin(codes, known) & (parts >= 0)
    combined = np.searchsorted(known, codes)
    pictures = Split(
        ImageFiles(root / "img_align_celeba", [words[0] for _, words in used]),
        combined,
        values[:, :concepts].astype(np.float32),
        groups=groups,
    )
    splits = {
        part: pictures.take(np.flatnonzero(kept & (parts == i))) for i, part in enumerate(("train", "val", "test"))
    }
    names = [attribute.replace("_", " ").lower() for attribute in np.array(attributes)[chosen]]
    classes = [
        ", ".join(("" if code >> bit & 1 else "not ") + word for bit, word in enumerate(names)) for code in known
    ]
    return ImageDataset(name, classes, splits, names[:concepts], group_names=group_names)
