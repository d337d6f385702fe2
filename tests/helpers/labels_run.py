"""A run directory written by hand around a bottleneck of random weights that says any number of labels."""

from pathlib import Path

import torch
from hand_made_run import write_run
from small_bottleneck import bottleneck

from cbm.layers import ConceptBottleneck, save_model

CUTS = torch.tensor([0.5, -0.4, 0.0, 0.8])


def label_model(activation=None, **sizes) -> tuple[ConceptBottleneck, torch.Tensor]:
    """A model of four labels with thresholds, calibrated on its images, and these."""
    model, x = bottleneck(activation, **sizes)
    model.link = "sigmoid"
    model.with_thresholds(CUTS)
    return model.calibrate(x), x


def write_label_run(path: Path) -> Path:
    write_run(path)
    save_model(label_model()[0], path / "model.safetensors")
    return path
