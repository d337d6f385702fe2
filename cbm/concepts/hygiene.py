"""Filter phrases: a concept must be a phrase, be visual, and not name the class itself.

Rules from the faults found in published banks (specification of LaBo's data: extraction prompts that leaked into the
phrases, phrases cut in mid-clause, class names as substrings, statements nobody can see in an image).
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from cbm.concepts.bank import ConceptBank
from cbm.files.names import one_form

FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "of",
        "to",
        "with",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "as",
        "that",
        "which",
        "is",
        "are",
        "was",
        "were",
        "be",
        "has",
        "have",
        "its",
        "their",
        "than",
        "into",
        "very",
        "but",
        "if",
        "this",
        "these",
        "those",
    ]
)

APART = r"[\s_\-\u2010-\u2015]"  # what may stand between the words of a name

PROMPT_LEAK = re.compile(
    r"concepts? (from|in|of) (the )?sentence|extract(ing)? concepts?|^(sure|here (is|are))\b", re.I
)

NOT_VISUAL = {
    "measurement": r"\d+(\.\d+)?\s?(kg|kilograms?|pounds?|lbs?|ounces?|mph|km/?h|miles?|feet|ft|meters?|years?|%)",
    "weight": r"\bweigh(s|ing|ed)?\b",
    "sound": r"\b(sounds?|songs?|sings?|singing|noisy|noise|calls?|cawing|chirp\w*|bark(s|ing)|meow\w*|loud\w*)\b",
    "smell or taste": r"\b(smell\w*|scent\w*|odou?r\w*|tast(e|es|y)|delicious|flavou?r\w*)\b",
    "status": r"\b(endangered|threatened|extinct\w*|conservation|population|native to|species|vulnerable to)\b",
    "history or cost": r"\b(invented|histor(y|ical(ly)?)|centur(y|ies)|expensive|cheap|costs?|popular|famous|known)\b",
    "life": r"\b(lifespan|live(s)? up to|migrat\w*|mate for life|lays? eggs|territorial|nocturnal|diet|intelligent)\b",
    "meaning": r"\b(symbol\w*|represents?|important|useful|necessary|used (to|for|in|as)|many different)\b",
}

_NOT_VISUAL = {reason: re.compile(pattern, re.I) for reason, pattern in NOT_VISUAL.items()}


def hygiene_reason(text: str, max_words: int = 20) -> str | None:
    """Reason why ``text`` is not a visual phrase; None if it passes all rules."""
    words = re.findall(r"[\w'-]+", text.casefold())
    if len(text.strip()) < 3 or not words:
        return "too short"
    if len(words) > max_words:
        return f"longer than {max_words} words"
    if PROMPT_LEAK.search(text):
        return "leaked prompt"
    if words[-1] in FUNCTION_WORDS:
        return f"cut off after '{words[-1]}'"
    if any(first == second and len(first) > 3 for first, second in pairwise(words)):
        return "doubled word"
    return next((f"not visual: {why}" for why, pattern in _NOT_VISUAL.items() if pattern.search(text)), None)


NUMBERED = re.compile(r"^(\d+)[._ -]+(?=\D)")


def spoken_name(name: str) -> str:
    """A class name as it is said: without underscores and capitals, letters composed. Numbers stay.

    Example:
        >>> [spoken_name(name) for name in ("Maple_tree", "737-200", "1_euro")]
        ['maple tree', '737-200', '1 euro']
    """
    return one_form(re.sub(r"[_\s]+", " ", name).casefold())


def clean_class_name(name: str) -> str:
    """One class name as it is said, where the others are not known: a number with leading zeros is cut off.

    Example:
        >>> [clean_class_name(name) for name in ("001.Black_footed_Albatross", "1_euro")]
        ['black footed albatross', '1 euro']
    """
    found = NUMBERED.match(name)
    return spoken_name(NUMBERED.sub("", name) if found and found[1].startswith("0") and len(found[1]) > 1 else name)


def clean_class_names(names: Sequence[str]) -> list[str]:
    """The names of all classes as they are said. Running numbers before all of them are cut off.

    Numbers run if they count from 0 or 1 without a gap, or if they have leading zeros (``001.Black_footed_Albatross``),
    and if the names differ without them. Otherwise they are part of the names (``1_euro``, ``2_euro``).

    Args:
        names: all class names of a data set, or of a bank.

    Example:
        >>> clean_class_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
        ['black footed albatross', 'laysan albatross']
        >>> clean_class_names(["1_euro", "2_euro", "10_cent"])
        ['1 euro', '2 euro', '10 cent']
    """
    found = [NUMBERED.match(name) for name in names]
    said = [spoken_name(name) for name in names]
    if not names or not all(found):
        return said
    digits = [match[1] for match in found if match]
    numbers = sorted(map(int, digits))
    runs = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    padded = len(set(map(len, digits))) == 1 and any(number.startswith("0") for number in digits)
    cut = [spoken_name(NUMBERED.sub("", name)) for name in names]
    singular = {re.sub(r"(?<=\w\w)s\b", "", name) for name in cut}  # 1_pound and 2_pounds differ by their numbers
    return cut if (runs or padded) and len(singular) == len(set(said)) == len(set(numbers)) else said


def class_name_pattern(names: list[str]) -> re.Pattern[str] | None:
    """Matches any of the class names as whole words, in singular or plural, whatever the case, with or without accents,
    and with their words apart, hyphenated or joined."""
    forms = set()
    for name in clean_class_names(names):
        forms.add(_spelt(name) + r"(?:['’]?s|es)?")
        if name.endswith("y"):
            forms.add(_spelt(name[:-1]) + "ies")
        if name.endswith("s") and len(name) > 3:
            forms.add(_spelt(name[:-1]))
    if not forms:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(sorted(forms, key=len, reverse=True)) + r")(?!\w)", re.I)


def _spelt(name: str) -> str:
    """A pattern of the spellings of a name."""

    def letter(each: str) -> str:
        plain = unicodedata.normalize("NFKD", each)[0]
        return re.escape(each) if plain == each else f"[{re.escape(each)}{re.escape(plain)}]"

    words = [word for word in re.split(APART, name) if word]
    return (APART + "*").join("".join(map(letter, word)) for word in words) or re.escape(name)


def drop_unfit(bank: ConceptBank, max_words: int) -> ConceptBank:
    """Leave out phrases that are not visual phrases (see ``hygiene_reason``)."""
    return bank.keep([hygiene_reason(text, max_words) for text in bank.texts], "hygiene")


def drop_class_names(bank: ConceptBank, classes: list[str], which: str) -> ConceptBank:
    """Leave out phrases that contain a class name.

    Args:
        bank: the concepts.
        classes: class names of the data set.
        which: which class names count: ``own`` (of a class that owns the phrase; any class, if none does), ``any``, or
            ``none``.
    """
    if which == "none":
        return bank
    said = dict(zip(classes, clean_class_names(classes)))
    everything = class_name_pattern(list(said.values()))
    own = {name: class_name_pattern([said.get(name, name)]) for name in bank.classes}
    reasons: list[str | None] = []
    for concept in bank.concepts:
        patterns = [everything] if which == "any" or not concept.classes else [own[name] for name in concept.classes]
        found = next((match for pattern in patterns if pattern and (match := pattern.search(concept.text))), None)
        reasons.append(f"names the class '{found.group()}'" if found else None)
    return bank.keep(reasons, f"class names ({which})")
