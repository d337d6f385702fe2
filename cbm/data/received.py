"""What the configuration of a received run may have its data set do: be read. Nothing is drawn or downloaded for it."""

from omegaconf import DictConfig, OmegaConf

from cbm.config import card_names, load_card
from cbm.data.tables import drawn_folder
from cbm.errors import UserError
from cbm.files.shipped import resolve_path

MAKES = "birds"
"""The reader that draws its images, where they are not there."""


def as_received(card: DictConfig) -> DictConfig:
    """The card of a run, without what would write to a place that whoever sent the run has chosen.

    Args:
        card: as the run's configuration says.

    Raises:
        UserError: its images would be drawn, into another folder or otherwise than our card of that name says.
    """
    OmegaConf.set_struct(card, False)
    if card.args and "download" in card.args:
        card.args.download = False
    if card.reader == MAKES and card.root is not None:
        place = drawn_folder(resolve_path(card.root), dict(card.args or {}))
        own = load_card(card.name) if card.name in card_names() else None
        if not (place / "images.csv").is_file() and (own is None or (own.root, own.args) != (card.root, card.args)):
            raise UserError(
                f"the run's images would be drawn into '{place}', a place that its configuration names: draw them "
                "yourself by training there, or say where they are with --root (dataset.root=)"
            )
    return card
