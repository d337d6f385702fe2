"""``cbm train`` and ``cbm eval``: Hydra underneath, one clear line for every mistake.

Hydra's own messages for a misspelt key or choice are several lines of library speech. ``launch`` lets Hydra raise,
and says in one line what was wrong and what is near.
"""

import argparse
import functools
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cbm import config
from cbm.errors import UserError, did_you_mean
from cbm.files.console import stop, stop_without
from cbm.files.shipped import install_command

log = logging.getLogger("cbm")


def train(cfg: DictConfig) -> float:
    """Train as configured; returns the test accuracy (what a Hydra sweeper optimises)."""
    from cbm.run import train

    return train(cfg)["test/accuracy"]


def evaluate(cfg: DictConfig) -> float:
    """Evaluate as configured; returns the accuracy."""
    from cbm.run import evaluate

    return evaluate(cfg)[f"{cfg.split}/accuracy"]


TASKS: dict[str, Callable[[DictConfig], object]] = {"train": train, "eval": evaluate}


def launch(name: str, overrides: list[str]) -> None:
    """Compose ``configs/NAME.yaml`` with the command line and run it; exit status 2 on bad input.

    Args:
        name: ``train`` or ``eval``.
        overrides: what was typed after it.
    """
    try:
        config.register()
        _check_choices(overrides)
    except UserError as error:  # a card or a choice that cannot be read
        stop(error)
    if hidden := config.replaced_in_vain():
        log.warning(
            "not used, because cbm has a choice of that name: %s; call it otherwise", ", ".join(map(str, hidden))
        )
    arguments = [quoted_path(_bank_path_to_source(argument)) for argument in overrides]
    if nameless := next((argument for argument in arguments if argument.startswith("=")), None):
        stop(f"cannot read '{nameless}': expected KEY=VALUE")
    if "encoder=null" in arguments:  # Hydra knows no choice of nothing
        stop("encoder=null: say encoder=auto (no encoder is loaded for features), or encoder=NAME")
    arguments = _any_teacher(_reader_settings(_own_configs(arguments), name))
    arguments.sort(key=lambda argument: "=" in argument and not argument.startswith("-"))  # Hydra wants options first
    # threads that wait sleep: spinning ones make small steps ten times slower where another process wants the core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach us instead of being printed by Hydra
    _check_options(name, arguments)
    typed, task = list(sys.argv), TASKS[name]

    @functools.wraps(task)
    def job(cfg: DictConfig) -> object:
        sys.argv = typed  # further processes of the training begin with what was typed
        try:
            return task(cfg)
        except UserError as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                stop(error)
            which = " ".join(HydraConfig.get().overrides.task)
            print(f"error: {' '.join(str(error).split())} ({which})", file=sys.stderr)
            raise  # Hydra goes on with the other runs and raises it again at the end
        except ModuleNotFoundError as error:
            stop_without(error)
            raise
        except KeyboardInterrupt:
            stop("interrupted; run the same command again to go on from the last checkpoint", status=130)

    sys.argv = [typed[0], *arguments]  # where Hydra reads them
    try:
        hydra.main(version_base="1.3", config_path=str(config.CONFIGS), config_name=name)(job)()
    except UserError:
        stop("not every run of the sweep could be made, see above; the same command skips those that were")
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error, name, arguments))
    except AssertionError as error:
        if "Unexpected type" not in str(error) or "None" not in str(error):
            raise
        stop(explain_unchosen(arguments))
    finally:
        sys.argv = typed


def _own_configs(arguments: list[str]) -> list[str]:
    """``configs/`` of the working folder adds choices: ``configs/encoder/mine.yaml`` is ``encoder=mine``."""
    own = Path(config.CONFIGS.name)
    said = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    if said or not own.is_dir() or own.samefile(config.CONFIGS):
        return arguments
    return [f"--config-dir={own.resolve()}", *arguments]


def _check_options(name: str, arguments: list[str]) -> None:
    """Stop with one line at an option that Hydra does not know, whose own answer is a page."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            stop(f"{message} (cbm {name} --help says more)")

    parser = get_args_parser()
    parser.__class__ = Parser
    parser.parse_args(arguments)


def _check_choices(overrides: list[str]) -> None:
    """Raise a ``UserError`` if the file of a choice cannot be read."""
    for override in overrides:
        group, _, names = override.partition("=")
        for name in names.split(","):
            file_group = "encoder" if group == "teacher" else group
            if file_group in config.groups() and name in config.config_files(file_group) and group != "dataset":
                config.read_choice(file_group, name)


def _bank_path_to_source(argument: str) -> str:
    """``concepts=FILE`` means ``concepts.source=FILE`` unless FILE is the name of a shipped bank."""
    key, equals, value = argument.partition("=")
    if key == "concepts" and equals and not set(value.split(",")) <= set(config.choices("concepts")):
        looks_like_file = any("." in part or "/" in part or Path(part).is_dir() for part in value.split(","))
        return f"concepts.source={value}" if looks_like_file else argument
    return argument


def quoted_path(argument: str) -> str:
    """An argument whose value is a path that exists, in the quotes that Hydra wants around any of ``=,[]{}()``.

    Example:
        >>> quoted_path("method=labo")
        'method=labo'
    """
    key, equals, value = argument.partition("=")
    special = set(value) & set("=,[]{}()#;:'\"$ ")
    if not equals or not special or value[:1] in ("'", '"') or not os.path.lexists(Path(value).expanduser()):
        return argument
    return _quoted(key, value)


def _quoted(key: str, value: str) -> str:
    return f"{key}='" + value.replace("'", "\\'") + "'"


def _any_teacher(arguments: list[str]) -> list[str]:
    """``teacher.model=NAME`` works without a choice of ``teacher=``, and so does ``teacher=null``, the default."""
    arguments = [a for a in arguments if a != "teacher=null"]
    if any(a.startswith("teacher.") for a in arguments) and not any(a.startswith("teacher=") for a in arguments):
        return [*arguments, "teacher=any"]
    return arguments


def _reader_settings(arguments: list[str], name: str) -> list[str]:
    """``dataset.args.KEY=VALUE`` works for every setting of a reader, not for those only that its card names.

    The reader refuses what it does not know. A regular expression is taken as it is written.
    """
    chosen = name == "train" or any(argument.startswith("dataset=") for argument in arguments)
    found = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "dataset.args.subject_pattern" and value[:1] not in ("'", '"', ""):
            quoted = value.replace("'", "\\'")
            argument = f"{key}='{quoted}'"
        setting = chosen and equals and key.startswith("dataset.args.")
        found.append(f"++{argument}" if setting else argument)
    return found


def explain(error: Exception, name: str, arguments: list[str]) -> str:
    """One line for an exception of Hydra or OmegaConf.

    Args:
        error: what was raised while composing.
        name: the config being composed (``train`` or ``eval``).
        arguments: the command line overrides.
    """
    text = " ".join(str(cause) for cause in _chain(error))
    ambiguous = re.search(r"Ambiguous value for argument '(.*?)'\n", text)
    if isinstance(error, OverrideParseException) or ambiguous:
        override = ambiguous[1] if ambiguous else error.override  # type: ignore[attr-defined]
        key, equals, value = override.partition("=")
        if not equals:
            return f"cannot read '{override}': expected KEY=VALUE, {did_you_mean(key, known_keys(name, []))}"
        many = ", or -m for a run with each" if "," in value else ""
        words = _quoted(key, value)
        shown = shlex.quote(words) if set(words) & set('"$`\\!') else f'"{words}"'
        return f"cannot read '{override}': around any of = , # [ ] {{ }} ( ) a value needs quotes, twice: {shown}{many}"
    if match := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, choice = match.groups()
        if group == "hydra":
            return (
                f"'{choice}' needs a plugin that is not installed: {install_command('sweep')} "
                "(launcher=ray: the package hydra-ray-launcher)"
            )
        any_model = f" (any open_clip model: {group}.model=NAME {group}.pretrained=TAG)"
        hint = any_model if group in ("encoder", "teacher") else ""
        return f"unknown {group} '{choice}': {did_you_mean(choice, config.choices(group))}{hint}"
    if match := re.search(r"Key '([^']+)' (?:is not in struct|not in)", text) or re.search(
        r"Could not override '([^']+)'", text
    ):
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else match.group(1)
        return f"unknown setting '{key}': {did_you_mean(key, known_keys(name, arguments))}"
    if match := re.search(r"(Value .*?|Cannot convert .*?|Invalid .*?)\s*full_key: (\S+)", text, re.DOTALL):
        return f"{match.group(2)}: {match.group(1).strip()}"
    if match := re.search(r"Missing mandatory value: (\S+)|full_key: (\S+)", text):
        key = match.group(1) or match.group(2)
        return f"'{key}' is needed: say {key}=..."
    return next((str(cause) for cause in _chain(error) if str(cause)), type(error).__name__).split("\nfull_key")[0]


def explain_unchosen(arguments: list[str]) -> str:
    """One line for a setting of a group of which nothing was chosen (``dataset.root=...`` without ``dataset=...``)."""
    settings = [a.partition("=")[0] for a in arguments if "=" in a]
    for setting in settings:
        group = setting.partition(".")[0]
        if group != setting and group in config.groups() and group not in settings:
            return (
                f"'{setting}' belongs to a {group}: say {group}=... too ({', '.join(config.choices(group)[:6])}, ...)"
            )
    return "a setting of something that was not chosen"


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def known_keys(name: str, arguments: list[str]) -> list[str]:
    """Every setting that exists in the configuration chosen by the group choices among ``arguments``."""
    chosen = [a for a in arguments if "=" in a and a.partition("=")[0] in config.groups() and "," not in a]
    try:
        with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
            composed = hydra.compose(name, overrides=chosen)
    except (HydraException, OmegaConfBaseException):
        return known_keys(name, []) if chosen else []  # what was chosen may be what is wrong
    keys: list[str] = []

    def walk(settings: dict[Any, Any], prefix: str) -> None:
        for key, value in settings.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    container: Any = OmegaConf.to_container(composed)
    walk(container, "")
    return keys
