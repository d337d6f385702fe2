import resource

import pytest
import torch
from torch.nn.functional import normalize

from cbm.concepts import Concept, ConceptBank
from cbm.concepts.filters import (
    drop_long,
    drop_near_class_names,
    drop_near_duplicates,
    drop_unseen,
    text_similarity,
    top_activation,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_bank(m, embeddings=None, seed=0):
    """Phrases in no alphabetical order, owned by one or two of five classes."""
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed)).tolist()
    concepts = tuple(
        Concept(f"phrase {order[i]:05d}", tuple(dict.fromkeys((f"class {i % 5}", f"class {i % 3}")))) for i in range(m)
    )
    return ConceptBank("b", "b.json", concepts, "e" if embeddings is not None else None, embeddings)


def clustered(m, e=16, groups=12, spread=0.25, seed=0):
    """Embeddings with a large common vector and groups of similar phrases, so that duplicates come in chains."""
    centres = normal(groups, e, seed=seed)
    member = torch.randint(groups, (m,), generator=torch.Generator().manual_seed(seed))
    return normalize(centres[member] + spread * normal(m, e, seed=seed + 1) + 2.0, dim=1)


def slow_similarity(texts, others, center):
    def unit(v):
        return [a / sum(b * b for b in v) ** 0.5 for a in v]

    a, b = ([unit([u - c for u, c in zip(unit(row), center)]) for row in rows.tolist()] for rows in (texts, others))
    return [[sum(x * y for x, y in zip(row, other)) for other in b] for row in a]


def slow_duplicates(texts, embeddings, cutoff, center):
    """The double loop: loser to the phrase that it lost to."""
    near = slow_similarity(embeddings, embeddings, center)
    raw = slow_similarity(embeddings, embeddings, [0.0] * embeddings.shape[1])
    order = sorted(range(len(texts)), key=texts.__getitem__)
    lost = {}
    for a, i in enumerate(order):
        for j in order[a + 1 :]:
            if near[i][j] >= cutoff and i not in lost and j not in lost:
                if sum(raw[i]) < sum(raw[j]):
                    lost[i] = j
                else:
                    lost[j] = i
    return lost


def nothing_is_lost(before, after):
    kept, dropped = after.texts, [d.text for d in after.dropped[len(before.dropped) :]]
    assert sorted(kept + dropped) == sorted(before.texts)
    assert all(d.reason for d in after.dropped)
    assert after.texts == [text for text in before.texts if text in set(kept)]
    if before.embeddings is not None:
        columns = [before.index(text) for text in kept]
        assert torch.equal(after.directions(), before.embeddings[columns])
        assert after.encoder == before.encoder
    else:
        assert after.embeddings is None


def test_long_phrases():
    bank = ConceptBank("b", "b", (Concept("a" * 30), Concept("b" * 31), Concept("c")))
    short = drop_long(bank)
    assert short.texts == ["a" * 30, "c"]
    assert short.dropped[0].reason == "longer than 30 characters"
    assert drop_long(short).texts == short.texts


@pytest.mark.parametrize("centred", [True, False])
def test_similarity_equals_the_slow_reference(centred):
    texts, others = 3 * clustered(20), clustered(6, seed=5)
    center = torch.cat([normalize(texts, dim=1), others]).mean(0) if centred else torch.zeros(16)
    expected = torch.tensor(slow_similarity(texts, others, center.tolist()))
    torch.testing.assert_close(text_similarity(texts, others, centred=centred), expected, rtol=0, atol=1e-5)
    given = text_similarity(texts, others, center=center)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_a_common_vector_changes_only_raw_similarity():
    texts, far = normalize(normal(40, 64), dim=1), 3 * normalize(normal(1, 64, seed=1), dim=1)
    unrelated = ~torch.eye(40, dtype=torch.bool)
    assert float(text_similarity(texts + far, texts + far, centred=False)[unrelated].min()) > 0.7
    assert float(text_similarity(texts + far, texts + far)[unrelated].abs().mean()) < 0.2


@pytest.mark.parametrize("centred", [True, False])
def test_near_class_names_equal_the_double_loop(centred):
    embeddings, names = clustered(600), clustered(4, seed=0)
    bank, classes = make_bank(600, embeddings), ["ant", "bee", "cat", "dog"]
    cutoff = 0.8 if centred else 0.97
    center = torch.cat([embeddings, names]).mean(0) if centred else torch.zeros(16)
    similarity = slow_similarity(embeddings, names, center.tolist())
    kept = drop_near_class_names(bank, embeddings, names, classes, cutoff, centred=centred)
    expected = [text for text, row in zip(bank.texts, similarity) if max(row) < cutoff]
    assert 0 < len(expected) < 600
    assert kept.texts == expected
    nothing_is_lost(bank, kept)
    first = bank.index(kept.dropped[0].text)
    nearest = classes[max(range(4), key=similarity[first].__getitem__)]
    assert f"near the class name '{nearest}' (similarity " in kept.dropped[0].reason


def test_a_phrase_at_its_class_position_is_no_exception():
    """The published filter spares concept i where it meets class i."""
    names = torch.eye(4)[:3]
    embeddings = torch.cat([names, torch.eye(4)[3:]])
    bank = make_bank(4, embeddings)
    kept = drop_near_class_names(bank, embeddings, names, ["ant", "bee", "cat"], centred=False)
    assert kept.texts == [bank.texts[3]]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [512, 7])
def test_near_duplicates_equal_the_double_loop(centred, seed, rows, monkeypatch):
    monkeypatch.setattr("cbm.concepts.filters._ROWS", rows)
    embeddings = clustered(120, seed=seed)
    bank, cutoff = make_bank(120, embeddings, seed), 0.9 if centred else 0.985
    center = embeddings.mean(0) if centred else torch.zeros(16)
    lost = slow_duplicates(bank.texts, embeddings, cutoff, center.tolist())
    assert 10 < len(lost) < 110
    kept = drop_near_duplicates(bank, embeddings, cutoff, centred=centred)
    assert kept.texts == [text for k, text in enumerate(bank.texts) if k not in lost]
    nothing_is_lost(bank, kept)

    owners = {k: set(concept.classes) for k, concept in enumerate(bank.concepts)}
    for k in lost:
        winner = lost[k]
        while winner in lost:
            winner = lost[winner]
        owners[winner] |= set(bank.concepts[k].classes)
        dropped = next(d for d in kept.dropped if d.text == bank.texts[k])
        assert f"'{bank.texts[winner]}'" in dropped.reason
        assert dropped.text in kept.concepts[kept.index(bank.texts[winner])].provenance["merged"]
    for k in set(range(120)) - set(lost):
        assert set(kept.concepts[kept.index(bank.texts[k])].classes) == owners[k]


def test_the_more_generic_of_a_pair_stays_with_both_owners():
    embeddings = normalize(torch.tensor([[1.0, 0.02], [1.0, 0.2], [0.0, 1.0]]), dim=1)
    concepts = (Concept("a red cap", ("x",)), Concept("red cap", ("y",), provenance={"source": "s"}), Concept("z"))
    kept = drop_near_duplicates(ConceptBank("b", "b", concepts), embeddings, centred=False)
    assert kept.texts == ["red cap", "z"]
    assert kept.concepts[0].classes == ("y", "x")
    assert kept.concepts[0].provenance == {"source": "s", "merged": ["a red cap"], "filters": ["near duplicates"]}
    assert kept.dropped[0].reason == "nearly the same as 'red cap' (similarity 0.98)"
    assert kept.dropped[0].classes == ("x",)


def test_equal_texts_leave_the_first():
    concepts = tuple(Concept(text) for text in ("c", "a", "b"))
    for centred in (False, True):
        embeddings = torch.cat([normal(1, 8).expand(3, 8), normal(5, 8, seed=1)])
        bank = ConceptBank("b", "b", (*concepts, *(Concept(f"other {i}") for i in range(5))))
        assert drop_near_duplicates(bank, embeddings, centred=centred).texts[0] == "a"


@pytest.mark.parametrize("centred", [True, False])
def test_filtering_again_changes_nothing(centred):
    embeddings, names = clustered(200), clustered(3)
    center = torch.cat([embeddings, names]).mean(0)
    options = dict(centred=centred, center=center)
    once = drop_near_class_names(
        make_bank(200, embeddings), embeddings, names, ["a", "b", "c"], 0.95 if centred else 0.99, **options
    )
    once = drop_near_duplicates(once, once.directions(), 0.9 if centred else 0.985, **options)
    again = drop_near_class_names(once, once.directions(), names, ["a", "b", "c"], 0.95 if centred else 0.99, **options)
    again = drop_near_duplicates(again, again.directions(), 0.9 if centred else 0.985, **options)
    assert 0 < len(once) < 200
    assert again.texts == once.texts
    assert again.dropped == once.dropped


@pytest.mark.parametrize(("n", "count"), [(40, 5), (3, 5), (40, 1)])
def test_top_activation_equals_the_slow_reference(n, count, monkeypatch):
    monkeypatch.setattr("cbm.concepts.filters._PICTURES", 7)
    monkeypatch.setattr("cbm.concepts.filters._ROWS", 4)
    x, concepts = normal(n, 6), normal(11, 6, seed=1)
    cosines = slow_similarity(concepts, x, [0.0] * 6)
    expected = torch.tensor([sum(sorted(row)[-count:]) / min(n, count) for row in cosines])
    torch.testing.assert_close(top_activation(x, concepts, count), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(top_activation(x.half(), concepts, count), expected, rtol=0, atol=1e-2)


def test_unseen_phrases():
    bank = make_bank(3)
    seen = drop_unseen(bank, torch.tensor([0.3, 0.25, 0.1]), 0.25)
    assert seen.texts == [bank.texts[0]]
    assert seen.dropped[1].reason == "not seen: its best pictures score 0.100, wanted more than 0.25"
    nothing_is_lost(bank, seen)


def test_rows_must_fit_the_bank():
    bank = make_bank(3)
    for call in (
        lambda: drop_near_duplicates(bank, torch.eye(4)),
        lambda: drop_near_class_names(bank, torch.eye(4), torch.eye(4), list("abcd")),
        lambda: drop_unseen(bank, torch.zeros(4), 0.0),
    ):
        with pytest.raises(ValueError, match="'b' has 3 concepts, but 4 rows"):
            call()


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_twenty_thousand_phrases_take_little_memory(shift):
    """With the shift every pair is above the raw cutoff."""
    m = 20_000
    embeddings = normal(m, 64) + shift
    embeddings[m // 2 :] = embeddings[: m // 2] + 0.1 * normal(m // 2, 64, seed=1)
    bank = make_bank(m, embeddings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = drop_near_class_names(bank, embeddings, embeddings[:100], [str(c) for c in range(100)], centred=False)
    kept = drop_near_duplicates(bank, embeddings, centred=shift == 0)
    top_activation(embeddings[:2000], embeddings)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # an M x M matrix: 1.6 GB
    assert len(kept) == m // 2 if shift == 0 else len(kept) < 1000
    assert sorted(kept.texts + [gone.text for gone in kept.dropped]) == sorted(bank.texts)
