"""A run directory written by hand around a bottleneck of random weights: nothing is trained."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from small_bottleneck import CLASSES, bank, bottleneck

from cbm.config import TrainConfig, load_card
from cbm.editing import SourceCard
from cbm.files import SHIPPED
from cbm.layers import save_model
from cbm.metrics.integrity import Evidence, Integrity


def write_run(path: Path, activation=None) -> Path:
    model, x = bottleneck(activation)
    path.mkdir(parents=True)
    chosen = {"encoder": {"model": "local-dir:/home/me/clip"}, "method": {"name": "posthoc"}}
    cfg = OmegaConf.merge(OmegaConf.structured(TrainConfig), {"dataset": load_card("birds"), **chosen})
    cfg.dataset.root, cfg.run_dir, cfg.cache = "/home/me/birds", str(path), "/home/me/cache"
    cfg.dataset.bank = str(SHIPPED / "concepts" / "birds.json")
    (path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    encoder = {"id": "local-dir:/home/me/clip", "fingerprint": "f" * 32, "dim": 12, "logit_scale": 100.0}
    integrity = asdict(Integrity((Evidence("names", "?", "a reader reads them", "", "passed"),)))
    verdict = "the concepts carry the decision"
    about = {"classes": CLASSES, "encoder": encoder, "verdict": verdict, "integrity": integrity}
    (path / "about.json").write_text(json.dumps(about))
    (path / "metrics.json").write_text(json.dumps({"test/accuracy": 0.875, "data/n_train": 1234.0}))
    save_model(model, path / "model.safetensors")
    named = replace(bank(), source="/home/me/phrases.json", encoder="f" * 32, embeddings=model.concepts)
    named.save(path / "bank")
    SourceCard(x, torch.arange(len(x)) % len(CLASSES)).save(path / "source_card.safetensors")
    return path
