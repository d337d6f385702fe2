"""Fixture files in the formats in which the data sets are published."""

import json
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK
from PIL import Image

from cbm.data import complete_splits, read_dataset
from cbm.errors import UserError

NAN = float("nan")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    pixels[..., seed % 3] = 250
    Image.fromarray(pixels).save(path)


def cub(root: Path, per_class: int = 6) -> Path:
    """Three classes; the attributes of a picture, by class: most have the first, ties, mostly invisible, rare."""
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    attributes = [
        "has_bill_shape::hooked_(seabird)",
        "has_bill_shape::dagger",
        "has_wing_color::dark_blue",
        "has_eye::red",
    ]
    images, labels, split, marks = [], [], [], []
    for c, folder in enumerate(names):
        for i in range(per_class):
            number = len(images) + 1
            file = f"{folder}/{folder[4:]}_{i:04d}_{number}.jpg"
            picture(root / "images" / file, c + 3 * i)
            images.append(f"{number} {file}")
            labels.append(f"{number} {c + 1}")
            train = i < 4
            split.append(f"{number} {int(train)}")
            first = int(c < 2 and i != 0) if train else 1 - int(c < 2)
            present = [first, int(i % 2), 0, int(c == 2)]
            certainty = [3, 4, 1 if c == 0 or i else 3, 2]
            marks += [f"{number} {a + 1} {p} {s} 5.2" for a, (p, s) in enumerate(zip(present, certainty))]
    marks[5] += " 0"  # some published lines have a field too many
    (root / "attributes").mkdir()
    for file, lines in {
        "images.txt": images, "image_class_labels.txt": labels, "train_test_split.txt": split,
        "classes.txt": [f"{i + 1} {n}" for i, n in enumerate(names)],
        "attributes/image_attribute_labels.txt": marks,
        "../attributes.txt": [f"{i + 1} {n}" for i, n in enumerate(attributes)],
    }.items():  # fmt: skip
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def awa2(root: Path) -> Path:
    (root / "classes.txt").write_text("      1\tantelope\n      2\tgrizzly+bear\n")
    (root / "predicates.txt").write_text("      1\tblack\n      2\tfurry\n      3\tlongleg\n")
    (root / "predicate-matrix-binary.txt").write_text("0 1 1\n1 1 0\n")
    for folder in ("antelope", "grizzly+bear"):
        for i in range(12):
            picture(root / "JPEGImages" / folder / f"{folder}_1{i:04d}.jpg", 3 * i + len(folder))
    return root


def celeba(root: Path, count: int = 96) -> Path:
    attributes = ["Bald", "Smiling", "Male", "Young"]
    values = [[i % 16 == 0, i % 2 == 0, i % 4 < 2, i % 8 < 5] for i in range(count)]
    lines = [str(count), " ".join(attributes) + " "]
    lines += [f"{i + 1:06d}.jpg " + " ".join(" 1" if v else "-1" for v in row) for i, row in enumerate(values)]
    (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = [0 if i < 64 else 1 if i < 80 else 2 for i in range(count)]
    (root / "list_eval_partition.txt").write_text("".join(f"{i + 1:06d}.jpg {p}\n" for i, p in enumerate(parts)))
    for i in range(count):
        picture(root / "img_align_celeba" / f"{i + 1:06d}.jpg", i)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "archive" / "set"
    root.mkdir(parents=True)
    return root


def test_cub_votes_of_the_training_pictures(folder: Path):
    data = read_dataset("cub", "cub", cub(folder), {"min_classes": 1})
    assert data.classes == ["Black footed Albatross", "Laysan Albatross", "Sooty Albatross"]
    assert len(data.splits["train"]) == 12
    assert len(data.splits["test"]) == 6
    # the first by majority, the second by a tie; the third is absent or was never visible; the last is class 3's
    assert data.concept_names == ["bill shape: hooked (seabird)", "bill shape: dagger", "eye: red"]
    assert data.concept_groups == {"bill shape": data.concept_names[:2], "eye": data.concept_names[2:]}
    by_class = [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    for split in data.splits.values():  # of test pictures too, whatever they show
        assert split.concepts.tolist() == [by_class[label] for label in split.labels]
    assert read_dataset("cub", "cub", folder, {"min_classes": 2}).concept_names == data.concept_names[:2]
    with pytest.raises(UserError, match="min_classes=10: so many classes of 'cub' share no attribute"):
        read_dataset("cub", "cub", folder, {})


def test_cub_pictures_with_marks_of_their_own(folder: Path):
    data = read_dataset("cub", "cub", cub(folder), {"level": "image"})
    assert len(data.concept_names) == 4
    concepts = data.splits["train"].concepts
    np.testing.assert_equal(concepts[:2], [[0, 0, NAN, 0], [1, 1, NAN, 0]])
    np.testing.assert_equal(concepts[4], [0, 0, 0, 0])  # absent, and visibly so
    with pytest.raises(UserError, match="dataset.args.level=pictures"):
        read_dataset("cub", "cub", folder, {"level": "pictures"})


def test_awa2_classes_have_predicates(folder: Path, tmp_path: Path):
    data = read_dataset("awa2", "awa2", awa2(folder), {})
    assert data.classes == ["antelope", "grizzly bear"]
    assert data.concept_names == ["black", "furry", "longleg"]
    split = data.splits["train"]
    assert split.concepts.tolist() == [[[0, 1, 1], [1, 1, 0]][label] for label in split.labels]
    parts = complete_splits(data, tmp_path, val_fraction=0.1, test_fraction=0.5, seed=0).splits
    assert len(parts["test"]) == 12
    (folder / "predicate-matrix-binary.txt").write_text("0 1 1\n1 1\n")
    with pytest.raises(UserError, match="predicate-matrix-binary.txt' line 2: expected 3 whole numbers"):
        read_dataset("awa2", "awa2", folder, {})


def test_celeba_combinations_are_classes(folder: Path):
    data = read_dataset("celeba", "celeba", celeba(folder), {"concepts": 2, "hidden": 1, "every": 1})
    assert data.concept_names == ["smiling", "male"]  # half of the pictures; young is hidden, bald too rare
    assert len(data.classes) == 7  # of 8 combinations those that occur
    assert data.classes[0] == "not smiling, not male, not young"
    for name, split in data.splits.items():
        assert len(split) == {"train": 64, "val": 16, "test": 16}[name]
        for label, concepts in zip(split.labels, split.concepts):
            words = data.classes[label].split(", ")
            assert [float(not word.startswith("not")) for word in words[:2]] == concepts.tolist()
    fewer = read_dataset("celeba", "celeba", folder, {"concepts": 2, "hidden": 1, "every": 3})
    assert fewer.splits["train"].images.names[:2] == ["000001.jpg", "000004.jpg"]
    with pytest.raises(UserError, match="3 concepts and 2 hidden ones of 4 attributes"):
        read_dataset("celeba", "celeba", folder, {"concepts": 3})
    lines = (folder / "list_attr_celeba.txt").read_text().replace("000003.jpg -1", "000003.jpg 7")
    (folder / "list_attr_celeba.txt").write_text(lines.replace("000003.jpg  1", "000003.jpg 7"))
    with pytest.raises(UserError, match="list_attr_celeba.txt line 5: expected 1 or -1"):
        read_dataset("celeba", "celeba", folder, {"concepts": 2})


@pytest.mark.parametrize("kind", ["cub", "awa2", "celeba"])
def test_a_folder_that_is_something_else(kind: str, folder: Path):
    with pytest.raises(UserError, match="is dataset.root the unpacked archive"):
        read_dataset(kind, kind, folder, {})


@pytest.mark.parametrize(
    ("card", "write", "settings"),
    [
        ("cub", cub, ["dataset.args.min_classes=1"]),
        ("awa2", awa2, []),
        ("celeba", celeba, ["dataset.args.concepts=2", "dataset.args.hidden=1", "dataset.args.every=1"]),
    ],
)
def test_from_the_card_to_an_energy_based_bottleneck(card, write, settings, folder: Path, command, tmp_path: Path):
    write(folder)
    status, errors = command(
        "train", f"dataset={card}", f"dataset.root={folder}", *settings, *QUICK, "method.max_epochs=2", "method=energy",
        "run_dir=run", "cache=cache", "report=false",
    )  # fmt: skip
    assert status == 0, errors
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["test/concept_accuracy"] > 0
    assert "test/intervention_accuracy_100" in metrics
