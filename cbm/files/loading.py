"""What may be loaded from files of others: plain data. No pickle, no code, no objects, nothing that is looked up.

- Tensors: safetensors, and PyTorch's own files through ``load_tensors`` only.
- YAML: mappings, lists, words and numbers (``PlainLoader``).
- Configurations: written ones are resolved, so ``${...}`` in a received one is somebody else's (``interpolation_in``).
- Settings on the command line, in cards and in ``configs/`` of the working folder: none says what is to be called
  (``call_in``); Hydra would.
- Encoders: classes of the libraries and no code beside them (``cbm.encoders.foreign_code``).
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from cbm.files.opening import open_to_read


def load_tensors(source: Path | IO[bytes], *, mapped: bool = False) -> Any:
    """Tensors, numbers, texts, and lists and dicts of them, from a file that ``torch.save`` wrote.

    Args:
        source: a path, or an open file.
        mapped: whether tensors stay on disk until they are used.

    Raises:
        pickle.UnpicklingError: the file holds other objects, which are never made.
        Exception: whatever a damaged file makes the parser raise.
    """
    import torch

    if isinstance(source, Path):
        with open_to_read(source) as file:
            _check_plain(file)
    else:
        _check_plain(source)
    return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped or None)


BYTES = b"\nbytearray\n"
"""How a pickle asks for as many bytes as it names: of all that PyTorch makes, this alone takes no bytes in a file."""


def _check_plain(file: IO[bytes]) -> None:
    """Whether an open file of PyTorch is no larger in memory than on disk; it is left where it was.

    Raises:
        ValueError: its parts are compressed, or lie over one another, which ``torch.save`` never does.
        pickle.UnpicklingError: it asks for memory by number.
    """
    import pickle
    import zipfile

    start = file.tell()
    try:
        if file.read(4) == b"PK\x03\x04":
            size = file.seek(0, os.SEEK_END)
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
                if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
                    raise ValueError("its parts are compressed, which torch.save never does")
                asks = any(BYTES in archive.read(part) for part in parts if "/data/" not in part.filename)
        else:
            file.seek(start)
            asks, end = False, b""
            while not asks and (block := file.read(1 << 20)):
                asks, end = BYTES in end + block, block[-len(BYTES) :]
        if asks:
            raise pickle.UnpicklingError("it asks for bytes by their number")
    finally:
        file.seek(start)


@contextmanager
def tensors_only() -> Iterator[None]:
    """``torch.load`` unpickles nothing but tensors, whoever calls it and whatever the environment says."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def interpolation_in(settings: Any, key: str = "") -> str | None:
    """The key of the first value or key of nested settings that OmegaConf would take for an interpolation, or None.

    Example:
        >>> interpolation_in({"a": [{"b": "x ${oc.env:HOME}"}]})
        'a[0].b'
    """
    return next((place for place, name, value in _places(settings, key) if "${" in name or "${" in value), None)


CALLS = ("_target_", "()")
"""What stands before the name of a function that Hydra, or Python's logging, is to call."""


def call_in(settings: Any, allowed: Collection[str] = ()) -> str | None:
    """The key of the first place in nested settings where a library would be told what to call, or None.

    Args:
        settings: the settings.
        allowed: keys of such places that may be.

    Example:
        >>> call_in({"callbacks": {"x": {"_target_": "os.remove"}}})
        'callbacks.x._target_'
    """
    return next((place for place, name, _ in _places(settings) if name in CALLS and place not in allowed), None)


def _places(settings: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Of everything in nested settings: where it is, its own name there, and the text that it is, or none."""
    inside: list[tuple[str, str, Any]] = []
    if isinstance(settings, dict):
        inside = [(f"{key}.{name}".lstrip("."), str(name), value) for name, value in settings.items()]
    elif isinstance(settings, list):
        inside = [(f"{key}[{number}]", "", value) for number, value in enumerate(settings)]
    elif isinstance(settings, str):
        yield key, "", settings
    for place, name, value in inside:
        yield place, name, ""
        yield from _places(value, place)


class PlainLoader(yaml.SafeLoader):
    """YAML without objects, references (``*name``: a few lines of them can stand for gigabytes) and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, which is no reference."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"a reference (*name) in line {mark.line + 1}; write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping, in which no key stands twice."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"a key twice in the mapping that begins in line {node.start_mark.line + 1}")
        return mapping
