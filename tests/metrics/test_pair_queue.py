"""Questions about what a model used: what is drawn, what is kept, what the answers estimate."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cbm.concepts import Concept, ConceptBank
from cbm.data import FeatureSplit
from cbm.data.concept_answers import read_concept_answers
from cbm.data.images import ImageArray
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, TopK
from cbm.metrics.pair_queue import PairQueue
from cbm.metrics.used_concepts import used_concepts

CLASSES = ["ant", "bee", "cat", "dog"]
K, D, N = 24, 16, 400


def model(activation=None) -> ConceptBottleneck:
    g = torch.Generator().manual_seed(1)
    concepts = torch.nn.functional.normalize(torch.randn(K, D, generator=g), dim=1)
    head = LinearHead(torch.randn(len(CLASSES), K, generator=g))
    return ConceptBottleneck(concepts, head, reference=0.1 * torch.randn(K, generator=g), activation=activation)


BANK = ConceptBank("planted", "test", tuple(Concept(f"mark {k}") for k in range(K)))
MODEL = model()
X = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(2)), dim=1)
NAMES = [f"{n}.png" for n in range(N)]
SPLIT = FeatureSplit(X, torch.arange(N) % 4, NAMES)
IMAGES = ImageArray(np.zeros((N, 2, 2, 3), np.uint8), NAMES)
SHOWN = np.random.default_rng(3).random((N, K)) < np.linspace(0.2, 0.9, K)  # the planted truth


def queue(folder: Path, split: FeatureSplit = SPLIT, **settings) -> PairQueue:
    return PairQueue(folder / "labels.csv", MODEL, BANK, split, IMAGES, CLASSES, **settings)


def truly(pair) -> bool:
    return bool(SHOWN[pair.row, int(pair.concept.split()[1])])


def answer(asked: PairQueue, count: int) -> list:
    """Answer so many questions by the planted truth; returns them."""
    pairs = []
    for _ in range(count):
        pairs.append(asked.next(pairs))
    asked.answer_all((pair, truly(pair)) for pair in pairs)
    return pairs


@pytest.mark.parametrize("activation", [None, TopK(torch.zeros(K), 6)])
def test_used_concepts_speak_for_the_class_by_being_there(activation):
    chosen = model(activation)
    with torch.no_grad():
        above = chosen.activations(X) - chosen.reference
        values = chosen.contributions(X, chosen(X).argmax(dim=1))
    for row, columns in enumerate(used_concepts(chosen, X, 3)):
        good = [k for k in range(K) if above[row, k] > 0 and values[row, k] > 0]
        assert columns == sorted(good, key=lambda k: -values[row, k])[:3]


def test_the_estimate_is_near_the_planted_truth(tmp_path: Path):
    """In at least 90 % of the draws the interval holds the mean over classes of the share that is true."""
    used = used_concepts(MODEL, X, 5)
    share = np.array([SHOWN[row, columns].mean() if columns else np.nan for row, columns in enumerate(used)])
    truth = np.mean([np.nanmean(share[c::4]) for c in range(4)])
    held = 0
    for seed in range(40):
        asked = queue(tmp_path / str(seed), seed=seed)
        answer(asked, 50)
        held += asked.precision.low <= truth <= asked.precision.high
    assert held >= 36


def test_classes_in_turn_and_no_image_twice(tmp_path: Path):
    pairs = answer(queue(tmp_path), 42)
    assert len({pair.row for pair in pairs}) == 42
    assert sorted(Counter(pair.label for pair in pairs).values()) == [10, 10, 11, 11]
    used = used_concepts(MODEL, X, 5)
    assert all(int(pair.concept.split()[1]) in used[pair.row] for pair in pairs)
    assert len({used[pair.row].index(int(pair.concept.split()[1])) for pair in pairs}) == 5
    assert [pair.row for pair in pairs] != [pair.row for pair in answer(queue(tmp_path / "x", seed=1), 42)]


def test_whoever_comes_back_goes_on_where_it_ended(tmp_path: Path):
    first = answer(queue(tmp_path), 10)
    again = queue(tmp_path, seed=5)
    second = answer(again, 10)
    assert not {pair.row for pair in first} & {pair.row for pair in second}
    assert again.precision.count == 20
    whole = answer(queue(tmp_path / "whole"), 20)
    assert whole[:10] == first
    assert set(Counter(pair.label for pair in first + second).values()) == {5}


def test_a_skipped_question_is_replaced_in_its_class(tmp_path: Path):
    asked = queue(tmp_path)
    skipped = asked.next()
    asked.answer(skipped, None)
    assert asked.next().label == skipped.label
    assert asked.next().row != skipped.row
    assert (asked.precision.count, asked.precision.skipped) == (0, 1)


def test_undo(tmp_path: Path):
    asked = queue(tmp_path)
    assert asked.undo() is None
    first, second = answer(asked, 1)[0], answer(asked, 1)[0]
    assert asked.undo().path == second.path
    assert asked.next() == second
    other = queue(tmp_path)  # another session takes back the last answer of the table
    assert other.undo().path == first.path
    assert read_concept_answers(tmp_path / "labels.csv") == []
    assert asked.next() == first


def test_two_who_answer_at_once_lose_nothing(tmp_path: Path):
    one, two = queue(tmp_path), queue(tmp_path)
    shared = one.next()
    assert two.next() == shared
    one.answer(shared, True)
    two.answer(shared, False)  # too late: one question per image
    answer(two, 3)
    answer(one, 3)
    kept = read_concept_answers(tmp_path / "labels.csv")
    assert len(kept) == len({each.path for each in kept}) == 7
    assert kept[0].shown is True
    assert one.undo().path == kept[-1].path
    assert two.undo().path == kept[3].path  # its own last, not that of the other


def test_one_question_per_subject(tmp_path: Path):
    patients = FeatureSplit(X, SPLIT.y, NAMES, subjects=np.arange(N) // 40)
    asked, pairs = queue(tmp_path, patients), []
    while (pair := asked.next(pairs)) is not None:
        pairs.append(pair)
    assert len(pairs) == len({pair.row // 40 for pair in pairs}) == 10


def test_classes_that_are_chosen_and_splits_that_are_not_mixed(tmp_path: Path):
    everything = queue(tmp_path)
    answer(everything, 8)
    bees = queue(tmp_path, only=["bee"])
    assert bees.precision.count == 2
    assert {pair.label for pair in answer(bees, 5)} == {"bee"}
    test = queue(tmp_path, name="test")
    assert test.precision.count == 0
    answer(test, 2)
    assert everything.next() is not None
    assert everything.precision.count == 13
    with pytest.raises(UserError, match="no class 'beee': did you mean 'bee'"):
        queue(tmp_path, only=["beee"])
    with pytest.raises(UserError, match="--top 0"):
        queue(tmp_path, top=0)


def test_answers_of_others_are_not_mixed_in(tmp_path: Path):
    answer(queue(tmp_path), 2)
    with pytest.raises(UserError, match="has answers by people, not by model:tiny: choose another --out"):
        queue(tmp_path, by="model:tiny")
    table = tmp_path / "labels.csv"
    text = table.read_text()
    table.write_text(text.replace("mark", "marc"))
    with pytest.raises(UserError, match=r"no concept 'marc \d+' in this model: did you mean 'mark"):
        queue(tmp_path)
    table.write_text(text.replace(",ant,", ",aunt,").replace(",bee,", ",bees,").replace(",cat,", ",cats,"))
    with pytest.raises(UserError, match="no class '.*' in this model: did you mean"):
        queue(tmp_path)
