"""The negation of a phrase, for the question whether an encoder tells the two apart."""

import re

NEGATED = re.compile(r"^(?:no|not|without|lacks|lacking|absence of|does not have|has no)\s+", re.I)


def negate(text: str) -> str:
    """The phrase that denies another.

    >>> negate("yellow belly"), negate("No yellow belly"), negate("a kitten that barks")
    ('no yellow belly', 'yellow belly', 'no kitten that barks')
    """
    if found := NEGATED.match(text):
        return text[found.end() :]
    return "no " + re.sub(r"^(?:an?|the)\s+", "", text, flags=re.I)
