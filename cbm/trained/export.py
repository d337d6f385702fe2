"""A trained model as one file for places that have no cbm: ONNX, or a program of ``torch.export``."""

import importlib.util
import json
import logging
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from cbm.errors import UserError, did_you_mean
from cbm.files import write_in_parts
from cbm.files.shipped import install_command
from cbm.trained.portable import PortableModel

FORMATS = {"onnx": ".onnx", "pt2": ".pt2"}
PART = 2**24  # bytes copied at a time


def export_model(module: PortableModel, path: Path, about: dict[str, Any], kind: str | None = None) -> Path:
    """Write ``module`` to a file, with class names, concepts and encoder inside; returns the path.

    The input is called ``features`` ``[N, D]``, for any N; the outputs ``logits``, and with ``top_k`` ``values`` and
    ``indices``.

    Args:
        module: the classifier.
        path: the file to write.
        about: class names, concepts and encoder, which become metadata of the ONNX file (every value as JSON), or
            ``cbm.json`` inside the ``.pt2`` file.
        kind: ``onnx`` or ``pt2``; by default the ending of the file's name.

    Raises:
        UserError: an unknown format, or the packages for ONNX are not installed.
    """
    kind = _format(path, kind)
    example = (torch.ones(2, module.dim),)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    with tempfile.TemporaryDirectory(prefix="cbm-export-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between torch and onnxscript
        file = Path(folder) / path.name
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        if kind == "pt2":
            torch.export.save(program, file.with_suffix(".pt2"), extra_files={"cbm.json": _json(about)})
            return _move(file.with_suffix(".pt2"), path)
        names = ["logits"] if module.top_k is None else ["logits", "values", "indices"]
        logging.getLogger("onnxscript").setLevel("ERROR")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # the exporter tells its steps
            made = torch.onnx.export(
                program,
                example,
                dynamic_shapes=shapes,
                input_names=["features"],
                output_names=names,
                dynamo=True,
                verbose=False,
            )
        if made is None:
            raise UserError("this model cannot be exported: torch.onnx made nothing of it")
        made.model.metadata_props.update({key: _json(value) for key, value in about.items()})
        made.save(file, external_data=False)
        return _move(file, path)


def _format(path: Path, kind: str | None) -> str:
    """The format to write, once it is known to be available."""
    kind = kind or next((name for name, suffix in FORMATS.items() if path.suffix == suffix), path.suffix.lstrip("."))
    if kind not in FORMATS:
        raise UserError(f"export format '{kind}' of '{path}': {did_you_mean(kind, FORMATS)}")
    if kind == "onnx" and not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        raise UserError(f"ONNX needs two packages: {install_command('export')} (or write a .pt2)")
    return kind


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _move(file: Path, path: Path) -> Path:
    """Copy a file to its place, whole or not at all."""
    with file.open("rb") as content:
        return write_in_parts(path.parent, iter(lambda: content.read(PART), b""), lambda: path.name)
