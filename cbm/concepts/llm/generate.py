"""From class names and prompt families to a bank: the plan of requests, their answers, the filters, the record."""

import hashlib
import importlib.metadata
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.hygiene import clean_class_names, drop_class_names, drop_unfit
from cbm.concepts.llm.answers import MARKUP, looks_like_sentence, split_by_rules
from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.client import Asker, Tally
from cbm.concepts.llm.endpoint import Endpoint
from cbm.concepts.llm.prompts import Family, fill
from cbm.concepts.llm.question import Answer, Request
from cbm.concepts.llm.review import Row, write_review
from cbm.concepts.readers import merge_duplicates, normalise_text
from cbm.errors import UserError
from cbm.files import new_folder, write_atomically

log = logging.getLogger(__name__)

MAX_WORDS = 20

SPLIT_SYSTEM = (
    "You take sentences apart into short visual phrases of two to eight words. Keep the words of the sentence, add "
    "nothing, leave out what cannot be seen in a picture."
)


@dataclass(frozen=True)
class Asked:
    """A request and what it is about."""

    request: Request
    class_name: str
    family: str
    facet: str
    prompt: str


@dataclass
class Phrase:
    """A phrase as the model gave it, with its origin."""

    text: str
    group: str | None
    asked: Asked
    requests: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What to ask for, beside whom.

    Attributes:
        superclass: what all classes are (``bird``).
        temperature: None is the server's own.
        max_tokens: longest answer, or None.
        samples: times every question is asked.
        split: take sentences apart with a second request.
        skip_failed: write the bank although some requests failed.
    """

    superclass: str = "object"
    temperature: float | None = None
    max_tokens: int | None = None
    samples: int = 1
    split: bool = True
    skip_failed: bool = False


@dataclass(frozen=True)
class Generated:
    """What a run made.

    Attributes:
        bank: as saved.
        tally: requests, tokens, failures.
        bare: classes that own no concept.
        statuses: how many answers are ok, read by rules, truncated, refused.
    """

    bank: ConceptBank
    tally: Tally
    bare: list[str]
    statuses: dict[str, int]


def plan(classes: list[str], families: list[Family], model: str, settings: Settings) -> list[Asked]:
    """One request per class, question and sample, class by class."""
    planned = []
    for name, said in zip(classes, clean_class_names(classes)):
        for family in families:
            system = fill(family.system, said, settings.superclass)
            for question in family.questions:
                user = fill(question.ask, said, settings.superclass)
                for sample in range(settings.samples):
                    request = Request(
                        model, system, user, family.answer, settings.temperature, settings.max_tokens, sample
                    )
                    planned.append(Asked(request, name, family.name, question.facet, family.prompt_hash(question)))
    return planned


def generate(
    classes: list[str], families: list[Family], endpoint: Endpoint, cache: AnswerCache, out: Path, settings: Settings,
    advance: Callable[[], None] = lambda: None,
) -> Generated:  # fmt: skip
    """Ask, filter and write ``out``: bank.json, generation.json, review.csv and review.html.

    Args:
        classes: names as the data set writes them.
        families: what to ask.
        endpoint: whom to ask.
        cache: where answers are kept.
        out: folder to write; must not exist.
        settings: how to ask.
        advance: called once per request done.

    Raises:
        UserError: ``out`` is there, some requests failed for good, the budget is used, or no concept is left.
    """
    if out.exists():
        raise UserError(f"'{out}' is there already: remove it or choose another --out")
    asked = plan(classes, families, endpoint.model, settings)
    asker = Asker(endpoint, cache, advance)
    answers = asker.ask(entry.request for entry in asked)
    _check_failures(asker, len({entry.request.hash for entry in asked}), settings.skip_failed)
    phrases = [
        Phrase(item.text, item.group, entry, [entry.request.hash])
        for entry in asked
        if (answer := answers.get(entry.request.hash))
        for item in answer.items
    ]
    if settings.split:
        phrases, more = _take_apart(phrases, asker, endpoint.model, settings)
        answers |= more
    bank, rows = _bank(phrases, answers, classes, f"llm:{endpoint.model}", out.name)
    bare = [name for name in classes if name not in set(bank.classes)]
    if bare:
        shown = ", ".join(f"'{name}'" for name in bare[:5]) + (", ..." if len(bare) > 5 else "")
        log.warning("concepts: the model gave none for %d of %d classes: %s", len(bare), len(classes), shown)
    statuses = dict(Counter(answer.status for answer in answers.values()))
    generated = Generated(bank, asker.tally, bare, statuses)
    _write(out, generated, rows, _record(classes, families, asker, settings, generated, answers, asked))
    return generated


def _check_failures(asker: Asker, requests: int, skip: bool) -> None:
    """One line if requests failed; none, but a warning, if that is to be ignored and any succeeded."""
    tally = asker.tally
    if not tally.failures and not tally.not_asked:
        return
    if tally.stopped is not None:
        raise UserError(asker.budget.used(tally.asked + tally.cached, requests, tally.stopped))
    first = next(iter(tally.failures.values()), "")
    stopped = f", {tally.not_asked} were not sent any more" if tally.not_asked else ""
    if skip and not tally.not_asked and len(tally.failures) < requests:
        log.warning("concepts: %d of %d requests failed, first: %s", len(tally.failures), requests, first)
        return
    raise UserError(
        f"{len(tally.failures)} of {requests} requests failed{stopped}; first: {first}. "
        f"The {tally.asked + tally.cached} answers so far are kept in '{asker.cache.folder}': run the same "
        "command again, it asks only for the rest"
    )


def _take_apart(
    phrases: list[Phrase], asker: Asker, model: str, settings: Settings, at_once: int = 20
) -> tuple[list[Phrase], dict[str, Answer]]:
    """Sentences into short phrases, asked of the model; by rules where that fails."""
    long = list(dict.fromkeys(phrase.text for phrase in phrases if looks_like_sentence(phrase.text)))
    if not long:
        return phrases, {}
    batches = [long[i : i + at_once] for i in range(0, len(long), at_once)]
    requests = []
    for batch in batches:
        listed = "\n".join(f"{number}: {sentence}" for number, sentence in enumerate(batch, start=1))
        requests.append(Request(model, SPLIT_SYSTEM, listed, "split", settings.temperature, settings.max_tokens))
    failed_before, before = dict(asker.tally.failures), asker.tally.asked + asker.tally.cached
    answers = asker.ask(requests)
    if asker.tally.stopped is not None:
        questions = before + len({request.hash for request in requests})
        raise UserError(asker.budget.used(before + len(answers), questions, asker.tally.stopped))
    asker.tally.failures, asker.tally.not_asked = failed_before, 0
    parts: dict[str, tuple[list[str], str | None]] = {}
    for batch, request in zip(batches, requests):
        items = answers[request.hash].items if request.hash in answers else ()
        for number, sentence in enumerate(batch, start=1):
            found = [item.text for item in items if item.number == number and item.text]
            parts[sentence] = (found, request.hash) if found else (split_by_rules(sentence), None)
    if by_rules := sum(origin is None for _, origin in parts.values()):
        log.warning("concepts: %d of %d sentences taken apart by rules, not by the model", by_rules, len(long))
    taken = []
    for phrase in phrases:
        pieces, origin = parts.get(phrase.text, ([phrase.text], None))
        requests_of = phrase.requests + ([origin] if origin else [])
        taken += [replace(phrase, text=piece, requests=requests_of) for piece in pieces]
    return taken, answers


def _bank(
    phrases: list[Phrase], answers: dict[str, Answer], classes: list[str], source: str, name: str
) -> tuple[ConceptBank, list[Row]]:
    """Merged and filtered concepts with their origin; and a row of review per phrase."""
    if not phrases:
        raise UserError("the model gave no phrase for any class: nothing was written")
    merged = merge_duplicates(name, source, ((p.text, (p.asked.class_name,), None) for p in phrases))
    origins: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        origins.setdefault(normalise_text(phrase.text), []).append(phrase)
    concepts = [_with_origin(concept, origins[normalise_text(concept.text)], answers) for concept in merged.concepts]
    bank = replace(merged, concepts=tuple(concepts))
    bank = bank.keep(["markup or code" if MARKUP.search(text) else None for text in bank.texts], "markup")
    bank = drop_unfit(bank, MAX_WORDS)
    bank = drop_class_names(bank, classes, "own")
    if not bank.concepts:
        first = bank.dropped[0]
        raise UserError(
            f"none of {len(phrases)} phrases is fit to be a concept, first: '{first.text}' ({first.reason}): nothing "
            "was written"
        )
    kept = {normalise_text(text): text for text in bank.texts}
    reasons = {normalise_text(gone.text): gone.reason for gone in bank.dropped}
    rows = []
    for phrase in phrases:
        key = normalise_text(phrase.text)
        note = reasons.get(key, "") if key not in kept else ""
        if key in kept and kept[key] != phrase.text:
            note = f"merged into '{kept[key]}'"
        asked = phrase.asked
        group = phrase.group or ""
        rows.append(Row(key in kept, phrase.text, note, asked.class_name, asked.family, asked.facet, group))
    return bank, rows


def _with_origin(concept: Concept, phrases: list[Phrase], answers: dict[str, Answer]) -> Concept:
    """The concept with its group and where it came from."""
    requests = list(dict.fromkeys(key for phrase in phrases for key in phrase.requests))
    given = [answers[key] for key in requests if key in answers]

    def distinct(values: list[str]) -> list[str]:
        return list(dict.fromkeys(values))

    provenance: dict[str, Any] = {
        **concept.provenance,
        "family": distinct([phrase.asked.family for phrase in phrases]),
        "facet": distinct([phrase.asked.facet for phrase in phrases]),
        "prompt": distinct([phrase.asked.prompt for phrase in phrases]),
        "model": distinct([answer.model for answer in given]),
        "date": min(answer.date for answer in given),
        "requests": requests,
    }
    group = next((phrase.group for phrase in phrases if phrase.group), None)
    return replace(concept, group=group, provenance=provenance)


def _record(
    classes: list[str], families: list[Family], asker: Asker, settings: Settings, generated: Generated,
    answers: dict[str, Answer], asked: list[Asked],
) -> dict[str, Any]:  # fmt: skip
    """What somebody needs to know to judge or repeat the generation. No key, no credentials.

    ``endpoint`` is who was asked in this run, None if nobody was; ``answered_at`` are the servers of all answers.
    """
    tally, endpoint = generated.tally, asker.endpoint
    versions = {name: importlib.metadata.version(name) for name in ("openai", "pydantic", "tenacity")}
    refused = sorted({e.class_name for e in asked if (a := answers.get(e.request.hash)) and a.status == "refused"})
    return {
        "model": endpoint.model,
        "answered_by": sorted({answer.model for answer in answers.values()}),
        "answered_at": sorted({answer.host for answer in answers.values()}),
        "endpoint": endpoint.host if asker.budget.sent else None,
        "dates": [min(a.date for a in answers.values()), max(a.date for a in answers.values())],
        "parameters": {
            "superclass": settings.superclass,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "samples": settings.samples,
            "split": settings.split,
            "max_words": MAX_WORDS,
        },
        "families": [family.model_dump(mode="json") for family in families],
        "split_prompt": SPLIT_SYSTEM if settings.split else None,
        "classes": len(classes),
        "classes_hash": hashlib.sha256("\n".join(classes).encode()).hexdigest()[:12],
        "classes_without_concepts": generated.bare,
        "classes_with_refusals": refused,
        "counts": {
            "requests": tally.asked + tally.cached,
            "asked": tally.asked,
            "cached": tally.cached,
            "retried": tally.retried,
            "sent": asker.budget.sent,
            "failed": len(tally.failures),
            "answers": generated.statuses,
            "concepts": len(generated.bank),
            "dropped": dict(Counter(d.reason.split(" '")[0] for d in generated.bank.dropped)),
        },
        "usage": {
            "this_run": {"prompt_tokens": tally.prompt_tokens, "completion_tokens": tally.completion_tokens},
            "all_answers": {
                "prompt_tokens": sum(answer.prompt_tokens for answer in answers.values()),
                "completion_tokens": sum(answer.completion_tokens for answer in answers.values()),
            },
        },
        "failures": tally.failures,
        "versions": versions,
    }


def _write(out: Path, generated: Generated, rows: list[Row], record: dict[str, Any]) -> None:
    """All files, or no folder at all."""
    try:
        with new_folder(out) as folder:
            generated.bank.save(folder)
            write_atomically(folder / "generation.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
            write_review(folder, generated.bank.name, rows)
    except UserError as error:
        raise UserError(f"{error}; the answers are kept, run again") from error


def preview(asked: list[Asked], cache: AnswerCache) -> dict[str, int]:
    """What a run would cost: requests, cached ones, and tokens of the prompts to send (four letters each)."""
    requests = {entry.request.hash: entry.request for entry in asked}
    missing = [request for request in requests.values() if cache.get(request) is None]
    tokens = sum(-(-request.letters // 4) for request in missing)
    return {"requests": len(requests), "cached": len(requests) - len(missing), "prompt_tokens": tokens}
