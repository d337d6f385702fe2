"""Encoders come from strangers. What their files say chooses among parts of the libraries; no code in them is run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from cbm.errors import UserError, did_you_mean
from cbm.files.loading import tensors_only

CLEANING = ("canonicalize", "lower", "whitespace")
TOKENIZER_SETTINGS = {"clean": (str, CLEANING), "strip_sep_token": (bool, None), "language": (str, None)}
"""What ``tokenizer_kwargs`` may say, with its type and values: open_clip's own words but for files and caches. All
others would go to the transformers library (``trust_remote_code`` among them)."""


MOST_LAYERS = 1000
"""Of a tower: a billion of them would be made one after the other, for ever."""
LARGEST_SIDE = 4096
"""Pixels along a side of what a tower reads."""


def check_folder(folder: Path, id: str) -> None:
    """Raise a ``UserError`` unless an encoder folder holds files and folders only: a pipe would be waited for."""
    for path in folder.iterdir():
        if not path.is_file() and not path.is_dir():
            raise UserError(f"encoder '{id}': '{path.name}' is neither a file nor a folder")


def check_settings(config: Any, id: str) -> None:
    """Raise a ``UserError`` if the ``model_cfg`` of an encoder asks a library for more than its own parts.

    Args:
        config: of ``open_clip_config.json``, or of a model that open_clip knows.
        id: the encoder, for the message.
    """
    import timm

    where = f"encoder '{id}', open_clip_config.json"
    for part in ("text_cfg", "vision_cfg"):
        if not isinstance(config, dict) or not isinstance(config.get(part), dict):
            raise UserError(f"{where}: no settings 'model_cfg.{part}'")
    text, vision = config["text_cfg"], config["vision_cfg"]
    for part in (text, vision):
        layers = part.get("layers", 0)
        for count in layers if isinstance(layers, list) else [layers]:
            _check_layers(count, where)
    name = vision.get("timm_model_name")
    if name is not None and not (isinstance(name, str) and timm.is_model(name)):
        near = did_you_mean(str(name), timm.list_models())
        raise UserError(f"{where}: timm_model_name '{name}' is no model of the timm library {near}".rstrip())
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if not isinstance(text.get(key, ""), str | None):
            raise UserError(f"{where}: {key} is {text[key]!r}: expected a name")
    settings = text.get("tokenizer_kwargs", {})
    if not isinstance(settings, dict):
        raise UserError(f"{where}: tokenizer_kwargs are {settings!r}: expected settings")
    for key, value in settings.items():
        if key not in TOKENIZER_SETTINGS:
            near = did_you_mean(key, TOKENIZER_SETTINGS)
            raise UserError(f"{where}: the tokenizer setting '{key}' is not allowed, {near}")
        kind, choices = TOKENIZER_SETTINGS[key]
        if not isinstance(value, kind) or (choices is not None and value not in choices):
            expected = f"a {kind.__name__}" if choices is None else did_you_mean(str(value), choices)
            raise UserError(f"{where}: the tokenizer setting '{key}' is {value!r}: {expected}")


def _check_layers(count: Any, where: str) -> None:
    if not isinstance(count, int) or count > MOST_LAYERS:
        raise UserError(f"{where}: {count!r} layers: expected at most {MOST_LAYERS:,}")


def check_preprocessing(network: Any, preprocess: Any, id: str) -> None:
    """Prepare a small picture as the encoder's files say, so that what is wrong with them is found when it is loaded.

    Raises:
        UserError: pictures would be made of a size that no tower reads.
        Exception: what the preprocessing raises.
    """
    from open_clip import get_model_preprocess_cfg

    size = get_model_preprocess_cfg(network).get("size")
    for side in size if isinstance(size, list | tuple) else [size]:
        if side is not None and not (isinstance(side, int) and 0 < side <= LARGEST_SIDE):
            raise UserError(f"encoder '{id}' wants pictures of size {size!r}: expected 1 to {LARGEST_SIDE:,} pixels")
    preprocess(Image.new("RGB", (32, 32)))


@contextmanager
def no_foreign_code(id: str) -> Iterator[None]:
    """While a library reads encoder ``id``: Python code is neither imported from its files nor asked about.

    Text towers and tokenizers are classes of the transformers library, made with ``trust_remote_code=False``; what
    that library has for code of others is closed besides. Pickled weights are read as tensors and nothing else,
    whatever the environment says.

    Raises:
        UserError: the encoder cannot do without code of its own.
    """
    from open_clip import hf_model
    from transformers import dynamic_module_utils
    from transformers.models.auto import tokenization_auto

    refusal = UserError(f"encoder '{id}' brings Python code of its own, which is never run")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise refusal

    class Config:
        """``AutoConfig`` for a text tower."""

        @staticmethod
        def from_pretrained(name: str) -> Any:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if config.model_type not in hf_model.arch_dict or not _of_transformers(type(config)):
                known = did_you_mean(str(config.model_type), hf_model.arch_dict)
                raise UserError(f"encoder '{id}': a text tower of type '{config.model_type}', {known}")
            _check_layers(getattr(config, "num_hidden_layers", 0) or 0, f"encoder '{id}', its text tower")
            if config._attn_implementation not in (None, "eager", "sdpa"):  # others are fetched, and are code
                raise UserError(f"encoder '{id}': attention by '{config._attn_implementation}': expected eager or sdpa")
            return config

    class Model:
        """``AutoModel`` for a text tower: its weights are with those of the encoder."""

        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            raise UserError(f"encoder '{id}' has no weights")

        @staticmethod
        def from_config(config: Any, **kwargs: Any) -> Any:
            from transformers import AutoModel

            return AutoModel.from_config(config, trust_remote_code=False, **kwargs)

    find = tokenization_auto.tokenizer_class_from_name

    def tokenizer_class(name: str) -> Any:
        found = find(name)
        if found is not None and not _is_tokenizer(found):  # the name may be that of anything in the library
            raise UserError(f"encoder '{id}': its tokenizer is said to be '{name}', which is no tokenizer")
        return found

    with ExitStack() as stack:
        for module, name, value in (
            (hf_model, "AutoConfig", Config),
            (hf_model, "AutoModel", Model),
            (tokenization_auto, "tokenizer_class_from_name", tokenizer_class),
            (dynamic_module_utils, "get_cached_module_file", refuse),
            (dynamic_module_utils, "get_class_in_module", refuse),
            (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),  # seconds to wait for somebody's yes
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        stack.enter_context(tensors_only())
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise refusal from error
            raise


def _is_tokenizer(kind: Any) -> bool:
    from transformers import PreTrainedTokenizerBase

    missing = getattr(kind, "__module__", "").startswith("transformers.utils.dummy")  # says which package it needs
    return missing or (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase) and _of_transformers(kind))


def _of_transformers(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")
