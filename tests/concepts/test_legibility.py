"""Phrases that a text tower of English cannot read."""

import logging

import pytest
from conftest import PROJECT

from cbm.concepts import read_bank
from cbm.concepts.legibility import illegible, warn_illegible
from cbm.encoders import create_encoder
from cbm.encoders.open_clip import clip_tokenizer, one_language, pieces


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def found(tokenizer, texts: list[str]) -> dict[int, str]:
    return illegible(texts, pieces(tokenizer, texts), one_language=one_language(tokenizer))


@pytest.mark.parametrize(
    "texts",
    [
        ["gelber Bauch", "schwarze Flügel", "rötlicher Schnabel"], ["黄色的腹部", "长颈"], ["красный клюв"],
        ["노란 부리"], ["منقار أصفر"], ["צהוב"], ["ปากสีเหลือง"], ["κίτρινο ράμφος"], ["bec jaune", "ailes noires"],
        ["gele buik", "zwarte kop"], ["żółty brzuch", "czarny dziób"], ["🐦 red wing"], ["red ❤ wing"],
    ],
    ids=lambda texts: texts[0],
)  # fmt: skip
def test_other_languages_scripts_and_symbols(tokenizer, texts: list[str]):
    assert len(found(tokenizer, texts)) == len(texts)


def test_single_foreign_phrases_among_english_ones(tokenizer):
    english = read_bank(PROJECT / "concepts" / "general.txt").texts
    assert list(found(tokenizer, [*english, "rötlicher Schnabel", "黄色的腹部"])) == [len(english), len(english) + 1]


@pytest.mark.parametrize("name", ["birds.json", "cifar10.json", "cifar100.json", "wbc.json", "general.txt"])
def test_shipped_banks_are_read(tokenizer, name: str):
    assert found(tokenizer, read_bank(PROJECT / "concepts" / name).texts) == {}


def test_training_warns_once(caplog):
    encoder = create_encoder(f"local-dir:{PROJECT}/cbm/encoders/tiny_clip", device="cpu")
    with caplog.at_level(logging.WARNING):
        warn_illegible(read_bank(PROJECT / "concepts" / "birds.json").texts, encoder)
        assert not caplog.records
        warn_illegible(["gelber Bauch", "rote Beine"], encoder)
    assert len(caplog.records) == 1
    assert "cannot read 2 of 2 phrases" in caplog.text
