"""Upload a trained model to the Hugging Face hub as a folder, and download it again.

The folder holds ``config.yaml``, ``model.safetensors``, ``bank/``, ``about.json``, ``metrics.json`` and ``README.md``
(the model card), and nothing that is executed. Paths of this computer are not uploaded, nor is the source card, which
holds features of images.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from cbm.errors import UserError
from cbm.files.network import is_network_error, offline_if_unreachable

FILES = [
    "config.yaml",
    "model.safetensors",
    "bank/bank.json",
    "bank/embeddings.safetensors",
    "about.json",
    "metrics.json",
    "README.md",
]


def push(save: Callable[[Path], object], repo: str, *, private: bool, message: str) -> str:
    """Upload a folder; returns its address.

    Args:
        save: function that writes the folder to a path that does not exist yet.
        repo: repository, ``ORG/NAME``.
        private: whether a repository that is created now is private.
        message: commit message.

    Raises:
        UserError: the hub cannot be reached, nobody is logged in, or the organisation does not exist.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="cbm-hub-") as temporary:
        save(folder := Path(temporary) / "model")
        try:
            with offline_if_unreachable():
                api = HfApi()
                place = api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=FILES)
        except Exception as error:  # of the hub's client and of what it stands on
            raise _hub_error(f"cannot upload to '{repo}'", error) from error
    return str(place)


def pull(name: str) -> Path:
    """Download our files of ``ORG/NAME`` or ``ORG/NAME@REVISION`` unless they are in the cache; returns their folder.

    Raises:
        UserError: no such repository, or it is not in the cache and the hub cannot be reached.
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
    """One line for an exception of the hub's client."""
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
