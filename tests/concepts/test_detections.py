"""Tables of a detector: what they say, what they leave open, and what is wrong with them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.detections import detected_labels, looked_for, owned_concepts, read_detections
from cbm.data import FeatureData, FeatureSplit
from cbm.errors import UserError

BANK = ConceptBank("b", "b", (Concept("red bill", ("crow",)), Concept("long tail", ("owl",)), Concept("sky")))
NONE = math.nan


def data() -> FeatureData:
    def split(*names: str) -> FeatureSplit:
        return FeatureSplit(torch.ones(len(names), 2), torch.arange(len(names)) % 2, list(names))

    splits = {"train": split("a.png", "b.png"), "val": split("c.png"), "test": split("d.png")}
    return FeatureData(splits, ["crow", "owl"], skipped={"train": ["broken.png"]}, undrawn=frozenset(["e.png"]))


def read(folder: Path, text: str):
    (folder / "d.csv").write_text(text)
    return read_detections(folder / "d.csv", BANK, data())


def labels(found, name: str, unasked: str, threshold: float = 0.15) -> list[list[float]]:
    split = data().splits[name]
    owned = owned_concepts(split, BANK.owners(["crow", "owl"]))
    return detected_labels(found, name, owned, threshold=threshold, unasked=unasked).tolist()


def same(found: list[list[float]], expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_a_table_of_detections_leaves_open_what_was_looked_for(tmp_path):
    """Of crow a.png the red bill and the sky count as looked for; b.png has no line, so nobody looked at it."""
    found = read(
        tmp_path,
        "path,concept,score,x0,y0,x1,y1\na.png,the Red bill.,.2,0,0,.5,.5\na.png,red bill,.4,.5,.5,1,1\n"
        "a.png,long tail,.1,,,,\nd.png,,,,,,\nc.png,sky,0.9,,,,\nbroken.png,sky,1,,,,\ne.png,sky,1,,,,\n",
    )
    assert not found.says_asked
    assert found.scores["train"][0, 0] == pytest.approx(0.4)  # the best of two boxes
    same(labels(found, "train", "unknown"), [[1, 0, 0], [NONE, NONE, NONE]])
    same(labels(found, "train", "absent"), [[1, 0, 0], [0, 0, 0]])
    same(labels(found, "train", "unknown", threshold=0.4), [[0, 0, 0], [NONE, NONE, NONE]])  # above, not at
    same(labels(found, "val", "unknown"), [[0, NONE, 1]])
    assert found.listed["train"].tolist() == [True, False]
    same(labels(found, "test", "unknown"), [[0, NONE, 0]])  # looked at, nothing found
    owned = owned_concepts(data().train, BANK.owners(["crow", "owl"]))
    assert owned.tolist() == [[True, False, True], [False, True, True]]
    assert looked_for(found, "train", owned).tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(
    "text",
    [
        "path,concept,score,asked\na.png,red bill,.8,1\na.png,long tail,,1\na.png,sky,,0\n",
        "path,concept,score,asked\na.png,red bill,.8,\na.png,long tail,,\n",
        "path,red bill,long tail,sky\na.png,.8,0,\n",
        "path;red bill;long tail\na.png;0.8;0.01\n",
    ],
)
def test_a_table_that_says_what_was_looked_for(tmp_path, text):
    found = read(tmp_path, text)
    assert found.says_asked
    same(labels(found, "train", "unknown"), [[1, 0, NONE], [NONE, NONE, NONE]])
    same(labels(found, "train", "absent"), [[1, 0, 0], [0, 0, 0]])


def test_labels_own_what_their_concepts_are_written_for():
    split = FeatureSplit(torch.ones(3, 2), torch.tensor([[1.0, 1.0], [0.0, 1.0], [NONE, 0.0]]), ["a", "b", "c"])
    owned = owned_concepts(split, BANK.owners(["crow", "owl"]))
    assert owned.tolist() == [[True, True, True], [False, True, True], [False, False, True]]


def test_a_picture_in_two_splits_is_labelled_in_both(tmp_path):
    both = data()
    both = replace(both, splits={**both.splits, "val": both.train})
    (tmp_path / "d.csv").write_text("path,sky\na.png,1\n")
    found = read_detections(tmp_path / "d.csv", BANK, both)
    same(found.scores["train"].tolist(), found.scores["val"].tolist())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,concept,score\na.png,sky,1\n", "has no column 'path'"),
        ("path\na.png\n", "has no column 'path' beside others"),
        ("path,concept,score,colour\na.png,sky,1,red\n", "has a column 'colour'"),
        ("path,concept,score\na.jpg,sky,1\n", "line 2: no picture 'a.jpg' in this data set: did you mean 'a.png'"),
        ("path,concept,score\na.png,red bil,1\n", "no concept 'red bil' in bank 'b': did you mean 'red bill'"),
        ("path,skies\na.png,1\n", "no concept 'skies' in bank 'b': did you mean 'sky'"),
        ("path,concept,score\na.png,sky,1.2\n", "line 2: score is '1.2'; expected a number from 0 to 1"),
        ("path,concept,score\na.png,sky,nan\n", "score is 'nan'"),
        ("path,sky\na.png,high\n", "score of 'sky' is 'high'"),
        ("path,concept,score,x0,y0,x1,y1\na.png,sky,1,0,0,20,30\n", "x1 of the box is '20'; expected a number from 0"),
        ("path,concept,score,x0,y0,x1,y1\na.png,sky,1,.5,0,.2,1\n", "expected a box x0,y0,x1,y1 with x0 < x1"),
        ("path,concept,score,x0,y0\na.png,sky,1,.5,0\n", "expected a box x0,y0,x1,y1"),
        ("path,concept,score,asked\na.png,sky,1,0\n", "asked is 0, and there is a score '1'"),
        ("path,concept,score,asked\na.png,sky,1,maybe\n", "asked is 'maybe'; expected 1 or 0"),
        ("path,concept,score\na.png,,1\n", "a score without a concept"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert message in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_detections(tmp_path / "none.csv", BANK, data())
