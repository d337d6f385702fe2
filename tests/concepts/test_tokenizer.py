from collections import Counter

import pytest
import torch
from torch.nn.functional import normalize

from cbm.concepts import Concept, ConceptBank, ConceptTokenizer
from cbm.concepts.tokenizer import (
    SharedParts,
    Tokens,
    chance_count,
    codebook_bank,
    count_tokens,
    nearest_pictures,
    tokenise,
)


def pictures_and_codebook(n: int = 30, v: int = 200, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g), normalize(torch.randn(v, d, generator=g), dim=1)


@pytest.mark.parametrize("parts", [200, 64, 7, 1])
def test_any_partition_gives_the_dense_answer(parts: int):
    x, codebook = pictures_and_codebook()
    allowed = torch.rand(len(codebook), generator=torch.Generator().manual_seed(1)) > 0.3
    tokens = tokenise(x, codebook.split(parts), 5, allowed)
    dense = (normalize(x.double(), dim=1) @ codebook.double().T).masked_fill(~allowed, -9)
    assert torch.equal(tokens.ids, dense.topk(5, dim=1).indices)
    torch.testing.assert_close(tokens.cosines.double(), dense.topk(5, dim=1).values, atol=1e-6, rtol=0)
    assert allowed[tokens.ids].all()


@pytest.mark.parametrize("parts", [6, 4, 1])
def test_ties_go_to_the_lower_id_across_parts(parts: int):
    codebook = torch.eye(3)[[0, 1, 0, 0, 2, 0]]
    tokens = tokenise(torch.tensor([[2.0, 0.0, 0.0]]), codebook.split(parts), 3)
    assert tokens.ids.tolist() == [[0, 2, 3]]


def test_fewer_allowed_concepts_than_k():
    x, codebook = pictures_and_codebook(4, 10)
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[[3, 8]] = True
    assert tokenise(x, codebook.split(4), 5, allowed).ids.sort(dim=1).values.tolist() == [[3, 8]] * 4


def test_renaming_the_codebook_renames_the_tokens():
    x, codebook = pictures_and_codebook()
    order = torch.randperm(len(codebook), generator=torch.Generator().manual_seed(2))
    permuted = tokenise(x, [codebook[order]], 5)
    assert torch.equal(order[permuted.ids], tokenise(x, [codebook], 5).ids)


def test_the_mean_of_the_dots_is_the_dot_with_the_mean():
    x, prompts = pictures_and_codebook(50, 12)
    pool = normalize(x, dim=1)
    by_prompt = (prompts.view(3, 4, -1).double() @ pool.double().T).mean(dim=1)  # [C, N]
    rows = nearest_pictures(prompts.view(3, 4, -1).mean(dim=1), pool, 10)
    assert torch.equal(rows, by_prompt.topk(10, dim=1).indices)
    assert nearest_pictures(prompts[:2], pool, 500).shape == (2, 50)


def test_counts_against_a_slow_reference():
    g = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(12, generator=g)[:4] for _ in range(40)])
    cosines = torch.rand(40, 4, generator=g).double()
    texts = [f"{chr(122 - i)}" for i in range(12)]
    reference, total = Counter(), Counter()
    for row, values in zip(ids.tolist(), cosines.tolist()):
        for i, value in zip(row, values):
            if value >= 0.2:
                reference[i] += 1
                total[i] += value
    wanted = sorted((i for i in reference if reference[i] >= 9), key=lambda i: (-reference[i], -total[i], texts[i]))
    found = count_tokens(Tokens(ids, cosines), texts, min_count=9, min_cosine=0.2)
    assert [(e.id, e.count) for e in found] == [(i, reference[i]) for i in wanted]
    assert [e.cosine for e in found] == pytest.approx([total[i] / reference[i] for i in wanted])


def test_the_order_is_total_and_nothing_uncounted_is_kept():
    tokens = Tokens(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0.5, 0.4], [0.5, 0.4]]))
    assert [e.id for e in count_tokens(tokens, ["z", "m", "a", "never"])] == [1, 2, 0]  # count, then text of equals
    assert count_tokens(tokens, ["z", "m", "a", "never"], min_count=0) == count_tokens(tokens, ["z", "m", "a", "never"])
    assert count_tokens(tokens.take(torch.tensor([], dtype=torch.long)), ["z", "m", "a", "never"]) == []


def test_noise_hardly_reaches_the_chance_count():
    g = torch.Generator().manual_seed(0)
    draws, concepts = 20_000, 4_000
    counts = torch.randint(concepts, (draws,), generator=g).bincount(minlength=concepts)
    level = chance_count(draws, concepts)
    assert 0 < (counts >= level).sum() <= 12  # 0.1 % of 4,000 is 4
    assert chance_count(10, 1_000_000) == 1


def test_a_shared_concept_is_one_column_with_its_counts():
    counts = {
        "a": count_tokens(Tokens(torch.tensor([[1], [1]]), torch.tensor([[0.9], [0.7]])), "xyz"),
        "b": count_tokens(Tokens(torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.4]])), "xyz"),
    }
    bank = codebook_bank(counts, "xyz", "mine", "v2c:test")
    assert bank.texts == ["y", "z"]
    assert bank.concepts[0].classes == ("a", "b")
    assert bank.concepts[0].provenance["counts"] == {"a": 2, "b": 1}
    assert bank.concepts[0].score == pytest.approx(0.8)


def test_planted_concepts_are_recovered_less_so_with_noise():
    g = torch.Generator().manual_seed(0)
    classes, planted, kept, v, d = 20, 5, 20, 5_000, 128
    codebook = normalize(torch.randn(v, d, generator=g), dim=1)
    truth = torch.randperm(v, generator=g)[: classes * planted].view(classes, planted)
    recall = []
    for noise in (0.02, 0.3):
        x = codebook[truth].sum(dim=1).repeat_interleave(30, dim=0)
        x = normalize(x + noise * torch.randn(x.shape, generator=g), dim=1)
        tokens = tokenise(x, codebook.split(1000), kept)
        hits = 0
        for c in range(classes):
            own = tokens.take(torch.arange(30 * c, 30 * (c + 1)))
            top = [e.id for e in count_tokens(own, [str(i) for i in range(v)])][:kept]
            hits += len(set(top) & set(truth[c].tolist()))
        recall.append(hits / truth.numel())
    assert recall[0] == 1.0
    assert recall[1] < 1.0


def test_a_text_that_is_near_every_picture_does_not_fill_all_lists():
    g = torch.Generator().manual_seed(0)
    meaning = torch.randn(40, 32, generator=g)
    common = 4 * torch.randn(32, generator=g)
    truth = torch.arange(60) % 39
    x = normalize(meaning[truth] + common + 0.1 * torch.randn(60, 32, generator=g), dim=1)
    codebook = meaning + 4 * torch.randn(32, generator=g)
    codebook[39] = common  # means nothing, lies where the pictures lie
    codebook = normalize(codebook, dim=1)
    plain = tokenise(x, [codebook], 1).ids.flatten()
    assert (plain == 39).all()
    centred = tokenise(x, [codebook], 1, shared=SharedParts.of(x, codebook.split(7))).ids.flatten()
    assert (centred == truth).float().mean() > 0.9


def test_a_picture_says_its_nearest_concepts():
    bank = ConceptBank("b", "b", (Concept("red"), Concept("round"), Concept("blue")), embeddings=torch.eye(3))
    (said,) = ConceptTokenizer(bank, k=2)(torch.tensor([[0.0, 3.0, 4.0]]))
    assert [text for text, _ in said] == ["blue", "round"]
    assert [cosine for _, cosine in said] == pytest.approx([0.8, 0.6])
