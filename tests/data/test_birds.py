import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cbm.data import birds
from cbm.data.birds import ATTRIBUTES, CONCEPTS, GROUPS, SPECIES, SPECIES_NAMES
from cbm.errors import UserError

BANK = Path(__file__).parents[2] / "concepts" / "birds.json"
SMALL = {"n_train": 2, "n_val": 1, "n_test": 1, "size": 32}


def column(group: str) -> int:
    return GROUPS.index(group)


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint * np.log(np.where(joint > 0, joint, 1) / np.where(joint > 0, independent, 1))).sum())


def test_tables():
    assert len(GROUPS) >= 12
    assert len(CONCEPTS) == len(set(CONCEPTS)) >= 40
    assert len(SPECIES) == 20
    assert all(set(row) == set(GROUPS) for row in SPECIES.values())
    assert all(row[group] in ATTRIBUTES[group] for row in SPECIES.values() for group in GROUPS)
    assert len({tuple(row.values())[:-1] for row in SPECIES.values()}) == 20
    words = {word for phrase in CONCEPTS for word in phrase.replace("-", " ").split()} | {"bird", "feather"}
    for name in SPECIES_NAMES:  # a name must not give an attribute away
        assert not [word for word in words - {"in", "a"} if word in name.lower()]


def test_some_species_are_hard_to_tell_apart():
    typical = birds.typical_attributes()[:, :-1]  # without the habitat
    differences = (typical[:, None] != typical[None]).sum(-1)[np.triu_indices(20, 1)]
    assert differences.min() >= 2
    assert (differences <= 3).sum() >= 8


def test_same_seed_same_bytes_whatever_the_workers(tmp_path):
    for name, workers in (("one", 1), ("three", 3)):
        birds.write_birds(tmp_path / name, seed=5, workers=workers, **SMALL)
    birds.write_birds(tmp_path / "other", seed=6, **SMALL)
    one, three, other = (digest(tmp_path / name) for name in ("one", "three", "other"))
    assert one == three
    assert len(one) == 20 * 4 + 2
    pictures = [path for path in one if path.endswith(".png")]
    assert not {one[path] for path in pictures} & {other[path] for path in pictures}


def test_render_does_not_depend_on_the_batch():
    attributes, _, keys = birds.sample("birds", "val", 2, seed=3)
    together = birds.render(attributes, keys, size=32)
    alone = np.concatenate([birds.render(attributes[i : i + 1], keys[i : i + 1], size=32) for i in range(len(keys))])
    np.testing.assert_array_equal(together, alone)
    assert together.shape == (40, 32, 32, 3)
    assert together.dtype == np.uint8


def test_first_birds_stay_when_more_are_drawn():
    few, _, few_keys = birds.sample(n_per_class=2)
    many, labels, many_keys = birds.sample(n_per_class=5)
    first = np.concatenate([np.flatnonzero(labels == label)[:2] for label in range(20)])
    np.testing.assert_array_equal(few, many[first])
    np.testing.assert_array_equal(few_keys, many_keys[first])


def test_files(tmp_path):
    root = tmp_path / "birds"
    birds.write_birds(root, seed=1, **SMALL)
    with (root / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "split", *CONCEPTS]
    assert [sum(row["split"] == split for row in rows) for split in birds.SPLITS] == [40, 20, 20]
    assert {row["label"] for row in rows} == set(SPECIES_NAMES)
    assert {row["path"] for row in rows} == {str(p.relative_to(root)) for p in root.rglob("*.png")}
    groups = json.loads((root / "groups.json").read_text())
    assert [phrase for phrases in groups.values() for phrase in phrases] == list(CONCEPTS)
    for row in rows:
        assert all(sum(int(row[phrase]) for phrase in phrases) == 1 for phrases in groups.values())
    # the columns are the attributes that the pictures were drawn from
    attributes, labels, _ = birds.sample("birds", "test", 1, seed=1)
    test = [row for row in rows if row["split"] == "test"]
    np.testing.assert_array_equal([[int(row[c]) for c in CONCEPTS] for row in test], birds.concepts_of(attributes))
    assert [row["label"] for row in test] == [SPECIES_NAMES[label] for label in labels]


def test_concepts_are_one_hot_in_every_group():
    attributes = birds.sample(n_per_class=3)[0]
    truth = birds.concepts_of(attributes)
    first = 0
    for g, values in enumerate(ATTRIBUTES.values()):
        np.testing.assert_array_equal(truth[:, first : first + len(values)].argmax(1), attributes[:, g])
        first += len(values)
    assert (truth.sum(1) == len(GROUPS)).all()


def test_individuals_are_mostly_typical():
    attributes, labels, _ = birds.sample(n_per_class=300)
    typical = birds.typical_attributes()[labels]
    for group in GROUPS[:-1]:
        share = (attributes == typical)[:, column(group)].mean()
        assert 0.67 < share < 0.84, group


def test_belly_follows_breast():
    attributes, labels, _ = birds.sample(n_per_class=300)
    typical = birds.typical_attributes()[labels]
    breast, belly = column("breast colour"), column("belly colour")
    alike = typical[:, breast] == typical[:, belly]
    unusual = alike & (attributes[:, breast] != typical[:, breast])
    assert 0.85 < (attributes[:, breast] == attributes[:, belly])[unusual].mean() < 0.95
    assert (attributes[:, breast] == attributes[:, belly]).mean() > 0.6
    random = birds.random_birds(300, size=8)[1]
    assert (random[:, breast] == random[:, belly]).mean() < 0.3


@pytest.mark.parametrize(
    ("variant", "split", "follows"),
    [
        ("birds", "train", False),
        ("birds", "test", False),
        ("birds_spurious", "train", True),
        ("birds_spurious", "val", True),
        ("birds_spurious", "test", False),
        ("birds_shift", "test", False),
    ],
)
def test_habitat_follows_species_only_where_it_should(variant, split, follows):
    attributes, labels, _ = birds.sample(variant, split, 300)
    habitat = attributes[:, column("habitat")]
    at_home = (habitat == birds.typical_attributes()[labels, column("habitat")]).mean()
    assert at_home == pytest.approx(0.95 if follows else 1 / 6, abs=0.02)
    assert (mutual_information(labels, habitat) > 1.0) == follows
    clean = birds.sample("birds", split, 300)[0]
    np.testing.assert_array_equal(attributes[:, :-1], clean[:, :-1])  # nothing but the habitat differs


def test_the_shifted_camera_is_in_the_test_split_only(tmp_path):
    birds.write_birds(tmp_path / "clean", **SMALL)
    birds.write_birds(tmp_path / "shift", variant="birds_shift", **SMALL)
    clean, shift = digest(tmp_path / "clean"), digest(tmp_path / "shift")
    for path in clean:
        assert (clean[path] == shift[path]) == ("images/test" not in path), path
    attributes, _, keys = birds.sample("birds", "test", 2)
    plain = birds.render(attributes, keys).astype(float)
    other = birds.render(attributes, keys, shifted=True).astype(float)
    assert (other[..., 0] - other[..., 2]).mean() > (plain[..., 0] - plain[..., 2]).mean() + 20  # a warm cast
    assert np.abs(np.diff(other, axis=2)).mean() < np.abs(np.diff(plain, axis=2)).mean()  # blurred


@pytest.mark.parametrize("group", GROUPS)
def test_every_attribute_shows(group):
    """Changing one attribute, and nothing else, changes the picture by more than the grain."""
    attributes = birds.random_birds(8, seed=2, size=8)[1]
    first, last = attributes.copy(), attributes.copy()
    first[:, column(group)], last[:, column(group)] = 0, len(ATTRIBUTES[group]) - 1
    difference = np.abs(birds.render(first, 4).astype(int) - birds.render(last, 4).astype(int)).max(-1)  # [8, 64, 64]
    assert ((difference > 40).sum((1, 2)) >= 4).all()


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(birds, "render", fail)
    with pytest.raises(RuntimeError, match="disk"):
        birds.write_birds(tmp_path / "birds", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="birds_spurious"):
        birds.write_birds(tmp_path / "birds", variant="bird_spurious")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").touch()
    with pytest.raises(UserError, match="exists"):
        birds.write_birds(tmp_path / "mine")
    with pytest.raises(UserError, match="split"):
        birds.sample(split="tests")


def test_bank_agrees_with_the_species():
    bank = json.loads(BANK.read_text(encoding="utf-8"))
    assert list(bank) == list(SPECIES_NAMES)
    for name, phrases in bank.items():
        assert 25 <= len(phrases) <= 30
        assert len(set(phrases)) == len(phrases)
        assert not [p for p in phrases for species in SPECIES_NAMES if species.lower() in p.lower()]
        true = {ATTRIBUTES[group][value] for group, value in SPECIES[name].items()}
        verbatim = set(phrases) & set(CONCEPTS)
        assert verbatim <= true, name
        assert len(verbatim) >= 13, name
