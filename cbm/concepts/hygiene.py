"""Filter phrases: a concept must be a phrase, be visual, and not name the class itself.

Rules from the faults found in published banks (specification of LaBo's data: extraction prompts that leaked into the
phrases, phrases cut in mid-clause, class names as substrings, statements nobody can see in an image).
"""

import re
from itertools import pairwise

from cbm.concepts.bank import ConceptBank

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


def clean_class_name(name: str) -> str:
    """A readable class name: ``001.Black_footed_Albatross`` is ``black footed albatross``; ``737-200`` stays."""
    name = re.sub(r"^\d+[._ -]+(?=\D)", "", name)
    return " ".join(re.sub(r"[_\s]+", " ", name).split()).casefold()


def class_name_pattern(names: list[str]) -> re.Pattern[str] | None:
    """Matches any of the class names as whole words, in singular or plural, whatever the case."""
    forms = set()
    for name in map(clean_class_name, names):
        stem = re.escape(name).replace(r"\ ", r"[\s_-]+")
        forms.add(stem + r"(?:'?s|es)?")
        if name.endswith("y"):
            forms.add(re.escape(name[:-1]) + "ies")
        if name.endswith("s") and len(name) > 3:
            forms.add(re.escape(name[:-1]))
    if not forms:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(sorted(forms, key=len, reverse=True)) + r")(?!\w)", re.I)


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
    everything = class_name_pattern(classes)
    own = {name: class_name_pattern([name]) for name in bank.classes}
    reasons: list[str | None] = []
    for concept in bank.concepts:
        patterns = [everything] if which == "any" or not concept.classes else [own[name] for name in concept.classes]
        found = next((match for pattern in patterns if pattern and (match := pattern.search(concept.text))), None)
        reasons.append(f"names the class '{found.group()}'" if found else None)
    return bank.keep(reasons, f"class names ({which})")
