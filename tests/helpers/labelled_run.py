"""A run of several labels an image that nobody trained."""

from pathlib import Path

import numpy as np
import torch
from written_page import configuration

from cbm.concepts.bank import Concept, ConceptBank
from cbm.data.dataset import ImageDataset, Split
from cbm.data.features import FeatureData, FeatureSplit
from cbm.data.images import ImageArray
from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe
from cbm.metrics.evaluate import evaluate_split
from cbm.report import write_report
from cbm.report.result import RunResult

DIM = 16
NAMES = ["wet", "cold", "loud"]


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


class LabelRun:
    """A small synthetic run of L labels on K concepts; a tenth of the labels is unknown."""

    def __init__(self, names: list[str] = NAMES, texts: list[str] | None = None, count: int = 60):
        torch.manual_seed(0)
        centres = unit(len(names), DIM)
        texts = texts or ["red belly", *(f"mark {k}" for k in range(7))]

        def split() -> FeatureSplit:
            y = (torch.rand(count, len(names)) < 0.4).float()
            x = torch.nn.functional.normalize(y @ centres + 0.35 * torch.randn(count, DIM), dim=1)
            y[torch.rand(count, len(names)) < 0.1] = float("nan")
            truth = (torch.rand(count, 1) > 0.5).float()
            return FeatureSplit(x, y, [f"{n}.png" for n in range(count)], truth)

        self.data = FeatureData(
            {name: split() for name in ("train", "val", "test")}, names, concept_names=["red belly"]
        )
        self.bank = ConceptBank("synthetic", "bank.json", tuple(map(Concept, texts)), "x", unit(len(texts), DIM))
        reference = self.data.train.x @ self.bank.embeddings.T
        model = ConceptBottleneck(
            self.bank.embeddings, LinearHead(centres @ self.bank.embeddings.T, torch.randn(len(names))),
            scale=8.0, reference=reference.mean(0), spread=reference.std(0), link="sigmoid",
        )  # fmt: skip
        self.model = model.with_thresholds(torch.linspace(-1, 1, len(names))).requires_grad_(False)
        pixels = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
        part = Split(ImageArray(pixels, self.data.test.names), self.data.test.y.numpy())
        self.dataset = ImageDataset("synthetic", names, {"train": part, "val": part, "test": part}, ["red belly"])

    def result(self, folder: Path, concepts: bool = True, **metrics: float) -> RunResult:
        probe = LinearProbe(torch.randn(len(self.data.classes), DIM), torch.zeros(len(self.data.classes)), "sigmoid")
        model, bank = (self.model, self.bank) if concepts else (probe.requires_grad_(False), None)
        measured = {**evaluate_split(model, bank, self.data, "test"), "time/fit_s": 1.0, **metrics}
        baselines = {"linear_probe": {"test/auroc_macro": 0.91, "test/map": 0.8}}
        return RunResult(folder, configuration(), model, bank, self.data, self.dataset, measured, baselines=baselines)

    def write(self, folder: Path, concepts: bool = True, **metrics: float) -> str:
        write_report(self.result(folder, concepts, **metrics))
        return (folder / "report.html").read_text(encoding="utf-8")
