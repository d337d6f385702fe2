"""An independent reader: a text encoder that says what names say of the classes, and did not make the directions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cbm.concepts import ConceptBank, clean_class_names
from cbm.config import EncoderConfig, choices, read_choice
from cbm.data.text_store import text_encoder
from cbm.encoders import load_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.metrics.reader import said_by_texts


def load_reader(cfg: DictConfig, *others: Encoder | None) -> Encoder | None:
    """The encoder of ``evidence.reader``; None if none is named.

    Args:
        cfg: a ``cbm.config.TrainConfig``.
        others: the encoder and the teacher of the run, whose text made the directions.

    Raises:
        UserError: it is unknown, reads no text, or is one of the others.
    """
    if cfg.evidence.reader is None:
        return None
    reader = load_encoder(_settings(str(cfg.evidence.reader), cfg))
    if not reader.has_text:
        raise UserError(f"evidence.reader={cfg.evidence.reader} reads images only: choose a model that reads text")
    if any(other is not None and other.fingerprint == reader.fingerprint for other in others):
        raise UserError(
            f"evidence.reader={cfg.evidence.reader} made the directions of the concepts: what it reads in them is no "
            "evidence for their names; choose another text encoder, or leave it out (then the owners of the phrases "
            "are read, where there are any)"
        )
    return reader


def _settings(name: str, cfg: DictConfig) -> Any:
    """The settings of an encoder by its name in ``configs/encoder``, or by its model."""
    known = [choice for choice in choices("encoder") if choice != "auto"]
    device = "auto" if cfg.encoder is None else cfg.encoder.device
    if name in known:
        found = OmegaConf.merge(OmegaConf.structured(EncoderConfig), read_choice("encoder", name))
    elif ":" in name or "/" in name:
        model, _, pretrained = name.partition("/") if ":" not in name else (name, "", "")
        found = OmegaConf.structured(EncoderConfig(model=model, pretrained=pretrained or None))
    else:
        raise UserError(
            f"evidence.reader={name}: {did_you_mean(name, known)}; or a model: local-dir:PATH, hf-hub:ORG/NAME, "
            "NAME/TAG of open_clip"
        )
    return OmegaConf.merge(found, {"device": device})


def with_reading(bank: ConceptBank, classes: list[str], reader: Encoder, cfg: DictConfig) -> ConceptBank:
    """The bank with what its names say of the classes, as the reader understands them (``cbm.metrics.reader``).

    Args:
        bank: the concepts.
        classes: C class names.
        reader: the independent text encoder.
        cfg: a ``cbm.config.TrainConfig``.
    """
    encode = text_encoder(reader, Path(cfg.cache), cfg.trainer.progress)
    template = str(cfg.evidence.prompt)
    words = encode([template.replace("{}", text) for text in bank.texts])  # not format: braces may be part of it
    names = encode([template.replace("{}", name) for name in clean_class_names(classes)])
    return replace(bank, says=said_by_texts(words, names), said_by=reader.id)
