"""What the commands share: the console, the options that several have, and what they mean."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cbm import config as schema
from cbm.errors import UserError
from cbm.files.inert import for_json
from cbm.files.terminal import output

if TYPE_CHECKING:
    from cbm.data import ImageDataset
    from cbm.data.encoded import Encoding
    from cbm.encoders.base import Encoder

out = output()

Bank = Annotated[Path, typer.Argument(help="A bank: bank.json, class -> phrases JSON, or one phrase per line.")]
Cache = Annotated[Path, typer.Option(help="Folder of the feature store.")]
Card = Annotated[str, typer.Argument(help="A data set card (python -m cbm datasets lists them).")]
EncoderName = Annotated[
    str, typer.Option("--encoder", help="Encoder: a config name, or any model spec (local-dir:PATH, ...).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs, instead of a table.")]
Pretrained = Annotated[str | None, typer.Option(help="Pretrained tag of an open_clip model.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the images, if the card does not say.")]
Run = Annotated[Path, typer.Argument(help="A finished run.")]


def show(table: Table | None, records: Any, as_json: bool) -> None:
    """Print a table for people, or what it was made of as JSON (where numbers that are not finite are null)."""
    if as_json:
        print(for_json(json.dumps(_finite(records), ensure_ascii=False, indent=1)))
    elif table is not None:
        out.print(table)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def read_card(name: str, root: Path | None, cache: Path) -> "tuple[Any, ImageDataset]":
    """A card and its images."""
    from cbm.data.encoded import read_images

    card = schema.load_card(name)
    card.root = card.root if root is None else str(root)
    return card, read_images(card, cache)


def encoder_settings(
    encoder: str, pretrained: str | None, cache: Path, workers: int = 2, batch_size: int = 256
) -> "tuple[Encoder, Encoding]":
    """An encoder by its config name or model spec, and how images are encoded with it."""
    from omegaconf import OmegaConf

    from cbm.data.encoded import Encoding
    from cbm.encoders import load_encoder

    named = encoder in schema.choices("encoder")
    own = schema.read_choice("encoder", encoder) if named else {"model": encoder}
    settings: Any = OmegaConf.merge(OmegaConf.structured(schema.EncoderConfig), own)
    settings.pretrained = pretrained or settings.pretrained
    settings.model = schema.BUNDLED if settings.model == "auto" else settings.model
    # nothing is measured on these images: those that cannot be read are named, and that is all
    return load_encoder(settings), Encoding(cache, settings.store_dtype, batch_size, workers, max_skipped=1.0)


def not_there(destination: Path) -> None:
    """Nothing is overwritten.

    Raises:
        UserError: the destination exists.
    """
    if destination.exists():
        raise UserError(f"'{destination}' is there already: remove it or choose another --out")


def make_folder(folder: Path) -> None:
    """The folder of a file that is to be written.

    Raises:
        UserError: it cannot be made.
    """
    from cbm.files import cannot_write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def names_in(options: str) -> list[str]:
    """The names in a list that is separated by commas."""
    return [name.strip() for name in options.split(",")]


def readable_size(count: float) -> str:
    """Bytes as a readable size."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"
