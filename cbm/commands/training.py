"""``cbm train`` and ``cbm eval``: Hydra's command line, inside the one of all commands."""

import logging
import os
from typing import Annotated

import typer

from cbm import config

HYDRA = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""What begins with a dash is for Hydra, ``--help`` too."""
SETTINGS = ("cache", "edits", "run", "run_dir", "seed", "shots", "split")
"""Settings that are typed often, beside the groups."""


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``cbm``."""
    app.command(context_settings=HYDRA)(train)
    app.command(name="eval", context_settings=HYDRA)(evaluate)


def near(incomplete: str) -> list[str]:
    """Overrides that begin so, for the completion of a shell: ``meth`` to ``method=``, ``method=s`` to its choices."""
    words = os.environ.get("COMP_WORDS", "").split()[: int(os.environ.get("COMP_CWORD") or 0)]
    if len(words) > 1 and words[-1] == "=":  # bash takes method=labo for three words, and completes the last
        return [name for name in _choices(words[-2]) if name.startswith(incomplete)]
    group, equals, _ = incomplete.partition("=")
    if equals:
        words = [f"{group}={choice}" for choice in _choices(group)]
    else:
        words = [f"{name}=" for name in (*config.groups(), *SETTINGS)]
    return [word for word in words if word.startswith(incomplete)]


def _choices(group: str) -> list[str]:
    return config.choices(group) if group in config.groups() else []


Overrides = Annotated[
    list[str] | None, typer.Argument(help="method=NAME dataset=NAME KEY=VALUE ...", autocompletion=near)
]


def train(overrides: Overrides = None) -> None:
    """Train a model: `cbm train method=labo dataset=birds` (`--help`: the choices, `--cfg job`: all settings)."""
    from cbm.commands.launch import launch

    loud = logging.getLogger("cbm").isEnabledFor(logging.INFO)
    launch("train", [*(overrides or []), *([] if loud else ["trainer.progress=false"])])


def evaluate(overrides: Overrides = None) -> None:
    """Evaluate a run, with edits or on another data set: `cbm eval run=runs/NAME split=test edits=edits.yaml`."""
    from cbm.commands.launch import launch

    launch("eval", overrides or [])
