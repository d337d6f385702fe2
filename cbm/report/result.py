"""``RunResult``: the result of training, which the report, the terminal and W&B show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from cbm.concepts.bank import ConceptBank
from cbm.data import FeatureData, ImageDataset
from cbm.layers import ConceptBottleneck, EnergyBottleneck, energies_or_none, linear_or_none
from cbm.metrics.integrity import Integrity
from cbm.metrics.leakage import Leakage
from cbm.metrics.nec import SparseHead


@dataclass(frozen=True)
class RunResult:
    """A trained model with everything that was measured of it.

    Attributes:
        path: the run directory.
        cfg: the configuration of the run (``cbm.config.TrainConfig``).
        model: the trained classifier.
        bank: the concepts of the model's columns; None without concepts.
        data: encoded splits.
        dataset: the images; rows of ``dataset.splits["test"]`` are those of ``data.test``.
        metrics: the contents of ``metrics.json``.
        heads: heads solved anew at given numbers of concepts per class.
        integrity: the evidence for the concepts; None if it was not gathered.
        baselines: test metrics of other classifiers on the same images, by name.
        leakage: what its scores tell about the class beyond the concepts; None if that was not measured.
        tested_before: whether an earlier version tested the concepts, in a form that is not read any more.
    """

    path: Path
    cfg: DictConfig
    model: nn.Module
    bank: ConceptBank | None
    data: FeatureData
    dataset: ImageDataset
    metrics: dict[str, float]
    heads: Sequence[SparseHead] = ()
    integrity: Integrity | None = None
    baselines: dict[str, Any] = field(default_factory=dict)
    leakage: Leakage | None = None
    tested_before: bool = False

    @property
    def bottleneck(self) -> ConceptBottleneck | None:
        """The model, if a linear head reads its concepts."""
        return linear_or_none(self.model, self.bank)

    @property
    def energies(self) -> EnergyBottleneck | None:
        """The model, if it is energy-based."""
        return energies_or_none(self.model, self.bank)
