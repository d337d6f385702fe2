"""Prompt families: what a language model is asked about each class, read from YAML files that anyone can write."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cbm.errors import UserError, did_you_mean
from cbm.files import SHIPPED, named_files
from cbm.files.parsing import read_yaml

FAMILIES = SHIPPED / "concepts" / "prompts"

PLACES = ("class", "superclass")
"""What a prompt may leave open, in braces."""


class Question(BaseModel):
    """One thing that is asked about every class."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    facet: str = Field(min_length=1)
    ask: str = Field(min_length=1)

    @field_validator("ask")
    @classmethod
    def _names_the_class(cls, ask: str) -> str:
        if "{class}" not in ask:
            raise ValueError("has no place {class}")
        return ask


class Family(BaseModel):
    """Questions that belong together.

    Attributes:
        name: what it is called in provenance.
        about: one line for people.
        system: the system prompt of all its questions.
        questions: what is asked about every class.
        answer: ``concepts`` (a list of phrases) or ``groups`` (attributes with values that exclude each other).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    about: str = ""
    system: str = Field(min_length=1)
    questions: tuple[Question, ...] = Field(min_length=1)
    answer: Literal["concepts", "groups"] = "concepts"

    @field_validator("system", "questions")
    @classmethod
    def _knows_its_places(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else [question.ask for question in value]:
            if unknown := [place for place in re.findall(r"\{(\w*)\}", text) if place not in PLACES]:
                raise ValueError(f"unknown place {{{unknown[0]}}}: expected {{class}} or {{superclass}}")
        return value

    def prompt_hash(self, question: Question) -> str:
        """Twelve hexadecimal digits that change when the wording does."""
        return hashlib.sha256(f"{self.system}\n{question.ask}\n{self.answer}".encode()).hexdigest()[:12]


def fill(text: str, class_name: str, superclass: str) -> str:
    """``text`` with its places filled; braces inside a class name stay as they are."""
    return re.sub(r"\{(class|superclass)\}", lambda place: class_name if place[1] == "class" else superclass, text)


def family_names() -> list[str]:
    """The families that come with cbm, and those in ``concepts/prompts`` of the working folder."""
    return list(named_files(FAMILIES, "*.yaml"))


def load_families(names: str) -> list[Family]:
    """Families from a comma-separated list of shipped names and paths of YAML files.

    Raises:
        UserError: an unknown name (with the nearest), or a file that is no prompt family.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError(f"--prompts is empty: choose from {', '.join(family_names())}, or a YAML file of your own")
    families = [load_family(name) for name in dict.fromkeys(wanted)]
    seen = set()
    for family in families:
        if family.name in seen:
            raise UserError(f"--prompts has two families named '{family.name}': give one of them another name")
        seen.add(family.name)
    return families


def load_family(name: str) -> Family:
    """A shipped family, or the one in a YAML file."""
    path = Path(name).expanduser()
    if not (path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        if name not in family_names():
            raise UserError(f"unknown prompt family '{name}': {did_you_mean(name, family_names())}")
        path = named_files(FAMILIES, "*.yaml")[name]
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no prompt file '{path}' {did_you_mean(path.name, siblings)}".rstrip())
    content = read_yaml(path)
    try:
        return Family.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        fields = ", ".join(Family.model_fields)
        raise UserError(f"'{path}' is no prompt family: {where}: {first['msg']} (its fields: {fields})") from error
