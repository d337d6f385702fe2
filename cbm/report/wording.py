"""How numbers and names look on the page."""

LONGEST = 160
"""Characters of a class or concept name that are shown; the files of the run have all of it."""


def clip(text: str, longest: int = LONGEST) -> str:
    """A name, cut with an ellipsis if it is very long."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def percent(value: float | None, digits: int = 1) -> str:
    """``0.534`` as ``53.4%``."""
    if value is None:
        return "–"
    smallest = 10**-digits
    return f"<{smallest:g}%" if 0 < 100 * value < smallest / 2 else f"{100 * value:.{digits}f}%"


def signed(value: float) -> str:
    """``+1.23``, with a real minus sign; more digits for a small number, fewer for a large one."""
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 0.1 or value == 0 else 3
    return f"{value:+z.{digits}f}".replace("-", "−")


def deviations(value: float) -> str:
    """``+1.23`` standard deviations, ``+12.3`` where there are many."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:+z.{digits}f}".replace("-", "−")


def number(value: float) -> str:
    """``23.41``, with a real minus sign."""
    return f"{value:z.2f}".replace("-", "−")


def quote(text: str) -> str:
    """A name in quotation marks: ``“red belly”``."""
    return f"“{text}”"
