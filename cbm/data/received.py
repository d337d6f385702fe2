"""What the configuration of a received run may have its data set do: be read.

Nothing is downloaded for it, and nothing is drawn but paper birds below the working folder.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cbm.data.tables import drawn_folder
from cbm.errors import UserError
from cbm.files.shipped import resolve_path

MAKES = "birds"
"""The reader that draws its images, where they are not there."""
MOST_PER_SPECIES, LARGEST = 5_000, 512
"""Images of a species, and pixels along a side, that are drawn because a run says so."""


def as_received(card: DictConfig) -> DictConfig:
    """The card of a run, without what would write to a place that whoever sent the run has chosen.

    Args:
        card: as the run's configuration says.

    Raises:
        UserError: its images would be drawn outside the working folder, or fill it.
    """
    OmegaConf.set_struct(card, False)
    if card.args and "download" in card.args:
        card.args.download = False
    if card.reader == MAKES and card.root is not None:
        place = drawn_folder(resolve_path(card.root), made_of := dict(card.args or {}))
        if not (place / "images.csv").is_file() and not (_is_below_here(place) and _is_small(made_of)):
            raise UserError(
                f"the run's images would be drawn into '{place}', as its configuration says: expected a place below "
                f"the working folder, and {MOST_PER_SPECIES:,} a species at most; --root (dataset.root=) says where"
            )
    return card


def _is_below_here(place: Path) -> bool:
    return place.resolve().is_relative_to(Path.cwd().resolve())


def _is_small(made_of: dict) -> bool:
    numbers = [made_of.get(key, 0) for key in ("n_train", "n_val", "n_test")]
    size = made_of.get("size", 0)
    return all(isinstance(number, int) for number in (*numbers, size)) and (
        sum(numbers) <= MOST_PER_SPECIES and size <= LARGEST
    )
