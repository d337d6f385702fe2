from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, paint

from cbm.data import complete_splits, few_shot, read_dataset
from cbm.data.features import FeatureSplit, split_test
from cbm.errors import UserError

FRACTIONS = dict(val_fraction=0.1, test_fraction=0.2, seed=0)


def names(data):
    return {split: set(part.images.names) for split, part in data.splits.items()}


def test_stratified_and_disjoint(colour_folder: Path, tmp_path: Path):
    data = complete_splits(read_dataset("folder", "f", colour_folder, {}), tmp_path, **FRACTIONS)
    assert {split: np.bincount(part.labels).tolist() for split, part in data.splits.items()} == {
        "train": [14] * 3, "test": [4] * 3, "val": [2] * 3,
    }  # fmt: skip
    parts = list(names(data).values())
    assert len(set.union(*parts)) == sum(map(len, parts)) == 60


def test_a_picture_never_moves_between_splits_when_others_are_added(colour_folder: Path, tmp_path: Path):
    before = names(complete_splits(read_dataset("folder", "f", colour_folder, {}), tmp_path, **FRACTIONS))
    for i in range(30):
        paint(colour_folder / "red" / f"new{i}.png", COLOURS["red"], i)
    after = names(complete_splits(read_dataset("folder", "f", colour_folder, {}), tmp_path, **FRACTIONS))
    assert all(before[split] <= after[split] for split in before)
    assert sum(map(len, after.values())) == 90
    assert len(after["test"]) == 12 + 6


def test_existing_splits_are_left_alone(colour_folder: Path, tmp_path: Path):
    data = read_dataset("folder", "f", colour_folder, {})
    data.splits["test"] = data.splits["train"].take(np.arange(6))
    data = complete_splits(data, tmp_path, **FRACTIONS)
    assert len(data.splits["test"]) == 6
    assert set(data.splits) == {"train", "val", "test"}


def test_bad_fraction(colour_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="dataset.val_fraction=1.5"):
        complete_splits(read_dataset("folder", "f", colour_folder, {}), tmp_path, **{**FRACTIONS, "val_fraction": 1.5})


def test_few_shot_subsets_are_balanced_nested_and_seeded():
    labels = np.repeat(np.arange(5), 40)[np.random.default_rng(0).permutation(200)]
    classes = list("abcde")
    four, one = few_shot(labels, 4, 7, classes), few_shot(labels, 1, 7, classes)
    assert np.bincount(labels[four]).tolist() == [4] * 5
    assert set(one) <= set(four)
    np.testing.assert_array_equal(four, few_shot(labels, 4, 7, classes))
    assert set(four) != set(few_shot(labels, 4, 8, classes))
    assert len(few_shot(labels, "all", 0, classes)) == 200


@pytest.mark.parametrize("shots", [0, -1, 2.5, "many", True])
def test_shots_that_make_no_sense(shots):
    with pytest.raises(UserError, match="shots="):
        few_shot(np.zeros(4, dtype=int), shots, 0, ["a"])


def test_more_shots_than_pictures_names_the_class():
    with pytest.raises(UserError, match="class 'b' has 2 image.*largest possible value is 2"):
        few_shot(np.array([0, 0, 0, 1, 1]), 3, 0, ["a", "b"])


def test_labelled_images_of_the_classes_that_are_there(caplog: pytest.LogCaptureFixture):
    """Another domain may lack classes; training on few shots may not."""
    y = np.array([0] * 6 + [2] * 6)
    split = FeatureSplit(torch.eye(12), torch.from_numpy(y), [f"{i}" for i in range(12)])
    support, rest = split_test(split, 2, ["a", "b", "c", "d"], 0)
    assert (support.y.tolist(), rest.y.tolist()) == ([0, 0, 2, 2], [0] * 4 + [2] * 4)
    assert caplog.text.count("2 of 4 classes have no images here and are left out: 'b', 'd'") == 1
    with pytest.raises(UserError, match="class 'c' has 3 image"):
        split_test(split.take(np.arange(9)), 4, ["a", "b", "c", "d"], 0)
    with pytest.raises(UserError, match="there are no images"):
        split_test(split.take(np.arange(0)), 1, ["a", "b"], 0)
    with pytest.raises(UserError, match="shots=6: nothing is left to test on$"):
        split_test(split, 6, ["a", "b", "c"], 0)
    with pytest.raises(UserError, match="class 'b' has 0 image"):
        few_shot(y, 2, 0, ["a", "b", "c"])
    same, _ = split_test(split, 2, ["a", "c", "b"], 3)
    whole = FeatureSplit(split.x, torch.from_numpy(y // 2), split.names)
    assert same.names == split_test(whole, 2, ["a", "b"], 3)[0].names
