"""What the page shows, as JSON: ``GET /api/...`` of the same server, without edits, behind the same checks of the host.

    /api                        the run, and what can be asked
    /api/pictures?FILTER        a page of pictures (``cbm.app.filters``), ``page=2`` the next one
    /api/picture?row=12         the decision about a picture and its concepts; ``why=CLASS`` explains another class
    /api/concepts?words=W       concepts that have words
    /api/concept?name=N         everything about a concept
    /api/class?name=N           everything about a class
    /api/fails                  where the model fails

Pictures themselves are left out but for ``thumbnails=1``.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cbm.app.classes import describe_class
from cbm.app.concepts import describe_concept, find_concepts
from cbm.app.decision import decide
from cbm.app.explorer import Explorer
from cbm.app.fails import where_it_fails
from cbm.app.filters import filter_of
from cbm.app.gallery import find_pictures
from cbm.app.inputs import LONGEST, is_number, parts_of_address
from cbm.app.session import Session
from cbm.errors import UserError, did_you_mean
from cbm.report.thumbnails import Thumbnail

MOST_CONCEPTS = 500

Asked = dict[str, str]


def as_json(value: Any, thumbnails: bool = False) -> Any:
    """Data as JSON knows it: dataclasses are objects, arrays lists, numbers that are none null.

    Args:
        value: what a view says.
        thumbnails: whether pictures are kept, as data URIs.

    Example:
        >>> as_json({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if isinstance(value, Thumbnail):
        return {"name": value.name} | ({"uri": value.uri} if thumbnails else {})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: as_json(getattr(value, name), thumbnails) for name in names}
    if isinstance(value, dict):
        return {str(key): as_json(each, thumbnails) for key, each in value.items()}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return as_json(value.tolist(), thumbnails)
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each, thumbnails) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def about(explorer: Explorer, asked: Asked, address: str) -> Any:
    """The run, and what can be asked."""
    name, number = explorer.headline
    return {
        "run": explorer.model.path.name, "method": explorer.model.config.method.name, "dataset": explorer.domain,
        "split": explorer.name, "pictures": len(explorer.split), "classes": explorer.classes,
        "concepts": len(explorer.bank) if explorer.has_concepts else 0, name.replace(" ", "_"): number,
        "metrics": explorer.metrics, "api": [f"/api/{word}" for word in ANSWERS if word],
    }  # fmt: skip


def pictures(explorer: Explorer, asked: Asked, address: str) -> Any:
    """A page of the pictures that a filter asks for."""
    return find_pictures(explorer, filter_of(explorer, address), _number(asked, "page", 1) - 1)


def picture(explorer: Explorer, asked: Asked, address: str) -> Any:
    """One picture, and why it is decided so."""
    tab = Session(explorer)
    tab.look_at(explorer.picture(_number(asked, "row", 0)))
    if "why" in asked:
        tab.explain(asked["why"])
    decision = decide(tab)
    return {"row": tab.picture.row, "name": tab.picture.name, **as_json(decision)}


def concepts(explorer: Explorer, asked: Asked, address: str) -> Any:
    """Concepts that have words, in the order of their columns."""
    found = find_concepts(explorer.bank, asked.get("words", ""))
    shown = [{"column": k, "text": explorer.bank.texts[k]} for k in found[:MOST_CONCEPTS]]
    return {"count": len(found), "concepts": shown}


def concept(explorer: Explorer, asked: Asked, address: str) -> Any:
    """Everything about a concept."""
    name, texts = asked.get("name", ""), explorer.bank.texts
    if name not in texts:
        raise UserError(f"no concept '{name}' in this model: {did_you_mean(name, texts)}")
    return describe_concept(explorer, texts.index(name))


def a_class(explorer: Explorer, asked: Asked, address: str) -> Any:
    """Everything about a class or a label."""
    return describe_class(Session(explorer), asked.get("name", ""))


def fails(explorer: Explorer, asked: Asked, address: str) -> Any:
    """Where the model fails."""
    return where_it_fails(explorer)


ANSWERS: dict[str, Callable[[Explorer, Asked, str], Any]] = {
    "": about, "pictures": pictures, "picture": picture, "concepts": concepts, "concept": concept, "class": a_class,
    "fails": fails,
}  # fmt: skip
"""Last part of the path to what answers it."""


def answer(explorer: Explorer, what: str, address: str) -> Any:
    """What ``/api/WHAT?ADDRESS`` says.

    Args:
        explorer: the run.
        what: one of ``ANSWERS``.
        address: what stands after the question mark.

    Raises:
        UserError: nothing is called so, or the address names what there is not.
    """
    if what not in ANSWERS:
        raise UserError(f"no /api/{what[:40]}: {did_you_mean(what[:40], [word for word in ANSWERS if word])}")
    asked = {name: value[:LONGEST] for name, value in parts_of_address(address)}
    return as_json(ANSWERS[what](explorer, asked, address), thumbnails=asked.get("thumbnails") == "1")


def _number(asked: Asked, name: str, default: int) -> int:
    value = asked.get(name, str(default))
    if not is_number(value):
        raise UserError(f"{name}={value[:40]}: expected a number")
    return int(value)
