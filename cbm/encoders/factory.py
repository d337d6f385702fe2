"""``create_encoder``: from a name on the command line to a frozen encoder."""

from pathlib import Path
from typing import Any

import torch

from cbm.encoders import image_only, open_clip
from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path
from cbm.files.network import is_network_error, offline_if_unreachable


def create_encoder(
    model: str, pretrained: str | None = None, *, precision: str = "bf16", device: str = "auto", seed: int = 0
) -> Encoder:
    """Load a frozen encoder.

    Args:
        model: an open_clip model name, ``hf-hub:ORG/NAME``, ``local-dir:PATH``, ``timm:NAME`` or ``torchvision:NAME``.
        pretrained: tag of an open_clip model; ``default`` or ``random`` for image-only backbones.
        precision: autocast precision on a GPU: ``fp32``, ``bf16`` or ``fp16``.
        device: device of the encoder: ``auto``, ``cpu``, ``cuda`` ...
        seed: random seed for the weights of a ``random`` backbone.

    Raises:
        UserError: the model or tag is unknown (the message names the nearest), or the weights are not available.
    """
    device = resolve_device(device)
    schema, mark, name = model.partition(":")  # the first: a Windows path has another
    schema, name = (schema, name) if mark else ("", model)
    id = f"{model}/{pretrained}" if pretrained else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if schema in ("timm", "torchvision"):
            network, preprocess, forced = _fetch(id, image_only.load, schema, name, pretrained)
            return image_only.ImageEncoder(id, network, preprocess, precision=precision, device=device, forced=forced)
        spec, pretrained = _check(model, pretrained)
        network, preprocess, tokenizer, forced = _fetch(id, open_clip.load, spec, pretrained, device)
        return open_clip.ClipEncoder(
            id, network, preprocess, tokenizer, precision=precision, device=device, forced=forced
        )


def load_encoder(settings: Any) -> Encoder:
    """The encoder of a configuration (``cbm.config.EncoderConfig``)."""
    return create_encoder(settings.model, settings.pretrained, precision=settings.precision, device=settings.device)


def resolve_device(device: str) -> str:
    """The name of the device; ``auto`` stands for the GPU if there is one.

    Raises:
        UserError: a GPU is requested and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device '{device}' was asked for, but torch sees no GPU here: use device=auto or cpu")
    return device


def _check(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """The model and tag as open_clip expects them; raises an error that names the nearest."""
    import open_clip as library

    schema, mark, name = model.partition(":")  # the first: a Windows path has another
    schema, name = (schema, name) if mark else ("", model)
    if schema == "local-dir":
        folder = resolve_path(name)
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"encoder '{model}': no open_clip_config.json in '{name}' (an open_clip model folder)")
        return f"local-dir:{folder}", None
    if schema == "hf-hub":
        return model, None
    if schema:
        kinds = ["hf-hub", "local-dir", "timm", "torchvision"]
        raise UserError(f"encoder '{model}': unknown prefix '{schema}:', {did_you_mean(schema, kinds)}")
    name = name.replace("/", "-")
    if name not in library.list_models():
        raise UserError(f"unknown encoder '{model}': {did_you_mean(name, library.list_models())}")
    tags = library.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise UserError(f"encoder '{model}' needs encoder.pretrained=TAG, one of {', '.join(tags)}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(f"encoder '{model}' has no weights '{pretrained}': {did_you_mean(pretrained, tags)}")
    return name, pretrained


def _fetch(id: str, load, *args):
    """Run a loader; raises an error with advice if the weights cannot be downloaded or read."""
    try:
        with offline_if_unreachable():
            return load(*args)
    except UserError:
        raise
    except Exception as error:  # a dozen libraries may stand between us and the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if is_network_error(error):
            raise UserError(
                f"the weights of encoder '{id}' are not on this machine and cannot be downloaded: connect once, or "
                f"copy the model folder here and use encoder.model=local-dir:PATH ({reason})"
            ) from error
        raise UserError(f"encoder '{id}' cannot be loaded: {reason}") from error
