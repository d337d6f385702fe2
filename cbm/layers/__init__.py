"""The one model: scores, activation, head, residual."""

from cbm.layers.activations import Activation, Cube, Largest, TopK
from cbm.layers.bottleneck import ConceptBottleneck
from cbm.layers.heads import AssociationHead, Head, LinearHead, owner_prior
from cbm.layers.probe import LinearProbe
from cbm.layers.serialise import load_model, save_model

__all__ = [
    "Activation",
    "AssociationHead",
    "ConceptBottleneck",
    "Cube",
    "Head",
    "Largest",
    "LinearHead",
    "LinearProbe",
    "TopK",
    "load_model",
    "owner_prior",
    "save_model",
]
