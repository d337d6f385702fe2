"""Concepts that were found in the features: what the report and the explorer show of each unit."""

import logging
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import ConceptBank
from cbm.concepts.units import DEAD, Crop, Unit, units_of
from cbm.data.dataset import ImageDataset
from cbm.data.features import FeatureData
from cbm.data.images import Images
from cbm.files.without_paths import without_paths
from cbm.kernels import topk_concepts
from cbm.layers import Coded, ConceptBottleneck
from cbm.report.thumbnails import Thumbnail, data_uri, thumbnail
from cbm.report.wording import clip

log = logging.getLogger(__name__)

MOST, UNNAMED, IDLE = 12, 4, 4
"""Units that are shown: those of most weight, unnamed ones beside them, and ones that no class uses."""
PICTURES, SIDE = 4, 144
"""Pictures of every kind on a card, and their longest side in pixels."""
CLASSES, NEAR = 4, 4
FEWEST = 3
"""Test pictures on which a unit fires, below which training pictures are shown."""
NEAREST_UNITS = 3
"""Units of a picture that count as firing where nothing else says so (``method.k`` of clusters)."""


@dataclass(frozen=True)
class UnitCard:
    """One unit of the dictionary.

    Attributes:
        text: its name, or ``unnamed 0137``.
        unit: what the bank knows of it.
        mark: where its cosine lies on the scale of random directions: that, their mean and their 95 % point as shares
            of the scale; None without words or without random directions.
        strongest: pictures on which it fires most strongly.
        middle: pictures around the median of those on which it fires.
        weakest: pictures on which it just fires.
        split: the split that the pictures are from.
        fires: number of its pictures on which the unit fires.
        count: number of its pictures.
        prototype: the part of a training picture that is most like it; None for units that are no parts.
        votes: classes it speaks for most, with what one standard deviation of it adds to the logit.
        against: classes it speaks against most.
        used_by: number of classes that use it.
        near: units whose atoms are nearest, with the cosine.
    """

    text: str
    unit: Unit
    mark: tuple[float, float, float] | None
    strongest: list[Thumbnail]
    middle: list[Thumbnail]
    weakest: list[Thumbnail]
    split: str
    fires: int
    count: int
    prototype: Thumbnail | None
    votes: list[tuple[str, float]]
    against: list[tuple[str, float]]
    used_by: int
    near: list[tuple[str, float]]

    @property
    def has_pictures(self) -> bool:
        """Whether a picture can be shown."""
        return any(each.uri for each in self.strongest)


@dataclass(frozen=True)
class UnitPage:
    """The units of a run.

    Attributes:
        cards: groups of cards with their titles; empty groups are left out.
        doubts: findings that speak against the units or their names first: question, finding, what it is compared with,
            and whether it is a bad sign (None: nobody can tell).
        count: number of units that fire.
        dead: number of units that fire on no training picture.
        named: number of units with a name.
        idle: number of units that no class uses.
        nearest: number of units of a picture that count as firing, where the head reads all of them; else None.
    """

    cards: list[tuple[str, list[UnitCard]]]
    doubts: list[tuple[str, str, str, bool | None]]
    count: int
    dead: int
    named: int
    idle: int
    nearest: int | None = None


def part_name(bank: ConceptBank | None) -> str:
    """What the parts of a picture are called: word, or unit."""
    return "word" if units_of(bank) is None else "unit"


@torch.no_grad()
def describe_units(
    model: ConceptBottleneck,
    bank: ConceptBank,
    data: FeatureData,
    dataset: ImageDataset,
    metrics: dict[str, float],
    k: int | None = None,
) -> UnitPage | None:
    """What is shown of the units; None for concepts that were written down.

    Args:
        model: the bottleneck.
        bank: its concepts.
        data: encoded splits.
        dataset: the images, in the order of the splits.
        metrics: numbers of the run.
        k: units of a picture that count as firing in a model that reads all of them.
    """
    units = units_of(bank)
    if units is None:
        return None
    importance = model.importance()
    weight = importance.abs().amax(dim=0)
    named = torch.tensor([unit.named for unit in units])
    order = weight.argsort(descending=True, stable=True).tolist()
    most = [c for c in order if weight[c] > 0][:MOST]
    unnamed = [c for c in order if not named[c] and c not in most and weight[c] > 0][:UNNAMED]
    idle = [c for c in sorted(order, key=lambda c: -(units[c].firing or 0)) if weight[c] == 0]
    cards = UnitCards(model, bank, data, dataset, metrics, k)
    groups = (
        ("The units with most weight", most),
        ("Further units without a name", unnamed),
        ("Units that no class uses", idle[:IDLE]),
    )
    dead = sum(entry.reason == DEAD for entry in bank.dropped)
    return UnitPage(
        [(title, [cards.of(c) for c in columns]) for title, columns in groups if columns],
        doubts(metrics),
        len(bank),
        dead,
        int(named.sum()),
        len(idle),
        None if isinstance(model.activation, Coded) else cards.k,
    )


class UnitCards:
    """Makes cards of the units of one run; arguments as for ``describe_units``."""

    def __init__(
        self,
        model: ConceptBottleneck,
        bank: ConceptBank,
        data: FeatureData,
        dataset: ImageDataset,
        metrics: dict[str, float],
        k: int | None = None,
    ):
        self.model, self.bank, self.data, self.dataset, self.metrics = model, bank, data, dataset, metrics
        self.units = units_of(bank) or []
        self.importance = model.importance()
        self.k = k or NEAREST_UNITS
        self._fires: dict[str, tuple[Tensor, Tensor]] = {}
        self._small: dict[tuple[str, int], Thumbnail] = {}
        atoms = normalize(bank.directions().float(), dim=1)
        self.cosine, self.near = topk_concepts(atoms, atoms, min(NEAR + 1, len(atoms)))

    def fires(self, split: str) -> tuple[Tensor, Tensor]:
        """Which units fire on the pictures of a split ``[N, m]`` (-1: none), and how strongly."""
        if split not in self._fires:
            self._fires[split] = firing(self.model, self.data.splits[split].x, self.k)
        return self._fires[split]

    def of(self, column: int) -> UnitCard:
        """The card of the unit in a column."""
        unit = self.units[column]
        split, rows = self._split(column)
        parts = strongest_middle_weakest(rows)
        kinds = [[self._picture(split, row) for row in part] for part in parts]
        values = self.importance[:, column]
        order = values.argsort(descending=True, stable=True).tolist()
        names = [clip(name) for name in self.data.classes]
        near = zip(self.near[column].tolist(), self.cosine[column].tolist())
        return UnitCard(
            text=clip(self.bank.texts[column]),
            unit=unit,
            mark=null_mark(unit, self.metrics),
            strongest=kinds[0],
            middle=kinds[1],
            weakest=kinds[2],
            split=split,
            fires=len(rows),
            count=len(self.data.splits[split]),
            prototype=None if unit.crop is None else self._crop(unit.crop),
            votes=[(names[c], float(values[c])) for c in order[:CLASSES] if values[c] > 0],
            against=[(names[c], float(values[c])) for c in order[::-1][:CLASSES] if values[c] < 0],
            used_by=int((values != 0).sum()),
            near=[(clip(self.bank.texts[c]), cosine) for c, cosine in near if c != column][:NEAR],
        )

    def _split(self, column: int) -> tuple[str, list[int]]:
        """The split that a unit is shown by, and its pictures on which the unit fires, the strongest first."""
        best: tuple[str, list[int]] = ("test", [])
        for split in ("test", "train"):
            if split not in self.data.splits:
                continue
            columns, values = self.fires(split)
            where, place = (columns == column).nonzero(as_tuple=True)
            rows = where[values[where, place].argsort(descending=True, stable=True)].tolist()
            if len(rows) >= FEWEST:
                return split, rows
            best = max(best, (split, rows), key=lambda found: len(found[1]))
        return best

    def _picture(self, split: str, row: int) -> Thumbnail:
        if (split, row) not in self._small:
            self._small[split, row] = thumbnail(self.dataset.splits[split].images, row, SIDE)
        return self._small[split, row]

    def _crop(self, crop: Crop) -> Thumbnail | None:
        names = list(map(str, self.data.splits["train"].names)) if "train" in self.data.splits else []
        if crop.image not in names:
            return None
        return cropped(self.dataset.splits["train"].images, names.index(crop.image), crop)


def cropped(images: Images, row: int, crop: Crop) -> Thumbnail | None:
    """A part of the picture at ``row``; None if it cannot be read.

    Args:
        images: the pictures.
        row: number of the picture.
        crop: the part.
    """
    try:
        picture = images.open(row)
    except Exception as error:  # only features are known, or whatever a broken file makes a decoder raise
        log.warning("report: picture '%s' cannot be read (%s)", images.names[row], type(error).__name__)
        return None
    width, height = picture.size
    left, top, right, bottom = crop.box
    ends = (int(left * width), int(top * height), max(round(right * width), 1), max(round(bottom * height), 1))
    ends = (ends[0], ends[1], max(ends[2], ends[0] + 1), max(ends[3], ends[1] + 1))
    part = picture.crop(ends)
    part.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    uri, tiny = data_uri(part)
    return Thumbnail(without_paths(images.names[row]), uri, tiny)


def firing(model: ConceptBottleneck, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which units fire on pictures ``[N, m]`` (-1: none), and how strongly: of a code, those that it uses; of a model
    that reads all scores, the k that are highest above their mean.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        k: number of units.
    """
    if isinstance(model.activation, Coded):
        codes = model.activation.code(x, model.concepts)
        return codes.columns, codes.values
    values, columns = topk_concepts(x, model.concepts, min(k, len(model.concepts)), beta=-model.reference)
    return columns, values


def strongest_middle_weakest(rows: list[int], count: int = PICTURES) -> tuple[list[int], list[int], list[int]]:
    """The first of some rows, those around their middle, and the last; no row twice.

    >>> strongest_middle_weakest(list(range(10)), 2)
    ([0, 1], [4, 5], [8, 9])
    >>> strongest_middle_weakest([7, 8], 2)
    ([7, 8], [], [])
    """
    first = rows[:count]
    rest = rows[count:]
    last = rest[max(0, len(rest) - count) :] if len(rest) > count else []
    between = rest[: len(rest) - len(last)]
    start = max(0, (len(between) - count) // 2)
    return first, between[start : start + count], last


def null_mark(unit: Unit, metrics: dict[str, float]) -> tuple[float, float, float] | None:
    """Cosine of a unit's word, mean and 95 % point of random directions' cosines, on a scale from 0 to 1."""
    mean, high = (metrics.get(f"method/name_cosine_null{end}") for end in ("", "_q95"))
    if unit.cosine is None or mean is None or high is None:
        return None
    low, top = min(0.0, unit.cosine, mean), max(1.35 * high, 1.05 * unit.cosine, 1e-6)
    place = [(value - low) / (top - low) for value in (unit.cosine, mean, high)]
    return place[0], place[1], place[2]


def doubts(metrics: dict[str, float]) -> list[tuple[str, str, str, bool | None]]:
    """What is doubtful about the units of a run, with what it is compared with."""
    known = {key.removeprefix("method/"): value for key, value in metrics.items() if key.startswith("method/")}
    found: list[tuple[str, str, str, bool | None]] = []

    def share(key: str) -> str:
        return f"{100 * known[key]:.0f} %"

    if "name_named" in known:
        beside, bad = [], None
        if "name_named_null" in known:
            beside.append(f"{share('name_named_null')} of random directions get a name in the same way")
            bad = known["name_named"] <= known["name_named_null"] + 0.05
        if known.get("name_too_rare"):
            beside.append(f"{share('name_too_rare')} of the units fire on too few pictures for a test")
        if "name_named_dealt" in known:
            beside.append(f"{share('name_named_dealt')} of the units would keep the word of another unit")
        found.append(
            (
                "Units with a name, of those that fire on enough pictures to be tested",
                share("name_named"),
                "; ".join(beside),
                bad,
            )
        )
    if "test/name_true" in metrics and "test/name_true_dealt" in metrics:
        true, dealt = metrics["test/name_true"], metrics["test/name_true_dealt"]
        beside = [f"{100 * dealt:.0f} % with the names exchanged"]
        if "test/name_labelled" in metrics:
            beside.append(f"{metrics['test/name_labelled']:.0f} named units are labelled")
        what = "Names that are true of the test pictures, where the data set labels what they say (AUROC 0.8 or more)"
        found.append((what, f"{100 * true:.0f} %", "; ".join(beside), true <= dealt + 0.05))
    if "test/unnamed_share" in metrics:
        what = "Share of the decisions that rests on units without a name"
        found.append(
            (what, f"{100 * metrics['test/unnamed_share']:.0f} %", "of what units add to the decided class", None)
        )
    if "name_cosine_above_null" in known:
        beside = [f"of random directions it would be 5 %; their mean cosine is {known['name_cosine_null']:.2f}"]
        bad = known["name_cosine_above_null"] <= 0.1
        what = "Units nearer to their word than almost all random directions are to theirs"
        found.append((what, share("name_cosine_above_null"), beside[0], bad))
    if "dead" in known:
        found.append(("Units that never fire", share("dead"), "on the training pictures; they are left out", 
                      known["dead"] > 0.5))  # fmt: skip
    if "stability_matched" in known and "stability_matched_null" in known:
        beside = [f"of two draws of random directions {share('stability_matched_null')}"]
        if "stability_cosine" in known and "stability_cosine_null" in known:
            beside.append(f"mean cosine {known['stability_cosine']:.2f}, of random directions "
                          f"{known['stability_cosine_null']:.2f}")  # fmt: skip
        bad = known["stability_matched"] <= known["stability_matched_null"] + 0.05
        what = "Units that a second dictionary, trained from another seed, has too"
        found.append((what, share("stability_matched"), "; ".join(beside), bad))
    return found
