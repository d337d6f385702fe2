from pathlib import Path

import pytest
import torch

from cbm.data import vocabulary_store
from cbm.data.shards import write_shard
from cbm.data.text_store import TextStore
from cbm.data.vocabulary_store import VocabularyStore
from cbm.errors import UserError


class Reader:
    """A text encoder that counts what it reads, and may fail on a word."""

    fingerprint, dim = "reader", 8

    def __init__(self, fails_on: str | None = None):
        self.read: list[str] = []
        self.fails_on = fails_on

    def encode_text(self, texts: list[str], **_) -> torch.Tensor:
        if self.fails_on in texts:
            raise KeyboardInterrupt
        self.read += texts
        seeds = [sum(map(ord, text)) for text in texts]
        return torch.stack([torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


WORDS = [f"word {i}" for i in range(10)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary_store, "SHARD", 4)


def test_shards_hold_unit_norm_means_over_the_templates(tmp_path: Path):
    templates = ["{}", "a photo of {}"]
    embedded = VocabularyStore(tmp_path).encode(Reader(), WORDS, templates, progress=False)
    parts = list(embedded.parts())
    assert [len(part) for part in parts] == [4, 4, 2]
    assert all(part.dtype == torch.float16 for part in parts)
    features = [Reader().encode_text([t.replace("{}", w) for w in WORDS]).double() for t in templates]
    mean = sum(f / f.norm(dim=1, keepdim=True) for f in features)
    torch.testing.assert_close(torch.cat(parts).double(), mean / mean.norm(dim=1, keepdim=True), atol=1e-3, rtol=0)


def test_an_interrupted_encoding_goes_on(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        VocabularyStore(tmp_path).encode(Reader(fails_on="word 9"), WORDS, progress=False)
    second = Reader()
    VocabularyStore(tmp_path).encode(second, WORDS, progress=False)
    assert second.read == ["word 8", "word 9"]
    third = Reader()
    assert len(VocabularyStore(tmp_path).encode(third, WORDS, progress=False)) == 10
    assert third.read == []


def test_other_words_another_order_or_other_templates_are_encoded_anew(tmp_path: Path):
    """The published code kept the embeddings and changed the words: silently permuted names."""
    VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    for words, templates in ((WORDS[::-1], ["{}"]), (WORDS, ["a {}"]), (WORDS[:9], ["{}"])):
        again = Reader()
        VocabularyStore(tmp_path).encode(again, words, templates, progress=False)
        assert len(again.read) == len(words)


def test_a_damaged_shard_is_encoded_again(tmp_path: Path):
    embedded = VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    embedded.shards[1].write_bytes(embedded.shards[1].read_bytes()[:-1] + b"x")
    again = Reader()
    VocabularyStore(tmp_path).encode(again, WORDS, progress=False)
    assert again.read == WORDS[4:8]


def test_damage_after_the_encoding_is_said(tmp_path: Path):
    embedded = VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    embedded.shards[0].write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="was damaged"):
        list(embedded.parts())


def test_a_template_needs_a_place(tmp_path: Path):
    with pytest.raises(UserError, match="'a photo' has no place"):
        VocabularyStore(tmp_path).encode(Reader(), WORDS, ["a photo"], progress=False)


def test_what_a_killed_process_left_is_removed_though_everything_is_encoded(tmp_path: Path):
    VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    TextStore(tmp_path).encode(Reader(), WORDS, progress=False)
    folders = [next((tmp_path / "vocabulary" / "reader").iterdir()), tmp_path / "text" / "reader"]
    for folder in folders:
        (folder / ".partial.0123456789abcdef").write_bytes(b"half")
    VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    TextStore(tmp_path).encode(Reader(), WORDS, progress=False)
    assert not list(tmp_path.rglob(".partial.*"))


def test_shards_of_something_else_are_made_again(tmp_path: Path):
    """Their checksums are right, and they hold neither these phrases nor features of this width."""
    expected = TextStore(tmp_path).encode(Reader(), WORDS, progress=False)
    embedded = VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    sound = torch.cat(list(embedded.parts()))
    for folder in (tmp_path / "text" / "reader", embedded.shards[0].parent):
        shards = sorted(folder.iterdir())
        for shard, content in zip(shards, ({"features": torch.ones(2, 3)}, {"x": torch.ones(1)})):
            shard.unlink()
            write_shard(folder, shard.stem, content, {"said": 1})
    assert torch.equal(TextStore(tmp_path).encode(Reader(), WORDS, progress=False), expected)
    again = VocabularyStore(tmp_path).encode(Reader(), WORDS, progress=False)
    assert torch.equal(torch.cat(list(again.parts())), sound)
