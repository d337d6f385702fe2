"""Pictures that look like words, or like another picture."""

import pytest
import torch
from explored_run import explored
from torch.nn.functional import normalize

from cbm.app.filters import Filter, find_rows
from cbm.app.search import by_likeness, by_words, parts_of
from cbm.errors import UserError
from cbm.metrics.multilabel import auroc


def label(text: str) -> torch.Tensor:
    explorer = explored()
    return explorer.split.concepts[:, explorer.data.concept_names.index(text)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red bird", (["red bird"], [])),
        ("a red bird -water", (["a red bird"], ["water"])),
        ('-"blue sky" a forked-tail', (["a forked-tail"], ["blue sky"])),
        ("- grass", ([], ["grass"])),
        ("  ", ([], [])),
    ],
)
def test_words_after_a_minus_are_not_wanted(words: str, expected: tuple):
    assert parts_of(words) == expected


def test_pictures_that_show_it_come_first():
    """What nobody trained for: the encoder's own reading of words that the labels say, better than chance."""
    explorer = explored()
    names = [name for name in explorer.data.concept_names if 5 <= float(label(name).sum()) <= 100][:12]
    areas = [float(auroc(by_words(explorer, name)[:, None], label(name)[:, None])[0]) for name in names]
    assert sum(areas) / len(areas) > 0.75


def test_a_minus_turns_the_order_around():
    explorer = explored()
    wanted, unwanted = by_words(explorer, '-"yellow belly"'), by_words(explorer, "yellow belly")
    assert torch.allclose(wanted, -unwanted, atol=1e-5)
    both = by_words(explorer, 'red crown -"yellow belly"')
    assert torch.allclose(both, by_words(explorer, "red crown") - unwanted, atol=1e-5)


def test_the_picture_itself_is_most_like_it():
    explorer = explored()
    x = explorer.split.x
    away = normalize(x - x.mean(dim=0), dim=1)
    for row in (0, 33):
        assert torch.allclose(by_likeness(explorer, row), away @ away[row], atol=1e-6)
        assert int(find_rows(explorer, Filter(like=row))[0]) == row
        same = (explorer.split.y == explorer.split.y[row]).float()
        nearest = find_rows(explorer, Filter(like=row))[1:6]
        assert float(same[nearest].mean()) > 2 / len(explorer.classes)


def test_a_filter_narrows_and_the_words_order():
    explorer = explored()
    name = explorer.classes[2]
    rows = find_rows(explorer, Filter(of=name, words="yellow belly"))
    assert sorted(rows.tolist()) == (explorer.split.y == 2).nonzero()[:, 0].tolist()
    score = by_words(explorer, "yellow belly")[rows]
    assert bool((score[:-1] >= score[1:]).all())


def test_an_encoder_that_reads_no_text_lets_concepts_answer(monkeypatch: pytest.MonkeyPatch):
    explorer = explored()
    monkeypatch.setattr(type(explorer.model), "has_text", property(lambda self: False))
    text = explorer.bank.texts[0]
    scores = explorer.bottleneck.scores(explorer.split.x)
    words = text.split()
    columns = [k for k, each in enumerate(explorer.bank.texts) if all(f" {word}" in f" {each}" for word in words)]
    found = by_words(explorer, text)
    expected = ((scores - scores.mean(dim=0)) / scores.std(dim=0))[:, columns[:8]].mean(dim=1)
    assert torch.allclose(found, expected, atol=1e-4)
    with pytest.raises(UserError, match="no concept is called 'zebra crossing'"):
        by_words(explorer, "zebra crossing")
