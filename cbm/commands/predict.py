"""``python -m cbm predict``: the labels of any number of images, with the concepts behind them, as a CSV table."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cbm.commands.shared import make_folder, not_there, out
from cbm.errors import UserError

log = logging.getLogger("cbm")


def add_to(app: typer.Typer) -> None:
    """Make the command of this file part of ``python -m cbm``."""
    app.command()(predict)


def predict(
    run: Annotated[str, typer.Argument(help="A finished run, or hf-hub:ORG/NAME.")],
    images: Annotated[
        list[Path], typer.Argument(help="A folder (everything below it), image files, or features (a file or folder).")
    ],
    destination: Annotated[Path, typer.Option("--out", help="The table to write: predictions.csv.")],
    top: Annotated[int, typer.Option(help="Concepts to name for every image: those that moved its logit most.")] = 3,
    edits: Annotated[Path | None, typer.Option(help="Edits to apply to the model first (edits.yaml).")] = None,
    domain: Annotated[
        str | None, typer.Option(help="Domain that the images come from, for edits bound to one.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with the first 200 images, to this file.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode images; 0: none beside this one.", min=0)] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    device: Annotated[
        str | None, typer.Option(help="auto | cpu | cuda; default: as the run's configuration says.")
    ] = None,
) -> None:
    """Classify images, or their features: a row for each in a CSV table (interrupted: run it again, it goes on)."""
    not_there(destination)
    from cbm.run.unfinished import is_page_of

    taken = page is not None and page.exists() and not is_page_of(page, destination)
    if page is not None and (taken or page.absolute() == destination.absolute()):
        raise UserError(f"--html '{page}' is there already, or is --out: remove it or choose another name")
    if top < 0:
        raise UserError(f"--top {top}: expected 0 or more")
    if domain is not None and edits is None:
        raise UserError("--domain says which edits act: say --edits too")
    log.info("listing the images and loading '%s'", run)
    from cbm.config import FEATURES
    from cbm.run.predict import predict as write_table
    from cbm.run.sources import FeatureSource, ImageSource, NameList, Source, are_features, find_images
    from cbm.trained import load

    given = are_features(images)
    root, found = (images[0], iter(())) if given else find_images(images)
    for file in (destination, *([] if page is None else [page])):
        make_folder(file.parent)
    names = NameList(found, destination.parent)
    if not given and not len(names):
        raise UserError(f"no images below '{images[0]}': expected files such as .jpg or .png")
    model = load(run.removeprefix("run="), device=device)
    source: Source | None = None
    if given:
        said = (model.config.dataset.get("args") or {}) if model.config.dataset.reader == FEATURES else {}
        source = FeatureSource(root, destination.parent, said.get("features"), said.get("names"))
        model.check_width(source.shape, f"'{root}'")  # before a table is begun
    if edits is not None:
        from cbm.editing import load_edits

        made = load_edits(edits)
        if elsewhere := sorted(made.domains - {domain}):
            log.warning("edits of '%s' do not act (--domain '%s' says that images come from there)", *2 * elsewhere[:1])
        model = model.with_edits(made, domain=domain)
    source = source or ImageSource(model.encoder, root, names, workers)
    try:
        result = write_table(model, source, destination, top=top, batch_size=batch_size, page=page)
    except KeyboardInterrupt:
        log.warning("stopped: run the same command again, it goes on there")
        raise typer.Exit(130) from None
    for file in (destination, *([] if page is None else [page])):
        out.print(f"{file}: {result.images:,} images")
    if result.failed:
        log.warning("%s of them cannot be read and have no label, first %s", f"{result.failed:,}", result.first)
    if result.failed == result.images:
        raise typer.Exit(1)
