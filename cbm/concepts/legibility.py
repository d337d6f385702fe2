"""Which phrases a text tower cannot read: other languages and scripts, emoji, words that its tokenizer spells out.

A tokenizer that was made for English reads an English word in one piece or two. It spells words of other languages out,
other scripts letter by letter or byte by byte, and the text tower has learned nothing from such pieces.
"""

import re
import unicodedata
from collections.abc import Sequence

from cbm.encoders.base import Encoder
from cbm.files.console import warn_once

UNREADABLE = "\ufffd"
"""A piece that is no text: part of a letter's bytes, or a token that stands for anything unknown."""
SPELLED_OUT = 3.0  # pieces per word above which a phrase is reported by itself
FOREIGN = 1.5  # pieces per word, on average, of a bank that is not in the tokenizer's language
MANY = 2000  # phrases that are looked at before training, at even distances
SHARE = 0.25  # of the phrases with two pieces per word or more, likewise


def illegible(texts: Sequence[str], pieces: Sequence[Sequence[str]], *, one_language: bool) -> dict[int, str]:
    """Why phrases cannot be read, by row; phrases that can are left out.

    Args:
        texts: M phrases.
        pieces: the tokenizer's pieces of each; ``UNREADABLE`` is one that is no text.
        one_language: whether the tokenizer is of one language, so that words in many pieces are foreign to it.

    >>> illegible(["red wing", "gelber Bauch"], [["red", "wing"], ["gel", "ber", "bau", "ch"]], one_language=True)
    {1: '4 pieces for 2 words: gel ber bau ch'}
    """
    found: dict[int, str] = {}
    rates = [len(parts) / max(_words(text), 1) for text, parts in zip(texts, pieces)]
    foreign = (
        one_language
        and len(rates) > 0  # an unknown tokenizer has no pieces
        and (sum(rates) / len(rates) >= FOREIGN or sum(rate >= 2 for rate in rates) / len(rates) >= SHARE)
    )
    for row, (text, parts, rate) in enumerate(zip(texts, pieces, rates)):
        symbols = [letter for letter in text if unicodedata.category(letter) in ("So", "Cn", "Co", "Cs")]
        unknown = sum(UNREADABLE in part for part in parts)
        if unknown:
            found[row] = f"{unknown} of {len(parts)} pieces are unknown or parts of letters"
        elif one_language and (rate >= FOREIGN if foreign else rate > SPELLED_OUT):
            shown = " ".join(parts[:12]) + (" ..." if len(parts) > 12 else "")
            found[row] = f"{len(parts)} pieces for {_words(text)} words: {shown}"
        elif symbols:
            found[row] = f"holds the symbol '{symbols[0]}'"
    return found


def warn_illegible(texts: Sequence[str], encoder: Encoder, least: float = 0.1) -> None:
    """One line if a share of ``least`` of the phrases cannot be read by the encoder's text tower."""
    texts = texts[:: max(1, len(texts) // MANY)]
    pieces = encoder.pieces(list(texts))
    found = illegible(texts, pieces, one_language=encoder.one_language)
    if len(found) > least * len(texts):
        row = max(found, key=lambda row: len(pieces[row]) / max(_words(texts[row]), 1))
        why = found[row]
        warn_once(
            f"concepts: the text tower of encoder '{encoder.id}' cannot read {len(found)} of {len(texts)} phrases (it "
            f"may not know their language), e.g. '{texts[row][:60]}': {why}; python -m cbm concepts lint lists them"
        )


def _words(text: str) -> int:
    """Number of words; where words have no spaces between them every letter counts."""
    without_spaces = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    return len(re.findall(without_spaces, text)) + len(re.findall(r"\w+", re.sub(without_spaces, " ", text)))
