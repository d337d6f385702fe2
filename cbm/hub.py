"""A trained model as a folder that can be given away, and its way to the Hugging Face hub and back.

The folder holds ``config.yaml``, ``model.safetensors``, ``bank/``, ``about.json``, ``metrics.json`` and ``README.md``
(the model card), nothing that is executed. The hub gets no path of this computer, and no source card, which holds
features of pictures.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cbm.errors import UserError
from cbm.files import PROJECT, write_atomically
from cbm.layers import save_model
from cbm.network import is_network_error, offline_if_unreachable

if TYPE_CHECKING:
    from cbm.trained import TrainedModel

FILES = ["config.yaml", "model.safetensors", "bank/bank.json", "bank/embeddings.safetensors", "about.json",
         "metrics.json", "README.md"]  # fmt: skip


def save_folder(model: "TrainedModel", folder: Path, repo: str | None = None) -> Path:
    """Write the model as it is now, for ``cbm.load(folder)``; returns the folder.

    The metrics of a model that was changed after training are left out: nobody has measured it.

    Args:
        model: what to write.
        folder: a new one.
        repo: the repository of the hub it is for.

    Raises:
        UserError: the folder is there already.
    """
    from cbm.report.model_card import model_card

    if folder.exists():
        raise UserError(f"'{folder}' is there already: remove it or choose another folder")
    config: Any = OmegaConf.to_container(model.config)
    about = {**model.about, "changes": [str(change) for change in model.changes]}
    bank = model.bank
    if repo is not None:
        config = {**without_paths(config), "run_dir": None, "cache": "cache"}
        about = without_paths(about)
        if bank is not None:
            concepts = tuple(replace(c, provenance=without_paths(c.provenance)) for c in bank.concepts)
            bank = replace(bank, source=without_paths(bank.source), concepts=concepts)
    metrics = json.loads((model.path / "metrics.json").read_text())
    if model.changes:
        about |= {"verdict": None, "integrity": None}
        metrics = {}
    save_model(model.model, folder / "model.safetensors")
    if bank is not None:
        bank.save(folder / "bank")
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode())
    place = str(folder) if repo is None else f"hf-hub:{repo}"
    write_atomically(folder / "README.md", model_card(model, place, config, about, metrics).encode())
    for name, content in (("about.json", about), ("metrics.json", metrics)):  # the last says: finished
        write_atomically(folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode())
    if repo is None and (card := model.path / "source_card.safetensors").is_file():
        shutil.copyfile(card, folder / card.name)
    return folder


def without_paths(value: Any) -> Any:
    """Settings without absolute paths: those inside the project are seen from there, others lose their folder."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    schema, mark, rest = value.rpartition(":") if ":/" in value and "://" not in value else ("", "", value)
    path = Path(rest)
    if not path.is_absolute() and not rest.startswith("~"):
        return value
    return schema + mark + (str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name)


def push(model: "TrainedModel", repo: str, *, private: bool, message: str) -> str:
    """Upload the folder of a model; returns where it is.

    Raises:
        UserError: no network, nobody logged in, or no such organisation.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="cbm-hub-") as temporary:
        folder = save_folder(model, Path(temporary) / "model", repo)
        try:
            with offline_if_unreachable():
                api = HfApi()
                place = api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=FILES)
        except Exception as error:  # of the hub's client and of what it stands on
            raise _hub_error(f"cannot upload to '{repo}'", error) from error
    return str(place)


def pull(name: str) -> Path:
    """The folder of ``ORG/NAME`` or ``ORG/NAME@REVISION``, downloaded if it is not here yet; only our files.

    Raises:
        UserError: no such repository, or it is not here and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        with offline_if_unreachable():
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=FILES))
    except Exception as error:  # of the hub's client and of what it stands on
        raise _hub_error(f"cannot download 'hf-hub:{name}'", error) from error
    if not (folder / "config.yaml").is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(f"'hf-hub:{name}' is no model of cbm: it has no config.yaml and model.safetensors")
    return folder


def _hub_error(what: str, error: Exception) -> UserError:
    """The one line for whatever the hub's client raised."""
    from huggingface_hub import errors

    if isinstance(error, UserError):
        return error
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return UserError(f"{what}: not allowed; log in with `hf auth login`, or choose another name ({reason})")
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError):
        return UserError(f"{what}: {reason}")
    if is_network_error(error):
        return UserError(f"{what}: the hub cannot be reached from here ({reason})")
    return UserError(f"{what}: {reason}")
