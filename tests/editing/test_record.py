"""Edits say where they come from."""

import pytest
import torch
from torch import nn

from cbm.editing import Edit, EditSet, load_edits
from cbm.editing.record import Record, model_key
from cbm.errors import UserError

FULL = Record("one", "0123", "birds/val", 80, 0.5, 0.625, 0.01)


def test_a_record_is_kept_with_the_edits(tmp_path):
    edits = EditSet((Edit("remove", "sky"),), FULL)
    edits.save(tmp_path / "edits.yaml")
    again = load_edits(tmp_path / "edits.yaml")
    assert again == edits
    assert again.record == FULL
    assert again.renamed({"sky": "air"}).record == FULL
    assert (again + Edit("remove", "sea")).record is None  # other edits than those that were measured
    EditSet((Edit("remove", "sky"),)).save(tmp_path / "plain.yaml")
    assert (tmp_path / "plain.yaml").read_text().startswith("- op: remove")  # as always, without a record
    assert load_edits(tmp_path / "plain.yaml").record is None


@pytest.mark.parametrize(("entry", "message"), [
    ("record: 3\nedits: []", "record: expected a mapping, got '3'"),
    ("record: {picturs: 3}\nedits: []", "unknown key 'picturs': did you mean 'pictures'"),
    ("record: {pictures: many}\nedits: []", "'pictures' is 'many'; expected a finite number"),
    ("record: {p: .nan}\nedits: []", "'p' is 'nan'; expected a finite number"),
    ("record: {run: 3}\nedits: []", "'run' is '3'; expected text"),
    ("record: {}\nedits: 3", "is no list of edits"),
    ("edits: []", "is no list of edits"),
])  # fmt: skip
def test_a_record_that_is_none(tmp_path, entry: str, message: str):
    (tmp_path / "edits.yaml").write_text(entry)
    with pytest.raises(UserError, match=message):
        load_edits(tmp_path / "edits.yaml")


def test_what_a_reader_is_warned_of():
    assert FULL.warnings("0123", "birds/test") == []
    assert "another model, that of 'one'" in FULL.warnings("other", "birds/test")[0]
    assert "chosen on 80 of these very images (birds/val)" in FULL.warnings("0123", "birds/val")[0]
    assert len(FULL.warnings("other", "birds/val")) == 2
    assert Record().warnings("0123", "birds/val") == []
    assert str(FULL) == "chosen on birds/val (80 pictures): balanced accuracy 0.500 -> 0.625, p = 0.01"
    assert str(Record()) == "chosen on images that were not recorded"


def test_a_model_is_known_by_its_numbers_texts_and_classes():
    model = nn.Linear(3, 2)
    key = model_key(model, ["a", "b"], ["c"])
    assert key == model_key(model, ["a", "b"], ["c"])
    assert len({key, model_key(model, ["a"], ["b", "c"]), model_key(model, ["b", "a"], ["c"])}) == 3
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    assert model_key(model, ["a", "b"], ["c"]) != key
