"""Checks of a model before it is explained or edited, each with its one error message."""

from typing import Any

from torch import nn

from cbm.errors import UserError
from cbm.layers.bottleneck import ConceptBottleneck
from cbm.layers.energy import EnergyBottleneck
from cbm.layers.probe import LinearProbe


def has_concepts(model: nn.Module, bank: Any = True) -> bool:
    """Whether a model decides by named concepts: a bottleneck or energies, with a bank.

    Args:
        model: any classifier of features.
        bank: the concepts of its columns, or None.
    """
    return bank is not None and isinstance(model, ConceptBottleneck | EnergyBottleneck)


def width_of(model: nn.Module) -> int:
    """Width D of the features that a classifier reads."""
    if isinstance(model, ConceptBottleneck):
        return model.concepts.shape[1]
    if isinstance(model, EnergyBottleneck):
        return len(model.mean)
    assert isinstance(model, LinearProbe)
    return model.matrix.shape[1]


def concepts_of(model: nn.Module) -> int:
    """Number of concepts K that a classifier decides by."""
    return len(model.concepts) if isinstance(model, ConceptBottleneck) else len(model.concept_table)  # type: ignore[arg-type]


def linear_or_none(model: nn.Module, bank: Any = True) -> ConceptBottleneck | None:
    """The model, if a linear head reads its concepts."""
    return model if bank is not None and isinstance(model, ConceptBottleneck) else None


def energies_or_none(model: nn.Module, bank: Any = True) -> EnergyBottleneck | None:
    """The model, if it is energy-based."""
    return model if bank is not None and isinstance(model, EnergyBottleneck) else None


def require_concepts(model: nn.Module, bank: Any = True) -> ConceptBottleneck | EnergyBottleneck:
    """Return the model if it has concepts that can be set.

    Args:
        model: any classifier of features.
        bank: the concepts of its columns, or None.

    Raises:
        UserError: the model has no concepts.
    """
    if not has_concepts(model, bank):
        raise UserError(
            f"this model ({type(model).__name__}) has no concepts to explain or edit: train a bottleneck, such as "
            "method=labo"
        )
    return model  # type: ignore[return-value]


def require_linear(model: nn.Module, bank: Any = True) -> ConceptBottleneck:
    """Return the model if a linear head reads its concepts.

    Args:
        model: any classifier of features.
        bank: the concepts of its columns, or None.

    Raises:
        UserError: the model has no concepts, or energies instead of a head.
    """
    if isinstance(require_concepts(model, bank), EnergyBottleneck):
        raise UserError(
            "an energy-based model has no linear head: set, mask, scale or shift its concepts, or ask what follows "
            "from one that is set (cbm.Editor.follow)"
        )
    return model  # type: ignore[return-value]
