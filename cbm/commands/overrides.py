"""What is typed after ``cbm train`` and ``cbm eval``, as Hydra wants it: paths in quotes, options first."""

import os
from pathlib import Path

from cbm import config


def for_hydra(overrides: list[str], name: str) -> list[str]:
    """The arguments of Hydra.

    Args:
        overrides: what was typed.
        name: the config that is composed (``train`` or ``eval``).
    """
    arguments = [quoted_path(_bank_path_to_source(argument)) for argument in overrides]
    arguments = _any_teacher(_reader_settings(_own_configs(arguments), name))
    return sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))  # options first


def _own_configs(arguments: list[str]) -> list[str]:
    """``configs/`` of the working folder adds choices: ``configs/encoder/mine.yaml`` is ``encoder=mine``."""
    own = Path(config.CONFIGS.name)
    said = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    if said or not own.is_dir() or own.samefile(config.CONFIGS):
        return arguments
    return [f"--config-dir={own.resolve()}", *arguments]


def _bank_path_to_source(argument: str) -> str:
    """``concepts=FILE`` (or ``discovered:RUN``) means ``concepts.source=FILE`` unless FILE is the name of a shipped
    bank."""
    key, equals, value = argument.partition("=")
    if key == "concepts" and equals and not set(value.split(",")) <= set(config.choices("concepts")):
        looks_like_file = any(set("./:") & set(part) or Path(part).is_dir() for part in value.split(","))
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
    return in_quotes(key, value)


def in_quotes(key: str, value: str) -> str:
    """``KEY=VALUE`` with the value in the quotes of Hydra."""
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
            argument = in_quotes(key, value)
        setting = chosen and equals and key.startswith("dataset.args.")
        found.append(f"++{argument}" if setting else argument)
    return found
