"""The command line that a configuration came from, as short as the defaults allow."""

import re
import shlex
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cbm import config as schema
from cbm.errors import UserError
from cbm.files.shipped import script_command

NOT_REPEATED = {"run_dir", "cache", "overwrite", "report", "trainer.progress", "trainer.checkpoint_seconds"}
"""Settings that say where a run is written, not what it is."""


def reproduce_command(cfg: DictConfig) -> str:
    """``python train.py ...`` (without a checkout ``cbm train ...``) with all of ``cfg`` that is not a default."""
    wanted: Any = OmegaConf.to_container(cfg, resolve=True)
    words = []
    defaults: dict[str, Any] = dict(OmegaConf.to_container(OmegaConf.structured(schema.TrainConfig)))  # type: ignore[arg-type]
    for group, choice in _choices(wanted).items():
        if choice is not None and (group, choice) != ("encoder", "auto"):
            words.append(f"{group}={choice}")
        defaults[group] = _defaults(group, choice)
    known = _flat(defaults)
    for key, value in _flat(wanted).items():
        if key == "encoder" and value is None:
            continue  # features are given: encoder=auto is none
        if key not in NOT_REPEATED and not key.startswith("logger.") and (key not in known or known[key] != value):
            new = "+" if key.startswith("dataset.args.") and key not in known else ""  # Hydra wants it said
            words.append(f"{new}{key}={_value(value)}")
    return " ".join([script_command("train"), *(shlex.quote(word) for word in words)])


def _choices(wanted: dict[str, Any]) -> dict[str, str | None]:
    """The config file each group was read from, or None where it cannot be told."""
    encoder = None
    for name in schema.choices("encoder"):
        try:
            card = schema.read_choice("encoder", name)
        except UserError:  # a file of the working folder that is no encoder's
            continue
        own = wanted["encoder"] or {"model": "auto"}
        if all(card.get(key) == own.get(key) for key in ("model", "pretrained")):
            encoder = name
    method, dataset = wanted["method"]["name"], wanted["dataset"]["name"]
    return {
        "method": method if method in schema.choices("method") else None,
        "dataset": dataset if dataset in schema.card_names() else None,
        "encoder": encoder,
    }


def _defaults(group: str, choice: str | None) -> Any:
    typed = {"dataset": schema.DatasetConfig, "encoder": schema.EncoderConfig}
    base = OmegaConf.to_container(OmegaConf.structured(typed[group])) if group in typed else {}
    if choice is None:
        return base
    return {**base, **schema.read_choice(group, choice)}  # type: ignore[dict-item]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_value(item) for item in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@%+-]+", value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
