"""``python -m cbm concepts llm``: what it prints."""

from collections import Counter
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.endpoint import Endpoint
from cbm.concepts.llm.generate import Generated, Settings, generate, plan, preview
from cbm.concepts.llm.prompts import load_families
from cbm.errors import UserError
from cbm.files.console import say
from cbm.files.terminal import errors

SHOWN = 3
ANSWER_TOKENS = 250


def make_bank(
    classes: list[str], out: Path, endpoint: Endpoint, prompts: str, settings: Settings, cache: Path, *,
    dry_run: bool = False, price_in: float | None = None, price_out: float | None = None,
) -> None:  # fmt: skip
    """Generate the bank ``out`` and say what it came to; with ``dry_run``, say what it would.

    Raises:
        UserError: bad settings, or a generation that did not come to its end.
    """
    endpoint.check()
    _check(endpoint, settings, price_in, price_out)
    families = load_families(prompts)
    if out.exists():
        raise UserError(f"'{out}' is there already: remove it or choose another --out")
    kept = AnswerCache(cache)
    asked = plan(classes, families, endpoint.model, settings)
    if dry_run:
        for entry in asked[:SHOWN]:
            say(f"--- {entry.class_name}, {entry.family}, {entry.facet}")
            for message in entry.request.payload(True, 0)["messages"]:
                say(f"{message['role']}: {message['content'].strip()}")
        if len(asked) > SHOWN:
            say(f"--- and {len(asked) - SHOWN} more")
        counts = preview(asked, kept)
        to_send = counts["requests"] - counts["cached"]
        answers = to_send * ANSWER_TOKENS
        say(f"{counts['requests']} requests, {counts['cached']} of them cached, {to_send} to send")
        say(
            f"about {counts['prompt_tokens']:,} prompt tokens (letters / 4) and {answers:,} completion tokens "
            f"({ANSWER_TOKENS} per answer): estimates"
        )
        if price_in is not None or price_out is not None:
            cost = (counts["prompt_tokens"] * (price_in or 0) + answers * (price_out or 0)) / 1e6
            say(f"about {cost:.2f} USD at the prices given")
        return
    endpoint.key()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=errors(), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("asking", total=len({entry.request.hash for entry in asked}), rate="")

        def advance() -> None:
            bar.advance(task)
            if (state := bar.tasks[0]).speed:
                bar.update(task, rate=f"{state.speed:.1f}/s")
            if state.total is not None and state.completed > state.total:
                bar.update(task, total=state.completed, description="splitting")

        try:
            generated = generate(classes, families, endpoint, kept, out, settings, advance)
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted: the answers so far are kept in '{cache}'; run the same command again, it asks only for "
                "the rest"
            ) from None
    _summary(generated, out, len(classes), price_in, price_out)


def _check(endpoint: Endpoint, settings: Settings, price_in: float | None, price_out: float | None) -> None:
    """Refuse settings that cannot be meant."""
    if not endpoint.model.strip():
        raise UserError("--model is empty: expected the model's name at the server")
    if not settings.superclass.strip():
        raise UserError("--superclass is empty: expected a noun such as bird")
    if settings.samples < 1:
        raise UserError(f"--samples {settings.samples}: expected 1 or more")
    if settings.temperature is not None and not 0 <= settings.temperature <= 2:
        raise UserError(f"--temperature {settings.temperature}: expected a number from 0 to 2")
    if settings.max_tokens is not None and settings.max_tokens < 1:
        raise UserError(f"--max-tokens {settings.max_tokens}: expected 1 or more")
    for option, price in (("in", price_in), ("out", price_out)):
        if price is not None and not 0 <= price < float("inf"):
            raise UserError(f"--price-{option} {price}: expected US dollars per million tokens, 0 or more")


def _summary(
    generated: Generated, out: Path, classes: int, price_in: float | None, price_out: float | None
) -> None:  # fmt: skip
    """What was asked, what it cost, what came of it."""
    bank, tally = generated.bank, generated.tally
    say(f"{tally.asked + tally.cached} requests: {tally.asked} asked, {tally.cached} cached, {tally.retried} retried")
    cost = tally.cost(price_in, price_out)
    money = "" if cost is None else f", {cost:.4f} USD"
    say(f"{tally.prompt_tokens:,} prompt tokens, {tally.completion_tokens:,} completion tokens{money} in this run")
    odd = {"rules": "read by rules", "truncated": "truncated", "refused": "refused"}
    if notes := [f"{generated.statuses[key]} {word}" for key, word in odd.items() if generated.statuses.get(key)]:
        say("answers: " + ", ".join(notes))
    reasons = Counter(dropped.reason.split(" '")[0] for dropped in bank.dropped)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing"
    say(f"{len(bank)} concepts of {classes - len(generated.bare)} classes in {out}; left out: {left_out}")
    if generated.bare:
        shown = ", ".join(generated.bare[:5]) + (", ..." if len(generated.bare) > 5 else "")
        say(f"no concept for {len(generated.bare)} classes: {shown}")
    say(f"look at {out / 'review.html'} before you train")
