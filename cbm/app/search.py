"""How much pictures look like words, or like another picture: orders of the split, from the features that are kept."""

import re
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.app.explorer import Explorer
from cbm.concepts import clean_class_names
from cbm.data.features import unit_norm
from cbm.errors import UserError
from cbm.trained.heat_map import concept_score

PHRASES = 8
"""Parts of what is looked for, at most."""


def parts_of(words: str) -> tuple[list[str], list[str]]:
    """What pictures should look like, and what they should not: words after a minus, or a phrase in quotation marks.

    >>> parts_of('a red bird -water -"blue sky"')
    (['a red bird'], ['water', 'blue sky'])
    """
    without = re.findall(r'(?:^|\s)-\s*(?:"([^"]+)"|(\S+))', words)
    rest = re.sub(r'(?:^|\s)-\s*(?:"[^"]+"|\S+)', " ", words).replace('"', " ")
    wanted = " ".join(rest.split())
    return [wanted] if wanted else [], [quoted or word for quoted, word in without][:PHRASES]


@torch.no_grad()
def by_words(explorer: Explorer, words: str) -> Tensor:
    """How much every picture looks like words ``[N]``: the cosine of its features with those of the words, both without
    what all have in common, less that with the words after a minus.

    An encoder that reads no text cannot say it. Then concepts whose text has the words answer: the mean of their
    scores, in standard deviations.

    Args:
        explorer: the run.
        words: what is looked for, such as ``a red bird -water``.

    Raises:
        UserError: there are no words, or nothing can answer.
    """
    wanted, unwanted = parts_of(words)
    if not wanted and not unwanted:
        raise UserError("say what to look for: words, or words after a minus")
    signs = [1.0] * len(wanted) + [-1.0] * len(unwanted)
    total = torch.zeros(len(explorer.split))
    if explorer.model.has_text:
        x, common = _centred(explorer), _common_text(explorer)
        for sign, vector in zip(signs, _encoded(explorer, (*wanted, *unwanted))):
            total += sign * (x @ normalize(vector - common, dim=0))
        return total
    for sign, phrase in zip(signs, [*wanted, *unwanted]):
        total += sign * _by_concepts(explorer, phrase)
    return total


@torch.no_grad()
def by_likeness(explorer: Explorer, row: int) -> Tensor:
    """How much every picture looks like the one in ``row``, ``[N]``: the cosine of their features, without what all
    have in common."""
    x = _centred(explorer)
    return x @ x[row]


@lru_cache(maxsize=1)
def _centred(explorer: Explorer) -> Tensor:
    """Unit vectors ``[N, D]``: features without the mean of the split."""
    return normalize(explorer.split.x - explorer.split.x.mean(dim=0), dim=1)


@lru_cache(maxsize=1)
def _common_text(explorer: Explorer) -> Tensor:
    """What all texts have in common ``[D]``: the mean of the concepts that the encoder embedded, or of the classes."""
    bank, model = explorer.model.bank, explorer.model
    if bank is not None and bank.embeddings is not None and bank.encoder == model.encoder.fingerprint:
        return normalize(bank.embeddings.float(), dim=1).mean(dim=0)
    return _encoded(explorer, tuple(clean_class_names(explorer.classes))).mean(dim=0)


@lru_cache(maxsize=64)
def _encoded(explorer: Explorer, texts: tuple[str, ...]) -> Tensor:
    """Unit-norm features of phrases ``[M, D]``; what somebody looks for is kept in memory only."""
    return unit_norm(explorer.model.encoder.encode_text(list(texts)), list(texts))


def _by_concepts(explorer: Explorer, phrase: str) -> Tensor:
    """Mean standardised score ``[N]`` of the concepts whose text has all words of a phrase, or their beginnings.

    Raises:
        UserError: there is none.
    """
    texts = explorer.bank.texts if explorer.has_concepts else []
    words = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in phrase.split()]
    columns = [k for k, text in enumerate(texts) if all(word.search(text) for word in words)]
    if not columns:
        raise UserError(f"the encoder reads no text, and no concept is called '{phrase}': say words of a concept")
    scores = torch.stack([concept_score(explorer.speaking, column, explorer.split.x) for column in columns[:PHRASES]])
    spread = scores.std(dim=1, keepdim=True).clamp(min=1e-12)
    return ((scores - scores.mean(dim=1, keepdim=True)) / spread).mean(dim=0)
