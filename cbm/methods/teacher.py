"""The teacher: a text-image model whose concept scores a method trains the encoder to reproduce."""

from omegaconf import DictConfig, OmegaConf

from cbm.concepts.candidates import learns_concepts
from cbm.encoders import load_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.methods.base import METHODS, Method


def check_teacher(method: Method, cfg: DictConfig) -> None:
    """Check before the long work begins whether a run can use the teacher it names.

    Raises:
        UserError: the method uses no teacher, the teacher is not named, or the concepts are learned from images.
    """
    if cfg.teacher is not None and not method.uses_teacher:
        able = [name for name, kind in METHODS.items() if kind.uses_teacher]
        raise UserError(
            f"method={cfg.method.name} has no use for a teacher: leave out teacher=, or choose "
            + " or ".join(f"method={name}" for name in able)
        )
    if cfg.teacher is not None and OmegaConf.is_missing(cfg.teacher, "model"):
        raise UserError("'teacher.model' is needed: say teacher.model=..., or teacher=NAME")
    if method.uses_teacher and learns_concepts(method.concepts_from, cfg):
        raise UserError(
            f"method={cfg.method.name} learns to see phrases, but concepts=cav are learned from pictures already: "
            "choose a bank of phrases, or another method (method=labo)"
        )


def load_teacher(method: Method, cfg: DictConfig, encoder: Encoder | None) -> Encoder | None:
    """The teacher of a run, or None if the encoder itself is the teacher.

    Args:
        method: the method that is trained.
        cfg: a ``cbm.config.TrainConfig``.
        encoder: the encoder of the run; None if features are given.

    Raises:
        UserError: the method needs a teacher and none is named, or the model reads no text.
    """
    if cfg.teacher is None:
        if method.uses_teacher and encoder is not None and not encoder.has_text:
            raise UserError(
                f"encoder '{encoder.id}' reads images only: method={cfg.method.name} needs a text-image model to learn "
                "the concepts from, say teacher=NAME (e.g. teacher=vit_b32)"
            )
        return None
    teacher = load_encoder(cfg.teacher)
    if not teacher.has_text:
        raise UserError(f"teacher '{teacher.id}' reads images only: choose a text-image model (e.g. teacher=vit_b32)")
    return None if encoder is not None and teacher.fingerprint == encoder.fingerprint else teacher
