"""``python -m cbm label``: is what a run used true? Questions about its images, answered by people or by a model."""

import logging
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cbm.data.concept_answers import PEOPLE, PEOPLES_TABLE
from cbm.data.readers import SPLITS
from cbm.errors import UserError, did_you_mean
from cbm.files.console import say as say_line
from cbm.files.names import file_name
from cbm.layers import one_class, require_linear
from cbm.metrics.pair_queue import TOP, Pair, PairQueue
from cbm.trained import load

if TYPE_CHECKING:  # needs the extra 'llm'
    from cbm.concepts.llm.endpoint import Endpoint

log = logging.getLogger("cbm")

KEYS = {"y": True, "yes": True, "n": False, "no": False, "s": None, "skip": None}
UNDO, QUIT = ("u", "undo"), ("q", "quit")
HELP = "y (yes), n (no), s (skip), u (undo) or q (quit)"
NOT_NEW = {
    "test": "these are test images: what you learn from them must not go into edits that are measured on them",
    "train": "these are training images: the model has learned from them, so this says less than --split val",
}


def open_queue(
    run: Path,
    cache: Path,
    *,
    split: str = "val",
    table: Path | None = None,
    classes: str | None = None,
    top: int = TOP,
    seed: int = 0,
    model: str | None = None,
    who: str = "",
) -> PairQueue:
    """The questions about a finished run.

    Args:
        run: the run directory.
        cache: folder of the feature store.
        split: images to ask about: val, test or train.
        table: table of the answers; by default ``labels.csv`` in the run, or ``labels.MODEL.csv`` for a model.
        classes: names of the classes to ask about, separated by commas; all by default.
        top: concepts per image of which one is asked about.
        seed: random seed for the draw.
        model: name of the model that answers; people by default.
        who: name of the person, kept with the answers.

    Raises:
        UserError: no such run, split or class, a model without a linear head on concepts or one of labels, no images
            to look at, or a table that does not fit.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split}: {did_you_mean(split, SPLITS)}")
    trained = load(run)
    one_class(trained.model, "cbm label")
    bottleneck = require_linear(trained.model, trained.bank)
    assert trained.bank is not None
    dataset, data = trained.read((split,), cache=cache)
    if split in NOT_NEW:
        log.warning(NOT_NEW[split])
    return PairQueue(
        table or trained.path / answers_file(model),
        bottleneck,
        trained.bank,
        data.splits[split],
        dataset.splits[split].images,
        trained.classes,
        name=split,
        by=PEOPLE if model is None else f"model:{model}",
        who=who,
        only=_class_names(classes, trained.classes),
        top=top,
        seed=seed,
    )


def answers_file(model: str | None = None) -> str:
    """Name of the table of answers in a run directory: people's, or that of a model."""
    return PEOPLES_TABLE if model is None else f"labels.{file_name(model)}.csv"


def _class_names(said: str | None, classes: Sequence[str]) -> list[str]:
    if said is None:
        return []
    return [said] if said in classes else [name.strip() for name in said.split(",") if name.strip()]


def ask_people(
    queue: PairQueue,
    pairs: int,
    *,
    keys: TextIO | None = None,
    say: Callable[[str], None] = lambda line: say_line(line, beside=True),
    show: Callable[[Path], object] | None = None,
) -> None:
    """Ask whoever types, until there are enough answers, no more images, or no more keys.

    Args:
        queue: the questions.
        pairs: answers (yes or no) about this split after which nothing more is asked.
        keys: where keys come from, a line each; standard input by default.
        say: prints a line.
        show: opens an image.

    Raises:
        UserError: a line from a file or pipe is no key; the answers before it are kept.
    """
    keys = sys.stdin if keys is None else keys
    say(f"Does the image show the phrase? {HELP}, and Enter")
    while (done := queue.precision.count) < pairs:
        if (pair := queue.next()) is None:
            say(f"no image is left to ask about: {done} answers")
            return
        say(f'[{done + 1}/{pairs}] {(image := queue.places.show(pair.row))}\n    "{pair.concept}"?')
        if show is not None:
            show(image)
        if not _act_on_key(queue, pair, keys, say):
            return


def _act_on_key(queue: PairQueue, pair: Pair, keys: TextIO | None, say: Callable[[str], None]) -> bool:
    """Read keys until one of them says something about a question; returns False if nothing more is to be asked."""
    while key := _read_key(keys):
        if key in KEYS:
            queue.answer(pair, KEYS[key])
            return True
        if key in UNDO:
            taken = queue.undo()
            say("nothing to undo" if taken is None else f'taken back: "{taken.concept}" of {taken.path}')
            return True
        if key in QUIT:
            return False
        if key.strip():
            message = f"'{key}' is no answer: {HELP}"
            if keys is None or not keys.isatty():  # what comes after it would be about other images
                raise UserError(f"{message}; the answers before it are kept")
            say(message)
    return False


def _read_key(keys: TextIO | None) -> str:
    """The next line in lower case, a blank for an empty one; nothing at the end, or when Ctrl-C is pressed."""
    try:
        line = "" if keys is None else keys.readline()
    except (KeyboardInterrupt, OSError, ValueError):  # closed
        return ""
    return line and (line.strip().lower() or " ")


def open_picture(image: Path) -> None:
    """Show an image in whatever program the desktop has for it."""
    if not webbrowser.open(image.absolute().as_uri()):
        log.warning("no program opens '%s' here", image)


def ask_model(queue: PairQueue, endpoint: "Endpoint", cache: Path, pairs: int) -> None:
    """Ask a vision-language model the same questions.

    Args:
        queue: the questions.
        endpoint: the server, the model and the budget.
        cache: folder of the cache; answers are kept there too, and never paid twice.
        pairs: answers (yes or no) about this split after which nothing more is asked.

    Raises:
        UserError: the server does not answer; the answers before that are kept.
    """
    from cbm.concepts.llm.vision import VisionExpert

    expert = VisionExpert(endpoint, queue.places.images, queue.texts, cache)
    budget, tally = expert.asker.budget, expert.asker.tally
    while (todo := pairs - queue.precision.count) > 0:
        left = todo if budget.requests_left is None else budget.requests_left
        if left <= 0 or tally.stopped is not None:
            log.warning("stopped at %s: run the same command again to go on", budget.spoken)
            break
        batch: list[Pair] = []
        while len(batch) < min(todo, left, endpoint.concurrency) and (pair := queue.next(batch)) is not None:
            batch.append(pair)
        if not batch:
            log.warning("no image is left to ask about: %d answers", queue.precision.count)
            break
        found = expert.ask([(pair.row, pair.concept) for pair in batch])
        answered = [(pair, said) for pair, said in zip(batch, found) if said is not None]
        queue.answer_all((pair, None if said != said else said == 1) for pair, said in answered)
    log.info(expert.summary())
