"""The one model: scores, activation, head, residual."""

from cbm.layers.activations import Activation, Cube, Largest, Sigmoid, TopK, Valued
from cbm.layers.asking import LearnedAsking
from cbm.layers.bottleneck import ConceptBottleneck
from cbm.layers.codes import Coded, SparseCode, UnitCode
from cbm.layers.covariance import ConceptCovariance
from cbm.layers.embedding import ConceptEmbeddings, Embedded, Unnamed
from cbm.layers.energy import EnergyBottleneck, ReleasedEnergyBottleneck
from cbm.layers.heads import AssociationHead, Head, LinearHead, owner_prior
from cbm.layers.link import Linked, decide, is_many, one_class, probabilities, thresholds_of
from cbm.layers.predict import predict_logits
from cbm.layers.probe import LinearProbe
from cbm.layers.require import energies_or_none, has_concepts, linear_or_none, require_concepts, require_linear
from cbm.layers.serialise import load_model, save_model

__all__ = [
    "Activation",
    "AssociationHead",
    "Coded",
    "ConceptBottleneck",
    "ConceptCovariance",
    "ConceptEmbeddings",
    "Cube",
    "Embedded",
    "EnergyBottleneck",
    "Head",
    "Largest",
    "LearnedAsking",
    "LinearHead",
    "LinearProbe",
    "Linked",
    "ReleasedEnergyBottleneck",
    "Sigmoid",
    "SparseCode",
    "TopK",
    "UnitCode",
    "Unnamed",
    "Valued",
    "decide",
    "energies_or_none",
    "has_concepts",
    "is_many",
    "linear_or_none",
    "load_model",
    "one_class",
    "owner_prior",
    "predict_logits",
    "probabilities",
    "require_concepts",
    "require_linear",
    "save_model",
    "thresholds_of",
]
