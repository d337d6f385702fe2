"""A small synthetic run with concepts, and its report."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from written_page import configuration

from cbm.concepts.bank import Concept, ConceptBank, Dropped
from cbm.data.dataset import ImageDataset, Split
from cbm.data.features import FeatureData, FeatureSplit
from cbm.data.images import ImageArray
from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.integrity import Evidence, Integrity
from cbm.report import write_report
from cbm.report.result import RunResult

DIM = 16
PASSED = ("names", "truth", "leak", "outside")


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


class Run:
    """A small synthetic run: noisy class directions, two concepts per class and two without owner."""

    def __init__(self, names: list[str], texts: list[str] | None = None, per_class: int = 6, side: int = 8):
        torch.manual_seed(0)
        count = len(names)
        centres = unit(count, DIM)
        y = torch.arange(count).repeat_interleave(per_class)
        concept_names = ["red belly", "long tail"]

        def split() -> FeatureSplit:
            x = torch.nn.functional.normalize(centres[y] + 0.3 * torch.randn(len(y), DIM), dim=1)
            truth = (torch.rand(len(y), 2) > 0.5).float()
            return FeatureSplit(x, y, [f"{n}.png" for n in range(len(y))], truth)

        self.data = FeatureData(
            {name: split() for name in ("train", "val", "test")}, names, concept_names=concept_names
        )
        texts = texts or ["red belly", "long tail", *(f"mark {k}" for k in range(2 * count))]
        concepts = [
            Concept(text, (names[(k - 2) % count],) if k >= 2 else (), provenance={}) for k, text in enumerate(texts)
        ]
        dropped = (Dropped("costs a lot", (), "not visual: cost"), Dropped("the tail of", (), "cut off after 'of'"))
        self.bank = ConceptBank("synthetic", "bank.json", tuple(concepts), "x", unit(len(texts), DIM), dropped)
        reference = self.data.train.x @ self.bank.embeddings.T
        self.model = ConceptBottleneck(
            self.bank.embeddings,
            LinearHead(centres @ self.bank.embeddings.T, torch.randn(count)),
            scale=12.0, reference=reference.mean(0), spread=reference.std(0),
        ).requires_grad_(False)  # fmt: skip
        pixels = np.random.default_rng(0).integers(0, 255, (len(y), side, side, 3), dtype=np.uint8)
        images = ImageArray(pixels, self.data.test.names)
        part = Split(images, y.numpy())
        self.dataset = ImageDataset("synthetic", names, {"train": part, "val": part, "test": part}, concept_names)
        evidence = {"real": 0.9, "random": 0.5, "shuffled": 0.6}
        self.integrity = Integrity(
            (
                *(Evidence(key, f"{key}?", f"{key} is well", "why", "passed") for key in PASSED),
                Evidence("sparsity", "Random?", "no better", "why", "fact", detail="a detail"),
            ),
            evidence, evidence,
        )  # fmt: skip

    def write(
        self, folder: Path, concepts: bool = True, cfg: DictConfig | None = None, data: dict[str, float] | None = None
    ) -> str:
        probe = LinearProbe(torch.randn(len(self.data.classes), DIM), torch.zeros(len(self.data.classes)))
        model, bank = (self.model, self.bank) if concepts else (probe.requires_grad_(False), None)
        metrics = {
            **evaluate_split(model, bank, self.data, "test"),
            **(data or {}),
            "time/fit_s": 1.0,
            "time/total_s": 2.0,
        }
        baselines = {"zero_shot": {"test/accuracy": 0.4}, "linear_probe": {"test/accuracy": 0.8, "test/ece": 0.1}}
        integrity = self.integrity if concepts else None
        cfg = cfg or configuration()
        write_report(
            RunResult(
                folder, cfg, model, bank, self.data, self.dataset, metrics, integrity=integrity, baselines=baselines
            )
        )
        return (folder / "report.html").read_text(encoding="utf-8")
