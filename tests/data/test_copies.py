"""The same content in two splits, or under two classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from data.test_webdataset import pack, picture

from cbm.data import complete_splits, few_shot, read_dataset
from cbm.data.copies import find_copies, near_duplicates, shared_subjects
from cbm.data.dataset import ImageDataset, Split
from cbm.data.features import FeatureSplit, split_test
from cbm.data.images import ImageArray
from cbm.errors import UserError


def fill(folder: Path, count: int, seed: int) -> None:
    for i in range(count):
        paint(folder / f"{i}.png", (90, 20, 60), seed + i, size=6)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def test_in_two_splits_and_two_classes(tmp_path: Path):
    root = tmp_path / "set"
    for k, name in enumerate("ab"):
        fill(root / "train" / name, 5, 100 * k)
        fill(root / "test" / name, 3, 100 * k + 50)
    copy(root / "train/a/0.png", root / "test/a/other.png")
    copy(root / "train/a/1.png", root / "train/b/wrong.png")
    copy(root / "train/a/2.png", root / "train/a/again.png")
    found = find_copies(read_dataset("folder", "f", root, {}), tmp_path / "c")
    assert found.leaks == {("test", "train"): [("test/a/other.png", "train/a/0.png")]}
    assert found.torn == [("train/b/wrong.png", "train/a/1.png")]
    assert found.within == ["train/a/again.png"]
    assert found.leaked()[0].startswith(
        "1 image(s) of test have the same content as one of train: 'test/a/other.png' = "
    )
    assert len(found.mislabelled()) == 1


@pytest.mark.parametrize("layout", ["folder", "csv", "webdataset"])
def test_drawn_splits_keep_copies_together(tmp_path: Path, layout: str):
    root = tmp_path / "set"
    if layout == "webdataset":
        members = {}
        for i in range(40):
            members[f"{i:02d}.png"] = picture((9, 9, 9), i % 20)
            members[f"{i:02d}.cls"] = "ab"[i % 2]
        pack(root / "one.tar", dict(list(members.items())[:40]))
        pack(root / "two.tar", dict(list(members.items())[40:]))
    else:
        for k, name in enumerate("ab"):
            fill(root / name, 10, 100 * k)
            for i in range(10):
                copy(root / name / f"{i}.png", root / name / f"copy-{i}.png")
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
        (root / "images.csv").write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    data = read_dataset(layout, "d", root, {}, tmp_path / "c")
    assert len(data.splits["train"]) == 40
    parts = complete_splits(data, tmp_path / "c", val_fraction=0.2, test_fraction=0.2, seed=3)
    assert find_copies(parts, tmp_path / "c").leaks == {}
    sizes = {split: len(part) for split, part in parts.splits.items()}
    assert sum(sizes.values()) == 40
    assert sizes["test"] == 8


def test_draws_without_copies_are_what_they_always_were(tmp_path: Path):
    """By seed: nobody's test images move because copies are looked for."""
    root = tmp_path / "set"
    for k, name in enumerate("abc"):
        fill(root / name, 20, 100 * k)
    data = read_dataset("folder", "f", root, {})
    parts = complete_splits(data, tmp_path / "c", val_fraction=0.1, test_fraction=0.2, seed=5).splits
    generator, expected = np.random.default_rng(5), []
    for name in "abc":
        order = generator.permutation(20)
        names = sorted(f"{name}/{i}.png" for i in range(20))
        expected += [names[i] for i in order[:4]]
    assert sorted(parts["test"].images.names) == sorted(expected)


def test_a_placeholder_ties_nothing_together(tmp_path: Path):
    """Most images of a class could not be downloaded, and all of them are the same grey square."""
    root = tmp_path / "set"
    for k, name in enumerate("ab"):
        fill(root / name, 30, 100 * k)
    for i in range(25):
        copy(root / "b/0.png", root / f"a/{i}.png")
    parts = complete_splits(
        read_dataset("folder", "f", root, {}), tmp_path, val_fraction=0.2, test_fraction=0.2, seed=0
    ).splits
    assert all(np.bincount(part.labels).min() > 0 for part in parts.values())


def subject_split(subjects: list[str], labels: list[int]) -> Split:
    images = ImageArray(
        np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3), [f"{i}" for i in range(len(labels))]
    )
    return Split(images, np.array(labels), subjects=np.array(subjects))


def test_subjects_in_two_splits():
    parts = {"train": subject_split(["P1", "P2"], [0, 1]), "test": subject_split(["P2", "P3"], [0, 1])}
    assert shared_subjects(ImageDataset("d", ["a", "b"], parts)) == ["1 subject(s) of test are in train too: 'P2'"]


def test_few_shots_are_different_subjects_as_long_as_there_are():
    subjects = np.array([f"P{i // 10}" for i in range(60)])
    labels = np.repeat([0, 1], 30)
    for seed in range(5):
        drawn = {shots: few_shot(labels, shots, seed, ["a", "b"], subjects=subjects) for shots in (1, 3, 6)}
        assert set(drawn[1]) <= set(drawn[3]) <= set(drawn[6])
        assert len(set(subjects[drawn[3]])) == 6
        assert np.unique(subjects[drawn[6]], return_counts=True)[1].tolist() == [2] * 6


def test_what_is_tested_shows_no_subject_that_was_drawn():
    subjects = np.array([f"P{i // 4}" for i in range(40)])
    split = FeatureSplit(torch.eye(40), torch.arange(40) % 2, [str(i) for i in range(40)], subjects=subjects)
    for seed in range(5):
        support, rest = split_test(split, 2, ["a", "b"], seed)
        assert not set(support.subjects) & set(rest.subjects)
        assert len(support) == 4
    with pytest.raises(UserError, match="nothing is left to test on"):
        split_test(FeatureSplit(split.x, split.y, split.names, subjects=np.array(["P"] * 40)), 1, ["a", "b"], 0)


@pytest.mark.parametrize("block", [3, 7, 100])
def test_near_duplicates_block_by_block(block: int):
    x = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    x[31] = torch.nn.functional.normalize(x[4] + 0.02, dim=0)
    cosines = x @ x.T
    expected = [(i, j) for i in range(40) for j in range(i + 1, 40) if cosines[i, j] >= 0.8]
    found = near_duplicates(x, 0.8, block)
    assert sorted((i, j) for i, j, _ in found) == sorted(expected)
    assert found[0][:2] == (4, 31)
    assert len(near_duplicates(x, -1.0, block, most=5)) <= 10
