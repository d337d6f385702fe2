"""What a model wrote, as phrases: JSON of the schema we asked for, what is whole of a cut one, or plain lists."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from cbm.concepts.formats import BULLET, clean_phrase
from cbm.concepts.llm.loose_json import values_in
from cbm.concepts.llm.thinking import TALKS_TO_ITSELF, spoken

Kind = Literal["concepts", "groups", "split", "word"]


class Item(NamedTuple):
    """A phrase; the attribute it is a value of, or None; the number of the sentence it came from, or 0."""

    text: str
    group: str | None = None
    number: int = 0


class Concepts(BaseModel):
    """A list of phrases."""

    concepts: list[str] = Field(min_length=1)


class Group(BaseModel):
    """An attribute and its values."""

    group: str
    values: list[str]


class Groups(BaseModel):
    """A list of attributes."""

    groups: list[Group] = Field(min_length=1)


class Split(BaseModel):
    """The phrases of one numbered sentence."""

    number: int
    phrases: list[str]


class Splits(BaseModel):
    """The phrases of numbered sentences."""

    sentences: list[Split] = Field(min_length=1)


class Unparsable(ValueError):
    """An answer without a single item."""


SHAPES: dict[str, type[BaseModel]] = {"concepts": Concepts, "groups": Groups, "split": Splits}

SAY_JSON = {
    "concepts": 'Answer with JSON only: {"concepts": ["...", "..."]}',
    "groups": 'Answer with JSON only: {"groups": [{"group": "attribute", "values": ["..."]}]}',
    "split": 'Answer with JSON only: {"sentences": [{"number": 1, "phrases": ["..."]}]}',
}

SAY_PLAIN = {
    "concepts": "Answer with a plain list and nothing else: one phrase per line.",
    "groups": "Answer with plain lines and nothing else: attribute: value; value",
    "split": "Answer with plain lines and nothing else: number: phrase; phrase",
}

NO_PHRASE = re.compile(rf"{TALKS_TO_ITSELF.pattern}|(?i:^(?:sure|here (?:is|are)|n/?a|none)\b)")
"""Lines that are talk: of who writes, of who asks, or of what follows."""
MARKUP = re.compile(r"[{}\[\]<>|]")
"""Letters that no phrase holds: what has one is code, markup or a model's own token."""


def first_word(text: str) -> str:
    """The first word of an answer (after what a model says to itself), in lower case; empty where there is none."""
    found = re.search(r"[^\W\d_]+", spoken(str(text)))
    return found[0].lower() if found else ""


def read_answer(text: str, kind: Kind, *, cut: bool = False, plain: bool = True) -> tuple[list[Item], str]:
    """Items of an answer and how they were read: ``ok`` (the schema), ``truncated`` or ``rules``.

    Args:
        text: what the model wrote.
        kind: what was asked for.
        cut: the answer ended in the middle.
        plain: whether an answer that is not of the schema is read by rules.

    Raises:
        Unparsable: no item can be read: it is thinking only, or of another form.

    >>> read_answer('Sure: {"concepts": ["red cap"]}', "concepts")
    ([Item(text='red cap', group=None, number=0)], 'ok')
    """
    if kind == "word":
        return [Item(first_word(text))], "ok"
    if not (whole := spoken(text)) and text.strip():
        raise Unparsable("thinking and no answer")
    try:
        return parse_answer(whole, kind), "ok"
    except Unparsable as error:
        why = error
    if cut:
        if items := salvage(whole, kind):
            return items, "truncated"
        why = Unparsable("cut off before the first item")
    if plain and not (cut and re.match(r"[{\[]|```", whole)) and (items := read_plain(whole, kind, cut)):
        return items, "truncated" if cut else "rules"
    raise why


def response_format(kind: Kind) -> dict[str, Any]:
    """The JSON schema of an answer, strict as hosted models want it."""

    def strict(node: Any) -> Any:
        if isinstance(node, list):
            return [strict(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: strict(item) for key, item in node.items() if key not in ("title", "minItems", "description")}
        if node.get("type") == "object":
            node["additionalProperties"] = False
        return node

    schema = strict(SHAPES[kind].model_json_schema())
    return {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": schema}}


def parse_answer(text: str, kind: Kind) -> list[Item]:
    """Items of the first JSON of the schema in an answer, whatever stands around it.

    Raises:
        Unparsable: there is none, or it has no item.

    >>> parse_answer("Sure! {'concepts': ['red cap',]} Anything else?", "concepts")[0].text
    'red cap'
    """
    why = "no JSON in it"
    for value in values_in(spoken(text)):
        try:
            shape = SHAPES[kind].model_validate(value)
        except ValidationError as error:
            why = f"not of the schema: {error.errors()[0]['msg']}" if why == "no JSON in it" else why
            continue
        if items := [item for item in _items(shape) if item.text]:
            return items
        why = "no item in it"
    raise Unparsable(why)


def salvage(text: str, kind: Kind) -> list[Item]:
    """The complete items of JSON that was cut off; none if it does not begin as the schema says."""
    text = spoken(text)
    start = re.search(rf"\{{\s*[\"'“]{next(iter(SHAPES[kind].model_fields))}[\"'”]\s*:\s*\[", text)
    if start is None:
        return []
    place, parts = start.end(), []
    decoder = json.JSONDecoder(strict=False)
    while match := re.compile(r"[\s,]*").match(text, place):
        try:
            part, place = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        parts.append(part)
    try:
        shape = SHAPES[kind].model_validate({next(iter(SHAPES[kind].model_fields)): parts})
    except ValidationError:
        return []
    return [item for item in _items(shape) if item.text and not MARKUP.search(item.text)]


def read_plain(text: str, kind: Kind, cut: bool = False) -> list[Item]:
    """Items by rules, of an answer that is no JSON of ours: lines, bullets, numbers, semicolons, or other JSON.

    Nothing is read of an answer in which a model speaks of itself or of the user, unless it goes on to a list.

    Args:
        text: the answer.
        kind: what was asked for.
        cut: the answer ended in the middle; its last line is left out.
    """
    text = _without_fence(spoken(text))
    if json_lines := _json_lines(text):
        return [Item(phrase) for leaf in _leaves(json_lines) if (phrase := clean_phrase(leaf)) and _fit(phrase)]
    for value in values_in(text):
        if leaves := [phrase for leaf in _leaves(value) if (phrase := clean_phrase(leaf)) and _fit(phrase)]:
            return [Item(phrase) for phrase in leaves]
    lines = [line for line in text.splitlines() if line.strip()]
    if cut and len(lines) > 1:
        lines = lines[:-1]
    talk = any(TALKS_TO_ITSELF.search(line) for line in lines)
    if listed := [line for line in lines if BULLET.match(line)]:
        lines = listed  # what stands around the list is talk
        talk = talk and cut  # a list after talk is the answer; one that was cut off may still be thinking
    elif cut and any(looks_like_sentence(line) for line in lines):
        talk = True  # prose that was cut off: nobody knows whether it was the answer
    if talk:
        return []
    items: list[Item] = []
    for line in lines:
        items += _plain_items(line, kind)
    return [item for item in items if _fit(item.text) and not NO_PHRASE.search(item.text)]


def _json_lines(text: str) -> list[Any]:
    """The values of an answer of which every line is one (JSON lines); none for other answers."""
    values = []
    for line in filter(str.strip, text.splitlines()):
        try:
            values.append(json.loads(line.strip().rstrip(",")))
        except (ValueError, RecursionError):
            return []
    return values if len(values) > 1 and all(isinstance(value, dict | list) for value in values) else []


def _plain_items(line: str, kind: Kind) -> Iterator[Item]:
    """The phrases of one line, with the attribute or number that it begins with."""
    if line.rstrip().rstrip("*_").endswith(":"):
        return  # "Here are ten phrases:"
    group, number = None, 0
    if kind == "split" and (numbered := re.match(r"^\W*(\d+)[.):]\s*(.+)$", line)):
        number, line = int(numbered[1]), numbered[2]
    line = BULLET.sub("", line)
    if kind == "groups" and (pair := re.match(r"^([^:]{1,60}):\s*(.+)$", line)):
        group, line = normalise_group(pair[1]), pair[2]
    for part in line.split(";"):
        if phrase := clean_phrase(part):
            yield Item(value_phrase(phrase, group) if group else phrase, group, number)


def _fit(phrase: str) -> bool:
    """Whether a phrase holds no markup."""
    return MARKUP.search(phrase) is None


def normalise_group(name: str) -> str:
    """How attributes of different classes are compared: ``Belly_Color`` is ``belly colour``."""
    name = " ".join(clean_phrase(name.replace("_", " ")).casefold().split())
    return re.sub(r"\bcolor(s|ation|ing)?\b|\bcolours\b|\bcolouration\b", "colour", name)


def value_phrase(value: str, group: str) -> str:
    """A value that can be read alone: ``white`` of ``belly colour`` is ``white belly``."""
    words, said = group.split(), set(value.casefold().split())
    part = [word for word in words if word not in ("colour", "shape", "size", "length", "pattern", "texture")]
    if not part or said & set(part) or any(word.rstrip("s") in part for word in said) or len(said) > 2:
        return value
    return f"{value} {' '.join(part)}"


def looks_like_sentence(text: str, longest: int = 8) -> bool:
    """More than ``longest`` words with a verb or a subject among them."""
    verb = r"\b(is|are|was|were|has|have|can|may|it|its|they|their|which|that|while|whose|appears?|features?)\b"
    return len(text.split()) > longest and re.search(verb, text, re.I) is not None


def split_by_rules(sentence: str) -> list[str]:
    """The parts of a sentence at commas, semicolons and ``and``, if all are phrases of at least two words."""
    subject = r"^(the|a|an|this|these|it|they)\b[^,;]*?\b(is|are|has|have|features?)\s+(a |an |the )?"
    body = re.sub(subject, "", sentence, flags=re.I)
    parts = [clean_phrase(part) for part in re.split(r"[;,]\s*(?:and\s+)?|\s+and\s+", body)]
    parts = [re.sub(r"^(a|an|the|with|has|have|is|are)\s+", "", part, flags=re.I) for part in parts if part]
    if len(parts) > 1 and all(len(part.split()) >= 2 for part in parts):
        return parts
    return [clean_phrase(body) or clean_phrase(sentence)]


def _without_fence(text: str) -> str:
    """The answer without the fence of a code block."""
    if fenced := re.search(r"```(?:json|\w*)\s*\n(.*?)(?:```|\Z)", text, re.S):
        text = fenced[1]
    return text.strip()


def _items(shape: BaseModel) -> Iterator[Item]:
    if isinstance(shape, Concepts):
        yield from (Item(clean_phrase(text)) for text in shape.concepts)
    elif isinstance(shape, Groups):
        for entry in shape.groups:
            group = normalise_group(entry.group)
            for value in filter(None, map(clean_phrase, entry.values)):
                yield Item(value_phrase(value, group), group or None)
    elif isinstance(shape, Splits):
        for sentence in shape.sentences:
            yield from (Item(clean_phrase(text), None, sentence.number) for text in sentence.phrases)


def _leaves(content: Any) -> Iterator[str]:
    """All strings in JSON, keys left aside."""
    if isinstance(content, str):
        yield from content.split(";") if ";" in content else [content]
    elif isinstance(content, dict):
        for value in content.values():
            yield from _leaves(value)
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value)
