"""The door: ``cbm COMMAND``, ``python -m cbm COMMAND``, and ``train.py`` and ``eval.py``, which are two of them.

Nothing heavy is imported before the first line has said what is being done.
"""

import errno
import os
import re
import sys
from typing import Any, NoReturn

from cbm.errors import UserError, did_you_mean
from cbm.files.console import open_closed_streams, process_rank, stop, stop_without, stop_writing
from cbm.files.names import as_text, is_text
from cbm.files.shipped import VERSION

BEGINS = {
    "train": "composing the configuration",
    "eval": "composing the configuration",
    "adapt": "opening the run, to correct it for another domain",
    "app": "opening the run for the browser",
    "audit": "opening the run, to compare what it uses with the list",
    "cache": "looking at the feature store",
    "compare": "reading the runs",
    "concepts diff": "comparing two banks",
    "concepts conceptnet": "reading ConceptNet",
    "concepts lint": "checking the bank",
    "concepts llm": "preparing the questions to the language model",
    "concepts v2c": "counting concepts in images",
    "concepts wordnet": "reading WordNet",
    "datasets": "reading the cards",
    "datasets check": "checking the data set",
    "datasets show": "reading the card",
    "doctor": "looking at this installation",
    "encode": "reading the data set and the encoder",
    "export": "opening the run, to export it",
    "intervene": "opening the run, to ask about its concepts",
    "label": "opening the run, to ask whether its images show what it used",
    "leak": "opening the run, to measure what its scores say beyond their names",
    "name": "opening the run, to name its units",
    "plan": "measuring this machine and planning the run",
    "predict": "opening the run, to classify images",
    "propose": "opening the run, to ask what training added to its classes",
    "rebalance": "opening the run, to fit it again without some concepts",
    "report": "opening the run, to write its report again",
    "spurious": "opening the runs, to edit spurious concepts out",
}
"""What every command says before its libraries are loaded."""
QUIET = ("--quiet", "-q")
GROUPS = ("cache", "concepts", "datasets")
"""Commands that have commands of their own."""


def main(*words: str) -> None:
    """Run a command; one line and exit status 2 on bad input.

    Args:
        words: the command, if it is not the first of the arguments that were typed.
    """
    open_closed_streams()
    arguments = [*words, *sys.argv[1:]]
    quiet = any(argument in QUIET for argument in arguments)
    arguments = [argument for argument in arguments if argument not in QUIET]
    if arguments[:1] == ["--version"]:
        print(f"cbm {VERSION}")
        return
    _end_words_at_equals()
    if not quiet:
        _say_what_begins(arguments)
    try:
        from cbm.commands.tree import run  # after the first line

        status = run(arguments, quiet)
        sys.stdout.flush()
    except UserError as error:
        stop(error)
    except KeyboardInterrupt:  # while the libraries are loaded
        stop("interrupted", status=130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            stop_writing(error)
        if isinstance(error, OSError) and error.filename is not None:  # what no reader or writer has put in words
            stop(f"cannot use '{as_text(os.fsdecode(error.filename))}': {error.strerror or error}")
        if isinstance(error, ModuleNotFoundError):
            stop_without(error)
        if isinstance(error, UnicodeEncodeError) and not is_text(error.object):
            stop(f"'{as_text(error.object)[-200:]}' is not a name in UTF-8: rename what is called so")
        if not hasattr(error, "format_message"):  # what the parser of the command line says has it
            raise
        _explain_usage(error, arguments)
    sys.exit(status or 0)


def _end_words_at_equals() -> None:
    """Bash takes the ``=`` of ``method=`` for a word: what is completed there begins after it."""
    words, place = os.environ.get("COMP_WORDS", "").split(), os.environ.get("COMP_CWORD", "")
    if place.isdecimal() and words[int(place) : int(place) + 1] == ["="]:
        os.environ["COMP_CWORD"] = str(int(place) + 1)


def _say_what_begins(arguments: list[str]) -> None:
    """The first line of a command, in the first of several processes only."""
    asks_for_help = {"--help", "-h", "--cfg", "-c", "--info", "--show-completion"} & set(arguments)
    completes = any(name.endswith("_COMPLETE") for name in os.environ)
    if not arguments or asks_for_help or completes or process_rank() != 0:
        return
    command = " ".join(arguments[:2]) if " ".join(arguments[:2]) in BEGINS else arguments[0]
    if command in BEGINS:
        print(f"cbm {command}: {BEGINS[command]}", file=sys.stderr, flush=True)


def _explain_usage(error: Any, arguments: list[str]) -> NoReturn:
    """One line for a command, option or argument that is wrong or missing."""
    from cbm.commands.tree import command_names

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    message = error.format_message().strip().rstrip(".")
    group = arguments[0] if len(arguments) > 1 and arguments[0] in GROUPS else None
    if match := re.match(r"No such command '([^']*)'", message):
        message = f"no command '{match[1]}': {did_you_mean(match[1], command_names(group))}"
    elif context := getattr(error, "ctx", None):
        message = f"{message[:1].lower()}{message[1:]} ({context.command_path} --help says more)"
    stop(message)
