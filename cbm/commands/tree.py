"""All commands, as a tree that the parser of the command line reads."""

import logging
from typing import Any

import typer

from cbm.commands import audit, banks, cache, datasets, doctor, features, label, name, predict, propose, runs, training
from cbm.files.console import set_up_logging
from cbm.files.streams import print_what_can_be

app = typer.Typer(
    help="Concept bottleneck models on frozen image features: train, explain, correct.",
    epilog="--quiet (-q), with any command: results and errors only. --version: of this installation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},  # of all commands below it
)
training.add_to(app)
app.add_typer(datasets.app, name="datasets")
app.add_typer(banks.app, name="concepts")
features.add_to(app)
predict.add_to(app)
runs.add_to(app)
label.add_to(app)
audit.add_to(app)
propose.add_to(app)
name.add_to(app)
doctor.add_to(app)
app.add_typer(cache.app, name="cache")


def run(arguments: list[str], quiet: bool) -> int | None:
    """Run a command; returns its exit status, or None.

    Args:
        arguments: the command and what follows it.
        quiet: whether only results and errors are written.
    """
    set_up_logging()
    print_what_can_be()
    if quiet:
        logging.getLogger("cbm").setLevel("ERROR")
    return app(arguments, standalone_mode=False, prog_name="cbm")


def command_names(group: str | None) -> list[str]:
    """The commands, or those of a group."""
    tree: Any = typer.main.get_command(app)
    return list((tree.commands[group] if group else tree).commands)
