"""Run directories that hold nothing but settings, metrics and what was decided about every test image."""

import json
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from cbm.files.predictions import Predictions, write_predictions
from cbm.files.run_directory import PREDICTIONS
from cbm.metrics.bootstrap import calibration_error

CLASSES = ["finch", "wren", "owl", "swift"]


def predictions(
    right: np.ndarray, confidence: float = 0.75, subjects: np.ndarray | None = None, names: str = "image", **changes
) -> Predictions:
    """Decisions about N images of four classes in turn, right where it is said; others are taken for the next class."""
    labels = np.arange(len(right)) % len(CLASSES)
    decisions = np.where(right, labels, (labels + 1) % len(CLASSES))
    chances = np.full((len(right), len(CLASSES)), (1 - confidence) / (len(CLASSES) - 1), dtype=np.float16)
    chances[np.arange(len(right)), decisions] = confidence
    images = [f"{names} {row}.png" for row in range(len(right))]
    settings = {
        "dataset": "birds", "split": "test", "classes": CLASSES, "images": images, "labels": labels,
        "decisions": decisions, "confidence": np.full(len(right), confidence, dtype=np.float32),
        "label_probability": chances[np.arange(len(right)), labels], "probabilities": chances, "subjects": subjects,
    }  # fmt: skip
    return Predictions(**(settings | changes))


def decided_run(folder: Path, method: str, seed: int, right: np.ndarray, keep: bool = True, **more) -> Path:
    """A run of a method that decides so; without its predictions, as runs of before, if they are not kept."""
    run = folder / f"{method}{seed}"
    run.mkdir(parents=True)
    settings = {
        "method": {"name": method}, "dataset": {"name": "birds", "root": None}, "seed": seed, "shots": "all",
        "val_shots": "all", "encoder": {"model": "ViT-B-32", "pretrained": None}, "concepts": {"source": "auto"},
    }  # fmt: skip
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    found = predictions(right, **more)
    ece = float(calibration_error(found.confidence, right)(np.ones((1, len(right)), dtype=np.float32))[0])
    metrics = {"test/accuracy": float(right.mean()), "test/ece": ece}
    (run / "metrics.json").write_text(json.dumps(metrics))
    if keep:
        write_predictions(run / PREDICTIONS, found)
    return run
