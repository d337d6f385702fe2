"""Hooks of ``mkdocs.yml``: the files above ``docs/`` become pages, and links to the code say where it is.

Nothing is written twice: README.md is the site's first page, with the picture of the explorer at its top. A link that
leaves the site must lead to a file of the repository, whose path it then shows; one that leads nowhere is a warning,
which ``--strict`` makes an error.
"""

import logging
import os.path
import re
from pathlib import Path

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.plugins.docs_site")

PROJECT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
         "SECURITY.md": "security.md"}  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(docs/([^)\s]+)\)")
STYLE = """
/* commands are wrapped, not cut at the right edge */
.md-typeset pre > code { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
FROM_DISK = """
??? note "Reading these pages from the disk"
    Search needs a server: `mkdocs serve`, or `python -m http.server` in the folder of the site. Everything else works
    without one.
"""


def on_files(files, config):
    """Add the pages whose source is above ``docs/``, and the style."""
    for source, page in PAGES.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        if page == "index.md":
            text = explorer_first(text) + FROM_DISK
        text = PICTURE.sub(r"\1(\2)", text)
        files.append(File.generated(config, page, content=relink(text, source, page)))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def explorer_first(markdown: str) -> str:
    """README.md with its picture of the explorer below the first heading instead of further down."""
    picture = re.search(r"^!\[[^\]]*\]\(docs/images/explorer_picture\.png\)\n\n", markdown, re.MULTILINE)
    if picture is None:
        log.warning("README.md does not show docs/images/explorer_picture.png, the first picture of the site")
        return markdown
    heading, rest = markdown.replace(picture[0], "").split("\n", 1)
    return f"{heading}\n\n{picture[0]}{rest}"


def on_page_markdown(markdown, page, config, files):
    """Links of a page as the site needs them."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else relink(markdown, f"docs/{name}", name)


def relink(markdown: str, source: str, page: str) -> str:
    """Links of the file ``source`` of the repository as they must be on ``page`` of the site; code is left alone."""

    def place(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = os.path.normpath(Path(source).parent / target)
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is not None:
            return f"[{text}]({os.path.relpath(inside, Path(page).parent)}{anchor})"
        if not (PROJECT / path).exists():
            log.warning("'%s' links to '%s', which is not in the repository", source, target)
        return text if text.strip("`") in path else f"{text} (`{path}`)"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(place, part) for part in parts)
