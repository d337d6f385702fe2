"""Save and load a trained classifier as one safetensors file with a line that names its parts. No pickle."""

from pathlib import Path

import torch
from torch import nn

from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors
from cbm.layers.activations import Activation, Cube, Largest, Sigmoid, TopK, Valued
from cbm.layers.asking import LearnedAsking
from cbm.layers.bottleneck import ConceptBottleneck
from cbm.layers.codes import SparseCode, UnitCode
from cbm.layers.covariance import ConceptCovariance
from cbm.layers.embedding import ConceptEmbeddings, Embedded, Unnamed
from cbm.layers.energy import EnergyBottleneck, ReleasedEnergyBottleneck
from cbm.layers.heads import AssociationHead, Head, LinearHead
from cbm.layers.link import Linked, is_many
from cbm.layers.probe import LinearProbe
from cbm.solvers.concept_blocks import ConceptBlocks

ACTIVATIONS: dict[str, type[Activation]] = {
    kind.__name__: kind for kind in (TopK, Largest, Cube, Sigmoid, Valued, SparseCode, UnitCode)
}
ENERGIES = {kind.__name__: kind for kind in (EnergyBottleneck, ReleasedEnergyBottleneck)}


def save_model(model: nn.Module, path: Path) -> None:
    """Write a ``ConceptBottleneck``, an ``EnergyBottleneck`` or a ``LinearProbe``.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    kind = {"model": type(model).__name__}
    if isinstance(model, ConceptBottleneck):
        kind["head"] = type(model.head).__name__
        kind["activation"] = "" if model.activation is None else type(model.activation).__name__
        if isinstance(model.residual, Unnamed):
            kind["residual"] = "Unnamed"
    if is_many(model):
        kind["link"] = "sigmoid"
    write_tensors(path, model.state_dict(), kind)


def load_model(path: Path) -> nn.Module:
    """Read what ``save_model`` wrote, in evaluation mode, without gradients.

    Raises:
        UserError: the file is missing, damaged, or not a classifier.
    """
    try:
        tensors, kind = read_tensors(path)
        model = _build(kind, tensors)
        if isinstance(model, Linked) and kind.get("link", "softmax") != "softmax":
            model.link = "sigmoid"
            model.thresholds = tensors.get("thresholds")
        model.load_state_dict(tensors)
        if bad := [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.isnan().any()]:
            raise UserError(f"'{path}' is damaged: '{bad[0]}' holds NaN")
    except FileNotFoundError as error:
        raise UserError(f"no model in '{path.parent}': expected {path.name} (is the run finished?)") from error
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{path}' is damaged or was not written by cbm ({type(error).__name__})") from error
    return model.eval().requires_grad_(False)


def _build(kind: dict[str, str], tensors: dict[str, torch.Tensor]) -> nn.Module:
    if kind["model"] == "LinearProbe":
        return LinearProbe(tensors["matrix"], tensors["bias"])
    if kind["model"] in ENERGIES:
        blocks = ConceptBlocks(len(tensors["steps"]), tensors["values"], tensors["allowed"])
        (num_classes, hidden), dim = tensors["class_table"].shape, len(tensors["mean"])
        return ENERGIES[kind["model"]](dim, num_classes, blocks, hidden=hidden, vectors=tensors.get("vectors"))
    if kind["head"] == "AssociationHead":
        head: Head = AssociationHead(tensors["head.logits"], tensors.get("head.bias"))
    else:
        head = LinearHead(tensors["head.matrix"], tensors.get("head.bias"))
    activation: Activation | None = None
    if kind.get("activation") == "Embedded":
        activation = Embedded(_embeddings(tensors), _asks(tensors))
    elif name := kind.get("activation"):
        settings = {key.removeprefix("activation."): tensor for key, tensor in tensors.items() if "activation." in key}
        activation = ACTIVATIONS[name](**settings)
    covariance = None
    if "covariance.bias" in tensors:
        covariance = ConceptCovariance(tensors["covariance.bias"], tensors.get("covariance.weight"))
    model = ConceptBottleneck(
        tensors["concepts"], head, activation=activation, mixing=tensors.get("mixing"),
        correlation=tensors.get("correlation"), covariance=covariance,
    )  # fmt: skip
    if kind.get("residual") == "Unnamed":
        assert isinstance(activation, Embedded)
        parts = {key.removeprefix("residual."): tensor for key, tensor in tensors.items() if "residual." in key}
        model.residual = Unnamed(activation.embeddings, **parts)
    elif "residual.matrix" in tensors:
        model.residual = LinearProbe(tensors["residual.matrix"], tensors["residual.bias"])
    return model


def _asks(tensors: dict[str, torch.Tensor]) -> LearnedAsking | None:
    member = tensors.get("activation.asks.member")
    if member is None:
        return None
    return LearnedAsking(member, tensors["activation.embeddings.scorer"].shape[1] // 2)


def _embeddings(tensors: dict[str, torch.Tensor]) -> ConceptEmbeddings:
    found = {name.removeprefix("activation.embeddings."): tensor for name, tensor in tensors.items()}
    scorers, both = found["scorer"].shape
    width = both // 2
    count = len(found["context.weight"]) // both
    return ConceptEmbeddings(
        found["mean"], found["std"], count, width, mixed="common" in found, shared_scorer=scorers == 1 != count
    )
