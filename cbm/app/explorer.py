"""``Explorer``: a finished run and labelled pictures, opened for looking at.

All tabs share it; none changes it, but for the names of units.
"""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from cbm.concepts import ConceptBank
from cbm.concepts.units import find_unit, name_back, rename_unit, units_of
from cbm.data import FeatureSplit
from cbm.data.images import Images, NoImage
from cbm.errors import UserError
from cbm.files import cannot_write
from cbm.files.pictures import open_picture
from cbm.files.run_directory import read_metrics
from cbm.layers import (
    ConceptBottleneck,
    EnergyBottleneck,
    decide,
    energies_or_none,
    has_concepts,
    is_many,
    linear_or_none,
    predict_logits,
    require_concepts,
)
from cbm.metrics.multilabel import auroc
from cbm.trained import TrainedModel, load
from cbm.trained.names import change_names

LEADING = 16
"""Classes that are kept apart as those that lead in a picture."""
LEAST_PART = 0.05
"""Smallest side of a part of a picture, as a share of the whole side."""


@dataclass(frozen=True)
class Picture:
    """A picture that is looked at.

    Attributes:
        name: name of the picture in edits.
        image: the picture itself; None where only features are known.
        x: unit-norm features ``[D]``.
        label: index of its class, or None if it is not known.
        labels: whether it has each of L labels ``[L]``: 1, 0, or NaN if unknown; None where a picture has one class,
            and for a dropped file.
        row: row in the split, or None for a dropped file.
    """

    name: str
    image: Image.Image | None
    x: Tensor
    label: int | None = None
    labels: Tensor | None = None
    row: int | None = None


class Explorer:
    """A run with one split of pictures.

    Args:
        run: the run directory.
        cache: the feature store.
        dataset: a card of other pictures with the same classes; by default those of the run.
        root: where they are, if the card does not say.
        name: train, val or test.

    Raises:
        UserError: no such run, card or split, or a class that the model does not know.

    Attributes:
        model: the trained model.
        card: data set card of the pictures.
        cache: the feature store.
        data: the encoded split.
        images: N pictures of the split.
        logits: logits ``[N, C]`` without edits.
        shared: whether others than the user of this computer can see it: then nothing is written into the run.
    """

    def __init__(
        self,
        run: str | Path,
        cache: Path = Path("cache"),
        *,
        dataset: str | None = None,
        root: str | Path | None = None,
        name: str = "test",
    ):
        self.model: TrainedModel = load(run)
        self.card: DictConfig = self.model.card(dataset, root)
        self.cache = cache
        pictures, self.data = self.model.read((name,), dataset=dataset, root=root, cache=cache)
        self.name, self.domain = name, pictures.name
        self.images: Images = pictures.splits[name].images
        self.logits = predict_logits(self.model.model, self.split.x)
        self.shared = False
        self._naming = threading.Lock()
        self._places: dict[Path, tuple[int, int]] = {}
        self.check_place()

    @property
    def split(self) -> FeatureSplit:
        """The encoded pictures."""
        return self.data.splits[self.name]

    @cached_property
    def val(self) -> FeatureSplit | None:
        """The validation pictures of the run, encoded; None where they are looked at, or others than the run's own, or
        where there are none."""
        if self.name == "val" or self.card != self.model.config.dataset:
            return None
        _, data = self.model.read((self.name, "val"), cache=self.cache, as_trained=True)
        return data.splits.get("val")

    @property
    def classes(self) -> list[str]:
        """C class names."""
        return self.model.classes

    @property
    def bank(self) -> ConceptBank:
        """The concepts.

        Raises:
            UserError: the model has none.
        """
        require_concepts(self.model.model, self.model.bank)
        assert self.model.bank is not None
        return self.model.bank

    @property
    def has_concepts(self) -> bool:
        """Whether there is anything to explain by, and to edit."""
        return has_concepts(self.model.model, self.model.bank)

    @property
    def bottleneck(self) -> ConceptBottleneck | None:
        """The model, if a linear head reads its concepts; None for energies, and without concepts."""
        return linear_or_none(self.model.model, self.model.bank)

    @property
    def energies(self) -> EnergyBottleneck | None:
        """The model, if it is energy-based."""
        return energies_or_none(self.model.model, self.model.bank)

    @property
    def speaking(self) -> ConceptBottleneck | EnergyBottleneck:
        """The model, whose concepts have scores.

        Raises:
            UserError: it has none.
        """
        return require_concepts(self.model.model, self.model.bank)

    @property
    def gated(self) -> bool:
        """Whether a gate lets only a few concepts of a picture through, so that zero is where they rest."""
        activation = None if self.bottleneck is None else self.bottleneck.activation
        return activation is not None and activation.rests_at_zero

    @property
    def many(self) -> bool:
        """Whether a picture has any number of labels instead of one class."""
        return is_many(self.model.model)

    @cached_property
    def predicted(self) -> Tensor:
        """Decisions without edits: classes ``[N]``, or whether every label is said ``[N, L]`` bool."""
        return decide(self.model.model, self.logits)

    @cached_property
    def leading(self) -> tuple[Tensor, Tensor]:
        """The highest logits of every picture without edits and their classes, ``[N, M]`` each."""
        return self.logits.topk(min(LEADING, self.logits.shape[1]), dim=1)

    @cached_property
    def headline(self) -> tuple[str, float | None]:
        """The number that sums the split up without edits, and its name: accuracy, or for labels the mean AUROC.

        None if no label has pictures with it and pictures without it.
        """
        if not self.many:
            return "accuracy", float((self.predicted == self.split.y).double().mean())
        each = auroc(self.logits, self.split.y)
        return "mean AUROC of the labels", None if bool(each.isnan().all()) else float(each.nanmean())

    @cached_property
    def units(self) -> bool:
        """Whether the concepts are units that were found, and can be named."""
        return self.bottleneck is not None and units_of(self.model.bank) is not None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The numbers of the run."""
        return read_metrics(self.model.path)

    def rename(self, text: str, new: str | None) -> tuple[str, str]:
        """Give a unit another name in the run directory, or take its last one back; all tabs see it.

        Args:
            text: its name.
            new: the new one; None takes the last one back.

        Returns:
            The name that it had, and the one that it has.

        Raises:
            UserError: a name that is empty, very long, or another unit's, or nothing to take back.
        """
        had: list[str] = []
        with self._naming:  # the bank of the last one that wrote is kept
            column, size = find_unit(self.bank, text), len(self.bank)

            def change(bank: ConceptBank) -> ConceptBank:
                if len(bank) != size:
                    raise UserError(f"'{self.model.path}' has other units than when it was opened: open it again")
                name = bank.texts[column]  # somebody else may have named it, or given its name to another
                if new is None and name != self.bank.texts[column]:
                    self.model.bank = bank  # what all tabs see from now on
                    raise UserError(f"'{text}' was called '{name}' by somebody else meanwhile: that is not taken back")
                changed = name_back(bank, name)[0] if new is None else rename_unit(bank, name, new)
                had.extend((name, changed.texts[column]))
                return changed

            self.check_place()
            try:
                self.model.bank = change_names(self.model.path, change)
            except OSError as error:
                raise cannot_write(self.model.path, error) from error
        return had[0], had[1]

    def check_place(self) -> None:
        """Check that the run may be written into, and is still what was opened.

        Raises:
            UserError: others can see it, or it was removed, or something else has its name.
        """
        run = self.model.path
        if self.shared:
            raise UserError("this page is shared: nothing is written into the run; open it without --share for that")
        try:
            state = run.stat()
        except OSError as error:
            raise UserError(f"the run directory '{run}' is not there any more ({error.strerror or error})") from error
        place = (state.st_dev, state.st_ino)
        if self._places.setdefault(run, place) != place:
            raise UserError(f"'{run}' is not the run directory that was opened: something else has its name now")

    def picture(self, row: int) -> Picture:
        """A picture of the split.

        Raises:
            UserError: there is no such row, or the file cannot be read any more.
        """
        if not 0 <= row < len(self.split):
            raise UserError(f"no picture {row}: the split has {len(self.split)}")
        name = self.images.names[row]
        image: Image.Image | None
        try:
            image = self.images.open(row, None if self.model.fingerprint is None else self.model.encoder.least)
        except NoImage:
            image = None
        except Exception as error:  # a missing or broken file makes a decoder raise anything
            raise UserError(f"picture '{name}' cannot be read any more ({type(error).__name__})") from error
        y = self.split.y[row]
        label, labels = (None, y) if self.many else (int(y), None)
        return Picture(name, image, self.split.x[row], label, labels, row)

    def part(self, picture: Picture, box: tuple[float, float, float, float]) -> Picture:
        """A part of a picture as a picture of its own: what the encoder makes of that part alone.

        Args:
            picture: the whole.
            box: left, top, right and bottom, as shares of its width and height.

        Raises:
            UserError: only its features are known, or the box is smaller than a twentieth of a side.
        """
        if picture.image is None or self.model.fingerprint is None:
            raise UserError("only the features of this picture are known: there is nothing to cut out")
        left, top, right, bottom = (min(max(each, 0.0), 1.0) for each in box)
        if not min(right - left, bottom - top) >= LEAST_PART:  # no number is not enough either
            raise UserError("draw a larger box: at least a twentieth of the picture's width and height")
        width, height = picture.image.size
        image = picture.image.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        name = f"{picture.name} ({', '.join(f'{each:.0%}' for each in (left, top, right, bottom))})"
        return Picture(name, image, self.model.predict([image]).features[0])

    def read(self, file: str | Path) -> Picture:
        """A file from anywhere. It is decoded as a picture and as nothing else.

        Raises:
            UserError: it is no picture, or a very large one.
        """
        path = Path(file)
        try:
            image = open_picture(path, self.model.encoder.least, path.name)
        except (ValueError, Image.DecompressionBombError) as error:  # too large, or no scale that is known
            raise UserError(str(error)) from error
        except Exception as error:  # whatever a decoder makes of a file that is no picture
            raise UserError(f"'{path.name}' is no picture that can be read (expected JPEG, PNG, WebP, ...)") from error
        return Picture(path.name, image, self.model.predict([image]).features[0])
