"""Answers to "does this image show that phrase?", in a table that ``dataset=csv`` reads, with who and when beside it.

The table has the columns ``path,label,split`` and one per phrase that was asked about. A row is an answer: 1 (yes), 0
(no) or ? (skipped) under the phrase, nothing under the others. What a table of images has no place for (who, when) is
in a JSON file of the same name. Both are written whole or not at all, that file first, so that no answer is of nobody;
what was answered the table alone decides.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbm.data.readers import SPLITS
from cbm.errors import UserError, did_you_mean
from cbm.files import write_atomically
from cbm.files.inert import for_csv, path_for_csv, path_from_csv
from cbm.files.names import one_form
from cbm.files.parsing import read_json, read_table

IMAGE = ("path", "label", "split")
RESERVED = (*IMAGE, "spurious")
"""Columns that mean something else to ``dataset=csv``: no phrase can be asked about under these names."""
SKIPPED = "?"
WORDS = {"1": True, "0": False, SKIPPED: None}
PEOPLE = "people"
PEOPLES_TABLE = "labels.csv"
"""The table of people's answers in a run directory; that of a model is ``labels.MODEL.csv``."""


@dataclass(frozen=True)
class ConceptAnswer:
    """An answer about an image and a phrase.

    Attributes:
        path: where the image is, as seen from the folder of the table.
        label: class of the image.
        split: split of the image.
        concept: the phrase.
        shown: whether the image shows it; None if the question was skipped.
        who: who answered; empty if nobody said.
        when: when, UTC; empty if unknown.
    """

    path: str
    label: str
    split: str
    concept: str
    shown: bool | None
    who: str = ""
    when: str = ""


def beside(table: Path) -> Path:
    """The JSON file that says by whom the answers of a table are.

    Raises:
        UserError: the table is called like one.
    """
    if table.suffix.lower() == ".json":
        raise UserError(f"--out {table}: expected a table, such as '{table.with_suffix('.csv')}'")
    return table.with_suffix(".json")


def answered_by(table: Path) -> str:
    """Who answers in a table: ``people`` or ``model:NAME``; by the table's own name if nothing beside it says so.

    Raises:
        UserError: the file beside the table is damaged.
    """
    named = re.fullmatch(r"labels\.(.+)\.csv", table.name)
    return str(_read_beside(table).get("by") or (f"model:{named[1]}" if named else PEOPLE))


def read_concept_answers(table: Path) -> list[ConceptAnswer]:
    """The answers in a table, in their order; none if there is no table.

    Raises:
        UserError: the table or the file beside it cannot be read, lacks a column, or has a row that is no answer.
    """
    if not table.is_file():
        return []
    columns, records = read_table(table)
    for name in IMAGE:
        if name not in columns:
            raise UserError(f"'{table}' has no column '{name}' ({', '.join(columns[:5]) or 'no columns'})")
    details = {
        (str(each.get("path")), str(each.get("concept"))): each for each in _read_beside(table).get("answers", [])
    }
    answers = []
    for line, record in enumerate(records, start=2):
        if not any(cell.strip() for cell in record.values()):
            continue
        said = [(name, cell.strip()) for name, cell in record.items() if name not in IMAGE and cell.strip()]
        if len(said) != 1:
            raise UserError(f"'{table}' line {line}: expected one answer (1, 0 or ?), found {len(said)}")
        (concept, word), split = said[0], record["split"].strip()
        if word not in WORDS:
            raise UserError(f"'{table}' line {line}: '{concept}' is '{word}'; expected 1, 0 or ?")
        if split not in SPLITS:
            raise UserError(f"'{table}' line {line}: unknown split '{split}': {did_you_mean(split, SPLITS)}")
        path, label = path_from_csv(record["path"].strip()), one_form(record["label"])
        concept = one_form(concept)
        if not path or not label:
            raise UserError(f"'{table}' line {line}: path and label must not be empty")
        known = details.get((path, concept), {})
        who, when = str(known.get("who", "")), str(known.get("when", ""))
        answers.append(ConceptAnswer(path, label, split, concept, WORDS[word], who, when))
    return answers


def write_concept_answers(
    table: Path, answers: Sequence[ConceptAnswer], by: str, summary: Mapping[str, Any] | None = None
) -> None:
    """Write a table of answers, and who gave them.

    Args:
        table: the table.
        answers: all its answers.
        by: ``people`` or ``model:NAME``.
        summary: what follows from the answers, for readers of the JSON file.

    Raises:
        UserError: it cannot be written; the old files are untouched then.
    """
    concepts = list(dict.fromkeys(answer.concept for answer in answers))
    words = {shown: word for word, shown in WORDS.items()}
    place = {concept: number for number, concept in enumerate(concepts)}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IMAGE, *map(for_csv, concepts)])
    for answer in answers:
        cells = [""] * len(concepts)
        cells[place[answer.concept]] = words[answer.shown]
        writer.writerow([path_for_csv(answer.path), for_csv(answer.label), answer.split, *cells])
    content = {
        "by": by,
        **(summary or {}),
        "answers": [
            {
                "path": answer.path,
                "concept": answer.concept,
                "answer": {True: "yes", False: "no", None: "skipped"}[answer.shown],
                "who": answer.who,
                "when": answer.when,
            }
            for answer in answers
        ],
    }
    write_atomically(
        beside(table), json.dumps(content, indent=1, ensure_ascii=False).encode()
    )  # never answers of nobody
    write_atomically(table, text.getvalue().encode())


def _read_beside(table: Path) -> dict[str, Any]:
    """The file beside a table; empty if there is none."""
    file = beside(table)
    if not file.is_file():
        return {}
    content = read_json(file)
    answers = content.get("answers") if isinstance(content, dict) else None
    if not isinstance(answers, list) or not all(isinstance(each, dict) for each in answers):
        raise UserError(f"'{file}' does not say who gave the answers in '{table.name}': remove it, or repair it")
    return content
