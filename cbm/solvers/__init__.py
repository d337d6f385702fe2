"""Solvers: functions from tensors to tensors, without modules, files or progress bars."""

from cbm.solvers.association_adam import AssociationAdam
from cbm.solvers.codes import Codes
from cbm.solvers.concept_matrix import ConceptMatrix, cms_scores, concept_matrix
from cbm.solvers.copula import fit_correlation, told_probabilities
from cbm.solvers.discriminability import (
    class_similarity,
    discriminability,
    mutual_information,
    negative_entropy,
    posterior_entropy,
)
from cbm.solvers.greedy_projection import greedy_projection
from cbm.solvers.logistic import fit_labels, fit_logistic
from cbm.solvers.projection import cos_cubed, fit_projection
from cbm.solvers.proximal_adam import ProximalAdam
from cbm.solvers.region import confidence_region
from cbm.solvers.scale import fit_scale
from cbm.solvers.scores import LinearScores
from cbm.solvers.semi_nmf import semi_nmf
from cbm.solvers.sparse_code import penalty_for_count, sparse_code
from cbm.solvers.sparse_mixing import SparseMixing, solve_mixing
from cbm.solvers.sparse_path import SparsePath, SparsePoint, elastic_net_path, elastic_net_paths, label_paths
from cbm.solvers.sparse_scores import SparseScores
from cbm.solvers.spherical_kmeans import medoids, spherical_kmeans
from cbm.solvers.submodular import greedy_select

__all__ = [
    "AssociationAdam",
    "Codes",
    "ConceptMatrix",
    "LinearScores",
    "ProximalAdam",
    "SparseMixing",
    "SparsePath",
    "SparsePoint",
    "SparseScores",
    "class_similarity",
    "cms_scores",
    "concept_matrix",
    "confidence_region",
    "cos_cubed",
    "discriminability",
    "elastic_net_path",
    "elastic_net_paths",
    "fit_correlation",
    "fit_labels",
    "fit_logistic",
    "fit_projection",
    "fit_scale",
    "greedy_projection",
    "greedy_select",
    "label_paths",
    "medoids",
    "mutual_information",
    "negative_entropy",
    "penalty_for_count",
    "posterior_entropy",
    "semi_nmf",
    "solve_mixing",
    "sparse_code",
    "spherical_kmeans",
    "told_probabilities",
]
