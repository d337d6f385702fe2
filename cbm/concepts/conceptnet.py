"""What ConceptNet says about classes: the concepts of a post-hoc CBM that has no concept images.

After Yuksekgonul et al., "Post-hoc Concept Bottleneck Models" (ICLR 2023). Reads what was downloaded: the table of
all assertions, ``conceptnet-assertions-*.csv[.gz]``, or answers of the web service (its pages as JSON files).
"""

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, cast

import rich.progress

from cbm.concepts.bank import ConceptBank
from cbm.concepts.findings import Finding, classes_by_key, findings_bank, phrase_key
from cbm.errors import UserError, did_you_mean
from cbm.files.opening import check_regular
from cbm.files.parsing import read_json

log = logging.getLogger(__name__)

LONGEST = 1 << 20
"""Bytes of a line of the table, which none has."""
RELATIONS = ("HasA", "MadeOf", "HasProperty", "IsA", "PartOf")
"""What may link a class to a concept. The class is where the edge starts; only of PartOf it is where the edge ends."""


@dataclass(frozen=True)
class Edge:
    """One English assertion between two nodes (``polar_bear``); a label is how a node is written (``a polar bear``)."""

    relation: str
    start: str
    end: str
    start_label: str
    end_label: str
    weight: float


def read_conceptnet(
    path: Path,
    classes: list[str],
    *,
    relations: tuple[str, ...] = RELATIONS,
    max_words: int = 2,
    progress: bool = False,
) -> ConceptBank:
    """The concepts one edge away from a class, each owned by all classes whose edges gave it.

    HasA, MadeOf, HasProperty and IsA (of a weight above 1) give what the class has or is, PartOf what is part of it.
    Case, underscores and a leading article do not count; a plural is merged into its singular where that is there too.

    Args:
        path: the table of assertions, plain or gzipped; an answer of the web service; or a folder of such answers.
        classes: class names as the data set writes them (``polar_bear``, ``001.Black_footed_Albatross``).
        relations: relations to use, some of ``RELATIONS``.
        max_words: largest number of words of a phrase.
        progress: whether a progress bar is shown.

    Returns:
        Concepts in the order of ``classes``, those of one class by text; the heaviest edge in the provenance. Names of
        classes, long phrases and weak edges are in ``dropped``.

    Raises:
        UserError: no such file, damaged or of another format, or nothing about any class.
    """
    if unknown := [relation for relation in relations if relation not in RELATIONS]:
        raise UserError(f"unknown relation '{unknown[0]}' of ConceptNet: {did_you_mean(unknown[0], RELATIONS)}")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no ConceptNet data '{path}' {did_you_mean(path.name, siblings)}".rstrip())
    named = classes_by_key(classes)
    found: dict[str, Finding] = {}
    weak: dict[str, Finding] = {}
    for edge in _edges(path, relations, progress):
        node, label = (edge.end, edge.start_label) if edge.relation == "PartOf" else (edge.start, edge.end_label)
        if (owners := named.get(phrase_key(node))) and (phrase := _phrase(label)):
            entry = (weak if edge.relation == "IsA" and edge.weight <= 1 else found).setdefault(phrase, Finding())
            rank = (edge.weight, -RELATIONS.index(edge.relation))
            entry.add(owners, rank, {"relation": edge.relation, "weight": edge.weight})
    for phrase, entry in weak.items():
        entry.reason = "IsA of weight 1 or less"
        found.setdefault(phrase, entry)
    return findings_bank("ConceptNet", path, found, classes, max_words=max_words, relations=relations)


def _phrase(label: str) -> str:
    """A label as a concept: lower case, without underscores and a leading article (the word, not the letter)."""
    text = " ".join(label.replace("_", " ").split()).casefold()
    return re.sub(r"^(a|an|the)( |$)", "", text)


def _edges(path: Path, relations: tuple[str, ...], progress: bool) -> Iterator[Edge]:
    """English edges of a file or folder, whatever its format."""
    if path.is_dir():
        answers = sorted(path.glob("*.json"))
        if not answers:
            raise UserError(f"'{path}' has no JSON files: expected answers of ConceptNet's web service")
        yield from _answers(answers, relations)
    elif path.suffix == ".json":
        yield from _answers([path], relations)
    else:
        yield from _table(path, relations, progress)


def _table(path: Path, relations: tuple[str, ...], progress: bool) -> Iterator[Edge]:
    """Edges of the table of assertions: URI, relation, start, end, JSON, separated by tabs.

    It has 34 million lines, so one pattern is searched in each, and only what it finds is taken apart.
    """
    wanted = re.compile(
        rb"\t/r/(" + "|".join(relations).encode() + rb")\t/c/en/([^/\t]+)[^\t]*\t/c/en/([^/\t]+)[^\t]*\t(.*)"
    )
    number = 0
    check_regular(path)
    try:
        with rich.progress.open(
            path, "rb", description="reading ConceptNet", transient=True, disable=not progress
        ) as raw:
            blocks = BufferedReader(cast(RawIOBase, raw), 1 << 20)
            if blocks.peek(2)[:2] == b"\x1f\x8b":
                blocks = BufferedReader(cast(RawIOBase, gzip.GzipFile(fileobj=blocks)), 1 << 20)
            for number, line in enumerate(iter(partial(blocks.readline, LONGEST), b""), start=1):
                if len(line) == LONGEST:
                    raise UserError(
                        f"'{path}' line {number} has {LONGEST:,} bytes or more: it is not ConceptNet's table"
                    )
                if number == 1 and (line.count(b"\t") != 4 or not line.startswith(b"/a/")):
                    raise _not_a_table(path, line)
                if match := wanted.search(line):
                    relation, start, end, rest = (part.decode(errors="replace") for part in match.groups())
                    try:
                        weight = float(json.loads(rest)["weight"])
                    except (ValueError, KeyError, TypeError, OverflowError) as error:
                        raise UserError(f"'{path}' line {number}: no weight in '{rest[:60]}'") from error
                    yield Edge(relation, start, end, start, end, weight)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"'{path}' is damaged ({error}): download it again") from error
    if number == 0:
        raise _not_a_table(path, b"")


def _not_a_table(path: Path, line: bytes) -> UserError:
    return UserError(
        f"'{path}' is not ConceptNet's table of assertions (edge, relation, start, end, JSON, separated by tabs): "
        f"line 1 begins with '{line[:40].decode(errors='replace')}'"
    )


def _answers(files: list[Path], relations: tuple[str, ...]) -> Iterator[Edge]:
    """Edges of answers of the web service; says so when the next page of an answer is not among ``files``."""
    pages, following = [], []
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("edges"), list):
            raise UserError(f"'{file}' is no answer of ConceptNet's web service: it has no list 'edges'")
        if isinstance(view := content.get("view"), dict):
            pages.append(view.get("@id"))
            following += [(view["nextPage"], file.name)] if view.get("nextPage") else []
        for number, edge in enumerate(content["edges"], start=1):
            try:
                relation = edge["rel"]["@id"].removeprefix("/r/")
                start, end = _node(edge["start"]), _node(edge["end"])
                if relation in relations and start and end:
                    yield Edge(relation, start[0], end[0], start[1], end[1], float(edge["weight"]))
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                raise UserError(f"'{file}': edge {number} has no start, end, rel and weight") from error
    if cut := [name for page, name in following if page not in pages]:
        log.warning(
            "concepts: %d of %d answers of ConceptNet go on in a next page that is not there, first '%s'",
            len(cut),
            len(files),
            cut[0],
        )


def _node(node: dict[str, Any]) -> tuple[str, str] | None:
    """(term, label) of an English node: those of ``/c/en/polar_bear/n`` may be ``polar_bear`` and ``a polar bear``."""
    parts = node["@id"].split("/")
    if parts[1:3] != ["c", "en"]:
        return None
    return parts[3], node.get("label") or parts[3]
