"""Run directories that hold nothing but settings, metrics and what was decided about every test image."""

import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from cbm.files.label_predictions import LabelPredictions, write_label_predictions
from cbm.files.predictions import Predictions, write_predictions
from cbm.files.run_directory import PREDICTIONS
from cbm.metrics.bootstrap import calibration_error
from cbm.metrics.multilabel import multilabel_metrics

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


def label_predictions(skill: float, count: int = 60, seed: int = 0, **changes) -> LabelPredictions:
    """Probabilities of three labels of N images, a tenth of which is unknown; without skill they are noise."""
    y = (np.random.default_rng(7).random((count, 3)) < 0.4).astype(np.float32)
    noise = np.random.default_rng(seed).normal(size=y.shape)
    probabilities = (1 / (1 + np.exp(-(skill * (y - 0.5) + noise)))).astype(np.float32)
    y[np.random.default_rng(8).random(y.shape) < 0.1] = np.nan
    settings = {
        "dataset": "birds", "split": "test", "labels": ["wet", "cold", "loud"],
        "images": [f"image {row}.png" for row in range(count)], "y": y, "probabilities": probabilities,
        "thresholds": np.array([0.5, 0.4, 0.6]), "subjects": None,
    }  # fmt: skip
    return LabelPredictions(**(settings | changes))


def labelled_run(folder: Path, method: str, seed: int, skill: float, keep: bool = True, **more) -> Path:
    """``decided_run`` of a run of several labels an image."""
    run = decided_run(folder, method, seed, np.ones(4, dtype=bool), keep=False)
    found = label_predictions(skill, seed=seed + len(method), **more)
    y, logits = torch.from_numpy(found.y), torch.from_numpy(found.probabilities).logit()
    values = multilabel_metrics(logits, y, torch.zeros(y.shape[1]))
    (run / "metrics.json").write_text(json.dumps({f"test/{key}": value for key, value in values.items()}))
    if keep:
        write_label_predictions(run / PREDICTIONS, found)
    return run
