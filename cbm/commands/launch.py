"""``cbm train`` and ``cbm eval``: Hydra underneath, one clear line for every mistake.

Hydra's own messages for a misspelt key or choice are several lines of library speech. ``launch`` lets Hydra raise,
and says in one line what was wrong and what is near.
"""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cbm import config
from cbm.commands.explain import explain, explain_unchosen
from cbm.commands.overrides import for_hydra
from cbm.errors import UserError
from cbm.files.console import say, stop, stop_without
from cbm.files.inert import one_line
from cbm.files.loading import call_in

log = logging.getLogger("cbm")


def train(cfg: DictConfig) -> float:
    """Train as configured; returns the test accuracy, of labels their mean AUROC (what a Hydra sweeper optimises)."""
    from cbm.run import train

    metrics = train(cfg)
    return metrics["test/auroc_macro" if "test/auroc_macro" in metrics else "test/accuracy"]


def evaluate(cfg: DictConfig) -> float:
    """Evaluate as configured; returns the accuracy, of labels their mean AUROC."""
    from cbm.run import evaluate

    metrics = evaluate(cfg)
    return metrics[f"{cfg.split}/auroc_macro" if f"{cfg.split}/auroc_macro" in metrics else f"{cfg.split}/accuracy"]


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
    if nameless := next((override for override in overrides if override.startswith("=")), None):
        stop(f"cannot read '{nameless}': expected KEY=VALUE")
    if "encoder=null" in overrides:  # Hydra knows no choice of nothing
        stop("encoder=null: say encoder=auto (no encoder is loaded for features), or encoder=NAME")
    arguments = for_hydra(overrides, name)
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
            say(f"error: {one_line(str(error))} ({which})", beside=True)
            raise  # Hydra goes on with the other runs and raises it again at the end
        except ModuleNotFoundError as error:
            stop_without(error)
            raise
        except KeyboardInterrupt:
            stop("interrupted; run the same command again to go on from the last checkpoint", status=130)

    sys.argv = [typed[0], *arguments]  # where Hydra reads them
    try:
        with nothing_called():
            hydra.main(version_base="1.3", config_path=str(config.CONFIGS), config_name=name)(job)()
    except CalledError as error:
        stop(error)
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


class CalledError(UserError):
    """Settings that say what is to be called."""


@contextmanager
def nothing_called() -> Iterator[None]:
    """While Hydra runs, it calls nothing that settings name, but its own launchers and sweepers.

    It would make its callbacks and log formatters from any function's name in a card or in ``configs/`` of the working
    folder, which may be somebody else's.
    """
    load = ConfigLoaderImpl.load_configuration

    def checked(*args: Any, **kwargs: Any) -> DictConfig:
        cfg = load(*args, **kwargs)
        plugins = ("launcher._target_", "sweeper._target_")  # of which Hydra takes no others
        if key := call_in(OmegaConf.to_container(cfg.hydra, resolve=False), plugins):
            raise CalledError(f"'hydra.{key}' names something to call, which no setting may: take it out")
        return cfg

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


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
