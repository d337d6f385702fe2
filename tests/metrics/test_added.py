"""What training added to a class, in words: planted additions, invariances, and a slow grouping."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.metrics.added import ALIKE, added_by_training, first_added


def planted(seed: int, classes: int = 6, phrases: int = 80, dim: int = 48):
    """Class vectors that are class texts and, for class c, phrase 10 + c of the vocabulary."""
    draw = torch.Generator().manual_seed(seed)
    words = normalize(torch.randn(phrases, dim, generator=draw) + 1.0, dim=1)  # all texts share a vector
    known = normalize(torch.randn(classes, dim, generator=draw) + 1.0, dim=1)
    return 3 * known + 4 * words[10 : 10 + classes], known, words


@pytest.mark.parametrize("seed", range(5))
def test_what_was_added_comes_first_and_what_was_known_does_not(seed):
    vectors, known, words = planted(seed)
    added = added_by_training(vectors, known, words)
    assert added.argmax(dim=1).tolist() == list(range(10, 16))
    first = first_added(added, words, 6)
    assert {(each.phrase, next(iter(each.classes))) for each in first} == {(10 + c, c) for c in range(6)}
    vectors = 3 * known + 4 * known.roll(1, dims=0)  # of another class's text: that is added too
    same = added_by_training(3 * known, known, words)
    assert float(same.abs().max()) < 1e-5
    assert float(added_by_training(vectors, known, words).abs().max()) > 1


def test_the_score_against_a_loop_and_its_invariances():
    vectors, known, words = (each.double() for each in planted(0))
    added = added_by_training(vectors, known, words)

    def said(matrix, c):
        rows = [float(matrix[c] @ t - min(matrix[o] @ t for o in range(len(matrix)))) for t in words]
        mean = sum(rows) / len(rows)
        sd = (sum((row - mean) ** 2 for row in rows) / (len(rows) - 1)) ** 0.5
        return torch.tensor([(row - mean) / sd for row in rows], dtype=torch.float64)

    for c in (0, 5):
        torch.testing.assert_close(added[c], said(vectors, c) - said(known, c))
    common = torch.randn(48, dtype=torch.float64)  # one vector for all classes changes no decision
    torch.testing.assert_close(added_by_training(7 * vectors + common, known, words), added)


def test_phrases_that_mean_the_same_stand_together_under_the_most_added():
    vectors, known, words = planted(1)
    words = torch.cat([words, normalize(words[12:13] + 0.01 * torch.randn(1, 48), dim=1)])
    added = added_by_training(vectors, known, words)
    found = first_added(added, words, 6)
    (pair,) = [each for each in found if each.alike]
    assert {pair.phrase, *pair.alike} == {12, 80}
    assert pair.classes[2] == float(added[2, [12, 80]].max())
    centred = normalize(words - words.mean(dim=0), dim=1)[[each.phrase for each in found]]
    assert float((centred @ centred.T).fill_diagonal_(0).max()) < ALIKE
    amounts = [max(each.classes.values()) for each in found]
    assert amounts == sorted(amounts, reverse=True)


def test_nothing_added_is_nothing_shown():
    assert first_added(torch.zeros(2, 3), torch.eye(3), 20) == []
    assert len(first_added(torch.tensor([[1.0, -1.0, 0.0]]), torch.eye(3), 20)) == 1
    with pytest.raises(ValueError, match="expected two of each or more"):
        added_by_training(torch.eye(3), torch.eye(3), torch.eye(3)[:1])
