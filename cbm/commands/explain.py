"""One line for what Hydra says about a mistake: what was wrong, and what is near."""

import re
import shlex
from typing import Any

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cbm import config
from cbm.commands.overrides import in_quotes
from cbm.errors import did_you_mean
from cbm.files.shipped import install_command


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
        words = in_quotes(key, value)
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
