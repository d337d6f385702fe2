"""Images with any number of labels: splits, few images, copies, the check."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint

from cbm.commands.shared import encoder_settings
from cbm.config import change_card, load_card
from cbm.data import FeatureSplit, ImageDataset, Split, complete_splits, few_shot
from cbm.data.copies import find_copies
from cbm.data.encoded import encode_splits, read_images, reorder_classes
from cbm.data.features import split_test
from cbm.data.stratified import strata, stratify
from cbm.data.verify import Findings, label_counts, verify_classes, verify_counts, verify_likeness
from cbm.errors import UserError

FRACTIONS = dict(val_fraction=0.1, test_fraction=0.2, seed=0)


class Names:
    """Images that nobody opens."""

    root = Path("nowhere")

    def __init__(self, names: list[str]):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows):
        return Names([self.names[row] for row in rows])

    def contents(self, cache: Path) -> list[str]:
        return [f"{int(name):032x}" for name in self.names]


def made(n: int = 1000, missing: float = 0.0, subjects: int = 0, seed: int = 0) -> ImageDataset:
    """Correlated labels of prevalence .05 to .5."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, 3))
    wanted = np.linspace(0.05, 0.5, 10)
    scores = hidden @ rng.standard_normal((3, 10)) + rng.standard_normal((n, 10))
    y = (scores > np.quantile(scores, 1 - wanted, axis=0).diagonal()).astype(np.float32)
    y[rng.random(y.shape) < missing] = np.nan
    who = np.array([f"P{rng.integers(subjects)}" for _ in range(n)]) if subjects else None
    parts = {"train": Split(Names([str(i) for i in range(n)]), y, subjects=who)}
    return ImageDataset("made", [f"l{k}" for k in range(10)], parts, task="many", subject="who" if subjects else "")


def prevalence(part: Split) -> np.ndarray:
    return np.nanmean(part.labels, axis=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("missing", "subjects"), [(0, 0), (0.3, 0), (0, 400)])
def test_splits_share_labels_alike(tmp_path: Path, missing: float, subjects: int, seed: int):
    data = made(missing=missing, subjects=subjects, seed=seed)
    whole = data.splits["train"]
    often = (whole.labels == 1).sum(axis=0) >= 50
    parts = complete_splits(data, tmp_path, **FRACTIONS).splits
    assert sum(map(len, parts.values())) == len(whole)
    for name, share in (("test", 0.2), ("val", 0.1), ("train", 0.7)):
        assert abs(len(parts[name]) / len(whole) - share) < 0.01
        assert (np.abs(prevalence(parts[name]) - prevalence(whole))[often] < 0.02).all()
        assert (parts[name].labels == 1).any(axis=0).all()
    if subjects:
        who = [set(part.subjects) for part in parts.values()]
        assert len(set.union(*who)) == sum(map(len, who))


def test_splits_are_kept_and_rare_labels_are_everywhere(tmp_path: Path):
    data = made(300)
    data.splits["train"].labels[:, 0] = 0
    data.splits["train"].labels[[3, 50, 99, 200], 0] = 1
    first = complete_splits(made_of(data), tmp_path, **FRACTIONS).splits
    again = complete_splits(made_of(data), tmp_path, **FRACTIONS).splits
    assert {name: part.images.names for name, part in first.items()} == {
        name: part.images.names for name, part in again.items()
    }
    assert {name: int((part.labels[:, 0] == 1).sum()) for name, part in first.items()} == {
        "train": 2, "test": 1, "val": 1,
    }  # fmt: skip


def made_of(data: ImageDataset) -> ImageDataset:
    return ImageDataset(data.name, data.classes, dict(data.splits), task="many")


def test_stratify_keeps_kin_together_and_divides_everything():
    kin = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    shown = np.zeros((8, 2), dtype=bool)
    found = stratify(shown, kin, np.array([0.5, 0.5]), np.random.default_rng(0))
    assert found.min() >= 0
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert np.bincount(found).tolist() == [4, 4]
    assert strata(np.array([[np.nan, 1.0], [0.0, 0.0]])).astype(int).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_few_images_of_every_label():
    y = made(missing=0.2).splits["train"].labels
    names = [f"l{k}" for k in range(10)]
    four, eight = few_shot(y, 4, 1, names), few_shot(y, 8, 1, names)
    assert set(four) <= set(eight)
    assert ((y[four] == 1).sum(axis=0) >= 4).all()
    assert ((y[four] == 0).sum(axis=0) >= 4).all()
    assert len(four) <= 80
    np.testing.assert_array_equal(four, few_shot(y, 4, 1, names))
    assert len(few_shot(y, "all", 0, names)) == 1000
    y[:, 3] = 0
    y[7, 3] = 1
    with pytest.raises(UserError, match=r"shots=2 is more than there is: label 'l3' has 1 image\(s\) with it.*drop="):
        few_shot(y, 2, 0, names)


def test_few_images_of_another_domain():
    y = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=np.float32)
    split = FeatureSplit(torch.eye(6), torch.from_numpy(y), list("abcdef"))
    support, rest = split_test(split, 1, ["a", "b", "c"], 0)
    assert len(support) + len(rest) == 6
    assert {0.0, 1.0} <= set(support.y[:, 0].tolist())


def test_copies_with_other_labels(tmp_path: Path):
    y = np.array([[1, 0], [np.nan, 0], [0, 0], [1, 1]], dtype=np.float32)
    images = Names(["1", "1", "1", "2"])
    data = ImageDataset("d", ["a", "b"], {"train": Split(images, y)}, task="many")
    found = find_copies(data, tmp_path)
    assert found.within == ["1"]
    assert len(found.torn) == 1
    assert found.mislabelled() == ["1 image(s) have the same content as one with other labels: '1' = '1'"]


def test_the_check_counts_labels():
    data = made(200, missing=0.6)
    data.splits["train"].labels[:, 9] = 1
    found = Findings()
    verify_classes(data, found)
    said = "\n".join(found.doubts)
    assert "label(s) are unknown in most images: 'l0 (" in said
    assert "1 label(s) are absent in no image: 'l9'" in said
    assert "label(s) are in fewer than 20 images: 'l0 (" in said
    verify_counts(data, {"train": 201}, found)
    assert "fewest of 'l0'" in found.problems[0]
    row = label_counts(data, "train")[9]
    assert (row["present"], row["absent"], row["unknown"], row["prevalence"]) == (200, 0, 0, 1.0)


def test_labels_in_the_order_of_a_model():
    y = np.array([[1, 0], [0, 1]], dtype=np.float32)
    data = ImageDataset("d", ["b", "a"], {"test": Split(Names(["1", "2"]), y)}, task="many")
    moved = reorder_classes(data, ["a", "b", "c"]).splits["test"].labels
    np.testing.assert_array_equal(moved, np.array([[0, 1, np.nan], [1, 0, np.nan]], dtype=np.float32))
    with pytest.raises(UserError, match="has class 'b', which the model does not know"):
        reorder_classes(data, ["a", "c"])


def test_pictures_that_stand_for_others_are_no_copies(tmp_path: Path):
    """The same grey picture under most images of a label is none of them."""
    for i in range(12):
        paint(tmp_path / f"{i}.png", (9, 9, 9), 0 if i < 6 else i, size=6)
    y = np.array([[i < 8, i % 2] for i in range(12)], dtype=np.float32)
    from cbm.data.images import ImageFiles

    images = ImageFiles(tmp_path, [f"{i}.png" for i in range(12)])
    data = ImageDataset("d", ["a", "b"], {"train": Split(images, y)}, task="many")
    parts = complete_splits(data, tmp_path / "cache", val_fraction=0.25, test_fraction=0.25, seed=0).splits
    assert all(len(part) for part in parts.values())


def test_an_image_never_moves_when_others_are_added(tmp_path: Path):
    first = complete_splits(made(400), tmp_path, **FRACTIONS).splits
    more = made(400)
    again = made(60, seed=5).splits["train"]
    names = [*more.splits["train"].images.names, *(str(1000 + i) for i in range(60))]
    labels = np.concatenate([more.splits["train"].labels, again.labels])
    more.splits["train"] = Split(Names(names), labels)
    parts = complete_splits(more, tmp_path, **FRACTIONS).splits
    for name, part in first.items():
        assert set(part.images.names) <= set(parts[name].images.names)
    assert sum(map(len, parts.values())) == 460
    assert len(parts["test"]) == len(first["test"]) + 12


def test_labels_are_encoded_and_counted(tmp_path: Path, module, caplog: pytest.LogCaptureFixture):
    """From a table to features, and the check of it."""
    rng = np.random.default_rng(0)
    rows = ["path,split,red,big,shape"]
    for i in range(40):
        paint(tmp_path / "set" / f"{i}.png", (90, 20, 60), i, size=8)
        red = "" if i % 9 == 0 else rng.integers(2)
        rows.append(f"{i}.png,{'train' if i < 30 else 'test'},{red},{rng.integers(2)},{['round', 'long'][i % 2]}")
    (tmp_path / "set" / "images.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "set" / "columns.yaml").write_text("labels: [red, big]\nconcepts: {shape: {values: [round, long]}}\n")
    card = change_card(load_card("csv"), [f"root={tmp_path / 'set'}"])
    data = read_images(card, tmp_path / "cache")
    encoder, settings = encoder_settings("tiny_clip", None, tmp_path / "cache", workers=0)
    settings = replace(settings, shots=2, progress=False)
    with caplog.at_level("INFO"):
        taken, features = encode_splits(data, encoder, settings, ("train", "val", "test"))
    assert f"shots=2 of each of 2 labels, with and without it: {len(features.train)} images" in caplog.text
    assert features.many
    assert features.train.y.dtype == torch.float32
    assert ((features.train.y == 1).sum(dim=0) >= 2).all()
    assert [spec.name for spec in features.specs] == ["shape"]
    assert taken.task == "many"
    status, said, _ = module("datasets", "check", "csv", f"root={tmp_path / 'set'}")
    assert status == 0, said
    assert "prevalence" in said
    assert "doubt: train: 2 label(s) are in fewer than 20 images" in said
    labels = json.loads(module("datasets", "check", "csv", f"root={tmp_path / 'set'}", "--json")[1])["labels"]
    assert [row["unknown"] for row in labels if row["split"] == "train"] == [4, 0]


def test_images_that_look_alike_with_other_labels():
    y = np.array([[1, np.nan], [1, 0], [0, 0]], dtype=np.float32)
    data = ImageDataset("d", ["a", "b"], {"train": Split(Names(["1", "2", "3"]), y)}, task="many")
    x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02]]), dim=1)
    found = Findings()
    verify_likeness(data, {"train": x}, 0.99, found)
    assert "1 pair(s) look nearly the same (cosine 0.99 or more), train: '1' = '2'" in found.notes[0]
    assert "2 pair(s) look nearly the same (cosine 0.99 or more), train, with other labels: " in found.doubts[0]
