"""A vocabulary for V2C-CBM: nouns, adjectives and their pairs, from an openly licensed list of words.

He et al., "V2C-CBM: Building Concept Bottlenecks with Vision-to-Concept Tokenizer" (AAAI 2025), section on the base
vocabulary. The published word lists are not used: words come from ``wordfreq`` (by frequency), their parts of speech
and lemmas from ``lemminflect``, ``concepts/visual_words.yaml`` adds what web text rarely says, and unprintable words
go by the list of ``better_profanity``.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbm.concepts.hygiene import FUNCTION_WORDS, clean_class_names, spoken_name
from cbm.errors import UserError, did_you_mean
from cbm.files.parsing import read_yaml
from cbm.files.shipped import install_command

PATTERNS = ("adjective", "noun", "adjective noun", "has", "part of", "at location", "made of")
"""What a concept may look like: a word, a pair, or one of the published relations before a pair."""

SHORT_NOUNS = frozenset(["ox", "ax"])
"""Nouns of fewer than three letters that one can see; all others are abbreviations."""

CREATURES = frozenset(["tit", "booby", "cock", "ass", "beaver", "shag"])
"""On every list of unprintable words, and in every zoo."""

_EMPTY = FUNCTION_WORDS | {
    "i", "you", "he", "she", "it", "we", "they", "me", "him", "her", "us", "them", "my", "your", "his", "our", "who",
    "what", "when", "where", "why", "how", "all", "any", "both", "each", "few", "more", "most", "other", "some",
    "such", "no", "nor", "not", "only", "own", "same", "so", "too", "can", "will", "just", "should", "now", "do",
    "did", "does", "had", "having", "been", "being", "am", "about", "above", "after", "again", "against", "before",
    "below", "between", "down", "during", "here", "there", "once", "out", "over", "then", "through", "under", "until",
    "up", "while", "must", "may", "might", "shall", "would", "could", "yes", "well", "much", "many", "let", "get",
    "got", "one", "two", "three", "first", "last", "next", "whole", "sure", "able", "else", "etc", "thing", "lot",
    "way", "none", "anything", "nothing", "something", "everything", "someone", "anyone", "everyone", "whose", "whom",
    "self", "myself", "yourself", "himself", "herself", "itself", "ourselves", "themselves", "oneself",
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What may become a concept.

    Attributes:
        texts: V different phrases, sorted; the position of a phrase is its id.
        recipe: settings, and versions of the word lists.
    """

    texts: tuple[str, ...]
    recipe: dict[str, Any]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Hash of the phrases in their order: what an embedding of the vocabulary belongs to."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def build_vocabulary(
    seeds: Path,
    *,
    n_words: int = 20_000,
    n_adjectives: int = 100,
    n_nouns: int = 2_000,
    patterns: Sequence[str] = ("adjective", "noun", "adjective noun"),
) -> Vocabulary:
    """All phrases of the patterns over the most frequent English adjectives and nouns and the visual seed words.

    A word may be both adjective and noun. Nouns are in the singular; letters are ASCII and lower case.

    Args:
        seeds: YAML of ``{adjective: {topic: [words]}, noun: {topic: [words]}}``, always part of the vocabulary.
        n_words: number of the most frequent words that are considered.
        n_adjectives: number of frequent adjectives in addition to the seeds.
        n_nouns: number of frequent nouns in addition to the seeds.
        patterns: patterns of a phrase, some of ``PATTERNS``. Pairs and relations make ``adjectives x nouns`` phrases.

    Raises:
        UserError: an unknown pattern, a seed file of another form, or the word lists are not installed.
    """
    if unknown := [pattern for pattern in patterns if pattern not in PATTERNS]:
        raise UserError(f"unknown pattern '{unknown[0]}': {did_you_mean(unknown[0], PATTERNS)}")
    frequent = _frequent_words(n_words)
    own = _seed_words(seeds)
    found: dict[str, list[str]] = {"adjective": [], "noun": []}
    for word in frequent:
        for part, base in _parts_of_speech(word):
            found[part].append(base)
    adjectives = _first(own["adjective"], found["adjective"], n_adjectives)
    nouns = _first(own["noun"], found["noun"], n_nouns)
    pairs = [f"{a} {n}" for a in adjectives for n in nouns if a != n]
    texts: set[str] = set()
    for pattern in patterns:
        singles = {"adjective": adjectives, "noun": nouns, "adjective noun": pairs}
        texts.update(singles[pattern] if pattern in singles else (f"{pattern} {pair}" for pair in pairs))
    recipe = {
        "n_words": n_words,
        "adjectives": len(adjectives),
        "nouns": len(nouns),
        "patterns": list(patterns),
        "seeds": hashlib.sha256(seeds.read_bytes()).hexdigest(),
        **{name: importlib.metadata.version(name) for name in ("wordfreq", "lemminflect", "better-profanity")},
    }
    return Vocabulary(tuple(sorted(texts)), recipe)


def _frequent_words(count: int) -> list[str]:
    """The most frequent words that are made of letters, say something, and can be said aloud."""
    try:
        from better_profanity import profanity
        from wordfreq import top_n_list
    except ImportError as error:
        raise UserError(f"the vocabulary needs '{error.name}': {install_command('vocabulary')}") from error
    profanity.load_censor_words(whitelist_words=list(CREATURES))
    unprintable = {str(entry._original) for entry in profanity.CENSOR_WORDSET} - CREATURES
    return [
        word
        for word in top_n_list("en", count)
        if re.fullmatch("[a-z]{3,}", word) or word in SHORT_NOUNS
        if word not in _EMPTY and word not in unprintable
    ]


def _parts_of_speech(word: str) -> list[tuple[str, str]]:
    """(``noun`` or ``adjective``, base form) for each of the two that the dictionary knows the word as.

    Words that are adverbs too (``often``, ``near``) name nothing one can see, nor do adjectives that are verbs too
    (``shot``); the few that do are among the seeds.
    """
    from lemminflect import getAllLemmas

    lemmas = getAllLemmas(word)
    if "ADV" in lemmas:
        return []
    singular = _singular(word)
    parts = [("noun", singular)] if "NOUN" in lemmas and singular not in _EMPTY else []
    if "VERB" not in lemmas and lemmas.get("ADJ", ("",))[0] == word:  # not "bigger"
        parts.append(("adjective", word))
    return parts


def _first(seeds: list[str], frequent: list[str], count: int) -> list[str]:
    """Seeds and the first ``count`` others, sorted."""
    others = [word for word in dict.fromkeys(frequent) if word not in set(seeds) and re.fullmatch("[a-z]{2,}", word)]
    return sorted({*seeds, *others[:count]})


def _seed_words(path: Path) -> dict[str, list[str]]:
    content = read_yaml(path)
    try:
        words = {part: [word for topic in content[part].values() for word in topic] for part in ("adjective", "noun")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{path}' is no list of seed words ({{adjective: {{topic: [words]}}, noun: {{topic: [words]}}}}): {error}"
        ) from error
    if bad := [word for part in words.values() for word in part if not re.fullmatch("[a-z]+", str(word))]:
        raise UserError(f"'{path}': seed word '{bad[0]}' is not one lower-case word of ASCII letters")
    return words


def names_class(texts: Iterable[str], classes: Sequence[str], synonyms: Iterable[str] = ()) -> list[bool]:
    """Whether a phrase says a class name, the head noun of a class name, or a synonym, word by word.

    ``black cats`` names the class ``cat``, ``catalog`` does not; ``white polar bear`` and ``brown bear`` name
    ``polar_bear``. Plurals count as their singular.

    Args:
        texts: the phrases.
        classes: class names as the data set writes them.
        synonyms: other words to keep out.
    """
    said: set[tuple[str, ...]] = set()
    for name in (*clean_class_names(classes), *map(spoken_name, synonyms)):
        words = tuple(_singular(word) for word in re.findall(r"[a-z0-9]+", name))
        said |= {words, words[-1:]} - {()}
    lengths = sorted({len(words) for words in said})
    known: dict[str, str] = {}

    def named(text: str) -> bool:
        words = []
        for word in re.findall(r"[a-z0-9]+", text.casefold()):
            if word not in known:
                known[word] = _singular(word)
            words.append(known[word])
        return any(tuple(words[i : i + n]) in said for n in lengths for i in range(len(words) - n + 1))

    return [named(text) for text in texts]


def _singular(word: str) -> str:
    """The noun a plural is of (``leaves``: leaf); any other word as it is."""
    try:
        from lemminflect import getAllLemmas
    except ImportError as error:
        raise UserError(f"the vocabulary needs '{error.name}': {install_command('vocabulary')}") from error
    nouns = getAllLemmas(word).get("NOUN", (word,))
    return next((noun for noun in reversed(nouns) if noun != word), word)
