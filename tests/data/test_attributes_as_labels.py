"""Sets that are always there, with attributes as labels: paper birds, and WBCAtt's cells."""

from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT

from cbm.config import load_card
from cbm.data import read_dataset
from cbm.data.birds import CONCEPTS, LABEL_RULES, SPECIES, concepts_of, labels_of, sample
from cbm.errors import UserError

WBCATT = PROJECT.parent / "shared" / "data" / "wbcatt"
FEW = {"n_train": 6, "n_val": 2, "n_test": 2, "size": 16}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_birds_have_each_label_often_enough(split: str):
    y = labels_of(concepts_of(sample("birds", split, 100, 0)[0]))
    assert y.shape == (2000, len(LABEL_RULES))
    assert ((y.mean(axis=0) > 0.145) & (y.mean(axis=0) < 0.5)).all()


def test_labels_of_birds_are_rules_over_their_concepts(tmp_path: Path):
    species = read_dataset("birds", "birds", tmp_path, FEW)
    birds = read_dataset("birds", "birds", tmp_path, {**FEW, "task": "attributes"})
    assert (birds.task, birds.classes) == ("many", list(LABEL_RULES))
    assert (birds.concept_names, birds.concept_groups) == (species.concept_names, species.concept_groups)
    train = birds.splits["train"]
    np.testing.assert_array_equal(train.concepts, species.splits["train"].concepts)
    assert train.labels.dtype == np.float32
    shown = {name: train.concepts[:, k] == 1 for k, name in enumerate(birds.concept_names)}
    for column, (how, concepts) in enumerate(LABEL_RULES.values()):
        of = np.stack([shown[concept] for concept in concepts])
        np.testing.assert_array_equal(train.labels[:, column] == 1, of.any(axis=0) if how == "any" else of.all(axis=0))
    assert "{}" in birds.negative_template
    few = read_dataset("birds", "birds", tmp_path, {**FEW, "task": "attributes", "drop": ["showy head"]})
    assert len(few.classes) == 5
    for args, message in (({"task": "attribute"}, "did you mean 'attributes'"), ({"drop": ["x"]}, "args.task=attr")):
        with pytest.raises(UserError, match=message):
            read_dataset("birds", "birds", tmp_path, {**FEW, **args})


def test_the_documentation_names_every_rule():
    text = (PROJECT / "docs/datasets.md").read_text()
    for label, (how, concepts) in LABEL_RULES.items():
        assert f"| {label} | {(' or ' if how == 'any' else ' and ').join(concepts)} |" in text
    assert all(concept in CONCEPTS for _, concepts in LABEL_RULES.values() for concept in concepts)


def test_habitats_are_groups_of_the_spurious_birds(tmp_path: Path):
    birds = read_dataset("birds", "birds_spurious", tmp_path, {**FEW, "variant": "birds_spurious"})
    test = birds.splits["test"]
    first = birds.concept_names.index(birds.group_names["habitat"][0])
    np.testing.assert_array_equal(test.groups["habitat"] == 0, test.concepts[:, first] == 1)
    assert birds.task == "one"
    homes = np.array([SPECIES[species]["habitat"] for species in birds.classes])[test.labels]
    there = np.array([birds.group_names["habitat"][value].split()[0] for value in test.groups["habitat"]])
    np.testing.assert_array_equal(test.groups["place"] == birds.group_names["place"].index("at home"), homes == there)
    train = birds.splits["train"]
    assert (train.groups["place"] == 0).mean() > 0.8  # 95 % in training; in test one of six habitats is home
    assert (test.groups["place"] == 0).mean() < 0.5


def cells(root: Path) -> Path:
    """Eight cells a split: two attributes of two values, one of three."""
    lines = ["img_name,label,path,cell_size,granularity,granule_colour"]
    for i in range(8):
        (root / f"{i}.jpg").write_bytes(b"")
        colour = ["pink", "red", "nil"][i % 3]
        lines.append(f"{i},{['A', 'B'][i % 2]},{i}.jpg,{['big', 'small'][i % 2]},{['yes', 'no'][i // 4]},{colour}")
    for split in ("train", "val", "test"):
        (root / f"pbc_attr_v1_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def test_attributes_of_cells_are_labels(tmp_path: Path):
    data = read_dataset("wbcatt", "w", cells(tmp_path), {"task": "attributes"})
    assert data.classes == ["cell size: small", "granularity: no"]
    assert data.splits["train"].labels.tolist() == [[i % 2, i // 4] for i in range(8)]
    assert data.concept_names == ["granule colour: nil", "granule colour: pink", "granule colour: red"]
    (spec,) = data.specs
    assert (spec.name, spec.kind, spec.values) == ("granule colour", "categorical", ["nil", "pink", "red"])
    assert list(data.concept_groups) == ["granule colour"]
    data = read_dataset("wbcatt", "w", tmp_path, {"labels": ["granule colour: pink", "granularity"]})
    assert data.classes == ["granule colour: pink", "granularity: no"]
    assert data.concept_names == ["cell size: big", "cell size: small"]
    plain = read_dataset("wbcatt", "w", tmp_path, {})
    assert (plain.task, plain.classes, plain.specs) == ("one", ["A", "B"], [])
    shifted = read_dataset("wbcatt_shift", "w", tmp_path, {"task": "attributes"}, to_train=False)
    assert shifted.task == "many"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"labels": ["granule colour"]}, "no such attribute; name a value .granule colour: nil, "),
        ({"labels": ["granule colour: pnk"]}, "did you mean 'granule colour: pink'"),
        ({"labels": ["cell size", "granularity", "granule colour: red"]}, "none is left as a concept"),
        ({"task": "attribute"}, "did you mean 'attributes'"),
    ],
)
def test_labels_that_cells_do_not_have(tmp_path: Path, args: dict, message: str):
    with pytest.raises(UserError, match=message):
        read_dataset("wbcatt", "w", cells(tmp_path), args)


@pytest.mark.skipif(not WBCATT.is_dir(), reason="needs WBCAtt")
def test_wbcatt_as_published():
    data = read_dataset(load_card("wbcatt").reader, "wbcatt", WBCATT, {"task": "attributes"})
    assert len(data.classes) == 7
    assert [spec.name for spec in data.specs] == ["nucleus shape", "cytoplasm colour", "granule type", "granule colour"]
    assert len(data.concept_names) == 17
    share = data.splits["train"].labels.mean(axis=0)
    assert ((share > 0.05) & (share < 0.5)).all()
