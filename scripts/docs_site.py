"""Hooks of ``mkdocs.yml``: the files above ``docs/`` become pages, and links to the code say where it is.

Nothing is written twice: README.md is the site's first page. A link that leaves the site must lead to a file of the
repository, whose path it then shows; one that leads nowhere is a warning, which ``--strict`` makes an error.
"""

import logging
import os.path
import re
from pathlib import Path

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.plugins.docs_site")

PROJECT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(docs/([^)\s]+)\)")


def on_files(files, config):
    """Add the pages whose source is above ``docs/``."""
    for source, page in PAGES.items():
        text = PICTURE.sub(r"\1(\2)", (PROJECT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=relink(text, source, page)))
    return files


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
