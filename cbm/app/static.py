"""``cbm app RUN --static FILE.html``: what the explorer shows, as one page that opens from disk and changes nothing.

The page holds some pictures with their decisions, where the model fails, its classes and its concepts, and a script
that chooses among them. It loads nothing from anywhere, and runs nothing but that script.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import torch

from cbm.app.classes import describe_class
from cbm.app.concepts import describe_concept
from cbm.app.decision import decide
from cbm.app.explorer import Explorer
from cbm.app.fails import where_it_fails
from cbm.app.filters import MISTAKES, Filter, filter_of, find_rows
from cbm.app.gallery import tile
from cbm.app.render import TEMPLATES, page_header, render
from cbm.app.session import Session
from cbm.files import write_atomically
from cbm.report.slices import used_concepts
from cbm.report.templates import load_template

CLASSES, CONCEPTS = 200, 100
"""Classes and concepts with a page of their own, at most: the worst, and the most important."""
IMAGE = re.compile(r'src="(data:image/[^"]+)"')
ADDRESS = re.compile(r'data-key="([^"]*=[^"]*)"')


def write_page(explorer: Explorer, file: Path, pictures: int) -> int:
    """Write the page.

    Args:
        explorer: the run.
        file: where to.
        pictures: number of pictures, at most: mistakes first, then others at even distances.

    Returns:
        How many pictures are on it.

    Raises:
        UserError: the file cannot be written.
    """
    rows = chosen_rows(explorer, pictures)
    kept = set(rows)
    fails = render("fails", found=where_it_fails(explorer), many=explorer.many)
    classes = {}
    for line in where_it_fails(explorer).classes[:CLASSES]:
        classes[line.name] = render("class", page=describe_class(Session(explorer), line.name), edited=False)
    views = {
        "fails": fails,
        "header": page_header(explorer, explorer.model.path.name, editable=False),
        "pictures": {str(row): _picture(explorer, row) for row in rows},
        "classes": classes,
        "concepts": _concepts(explorer),
    }
    said = {unescape(each) for text in _texts(views) for each in ADDRESS.findall(text)}
    addresses = {each: _rows_of(explorer, each, kept) for each in sorted(said)}
    images: dict[str, str] = {}
    content = _without_images(views, images)
    data = {"views": content, "images": images, "rows": rows, "addresses": addresses}
    page = load_template(TEMPLATES / "static.html").render(
        title=f"cbm: {explorer.model.path.name}",
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        data=for_script(data),
        shown=len(rows),
        count=len(explorer.split),
        many=explorer.many,
    )
    write_atomically(file, page.encode())
    return len(rows)


def chosen_rows(explorer: Explorer, pictures: int) -> list[int]:
    """Mistakes first, then others at even distances, in the order of the split."""
    rows = find_rows(explorer, Filter(kind=MISTAKES)) if not explorer.many else torch.empty(0, dtype=torch.long)
    wrong = rows[:pictures].tolist()
    rest = [row for row in range(len(explorer.split)) if row not in set(wrong)]
    room = max(pictures - len(wrong), 0)
    others = rest if len(rest) <= room else [rest[place * len(rest) // room] for place in range(room)]
    return sorted({*wrong, *others})


def for_script(data: object) -> str:
    """JSON that can stand in a script element.

    >>> for_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _concepts(explorer: Explorer) -> dict[str, str]:
    """The pages of the most important concepts."""
    model = explorer.bottleneck
    if model is None:
        return {}
    importance = model.importance().abs().amax(dim=0)
    first = sorted(used_concepts(model), key=lambda k: -float(importance[k]))[:CONCEPTS]
    pages = ((k, render("concept", facts=describe_concept(explorer, k), edits=[])) for k in first)
    return {explorer.bank.texts[k]: page for k, page in pages}


def _picture(explorer: Explorer, row: int) -> dict[str, str]:
    """A tile, and what there is to say about the picture."""
    tab = Session(explorer)
    tab.look_at(explorer.picture(row))
    decision, shown = decide(tab), tile(explorer, row)
    return {
        "tile": render("gallery_tile", tile=shown),
        "decision": render("decision", decision=decision, many=explorer.many),
        "explanation": render(
            "explanation",
            decision=decision,
            concepts=explorer.has_concepts,
            energies=explorer.energies is not None,
            gated=explorer.gated,
            many=explorer.many,
        ),
    }


def _rows_of(explorer: Explorer, address: str, kept: set[int]) -> dict[str, object]:
    """Rows of an address that are on the page, and how many there are in all."""
    rows = find_rows(explorer, filter_of(explorer, address)).tolist()
    return {"rows": [row for row in rows if row in kept], "count": len(rows)}


def _texts(views: object) -> Iterator[str]:
    """All texts in nested views."""
    if isinstance(views, dict):
        for each in views.values():
            yield from _texts(each)
    elif isinstance(views, str):
        yield views


def _without_images(views: object, images: dict[str, str]) -> object:
    """The same, every picture being named by its content, so that it stands on the page once."""
    if isinstance(views, dict):
        return {key: _without_images(each, images) for key, each in views.items()}
    if not isinstance(views, str):
        return views

    def name(found: re.Match[str]) -> str:
        key = hashlib.sha256(found[1].encode()).hexdigest()[:16]
        images[key] = found[1]
        return f'data-image="{key}"'

    return IMAGE.sub(name, views)
