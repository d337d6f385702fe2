"""Metrics that are measured for every run."""

from typing import TYPE_CHECKING, Any

from cbm.metrics.classification import chance_accuracy, class_accuracies, classification_metrics, mcnemar, unequal
from cbm.metrics.concept_labels import concept_label_metrics, concept_probability_metrics
from cbm.metrics.grounding import concept_gaps, grounding_gap
from cbm.metrics.integrity import Evidence, Integrity
from cbm.metrics.intervention import InterventionCurve, intervention_curve
from cbm.metrics.sparsity import effective_concepts, nonzero_concepts, top_concepts, truncated_weights

if TYPE_CHECKING:
    from cbm.metrics.alignment import ConceptAlignment
    from cbm.metrics.image_sparsity import ImageSparsity
    from cbm.metrics.stability import TopConceptStability

__all__ = [
    "ConceptAlignment",
    "Evidence",
    "ImageSparsity",
    "Integrity",
    "InterventionCurve",
    "TopConceptStability",
    "chance_accuracy",
    "class_accuracies",
    "classification_metrics",
    "concept_gaps",
    "concept_label_metrics",
    "concept_probability_metrics",
    "effective_concepts",
    "grounding_gap",
    "intervention_curve",
    "mcnemar",
    "nonzero_concepts",
    "top_concepts",
    "truncated_weights",
    "unequal",
]


def __getattr__(name: str) -> Any:
    """The metrics that are classes of torchmetrics, which takes seconds to import: when they are used."""
    import importlib

    places = {"ConceptAlignment": "alignment", "ImageSparsity": "image_sparsity", "TopConceptStability": "stability"}
    if name in places:
        return getattr(importlib.import_module(f"cbm.metrics.{places[name]}"), name)
    raise AttributeError(f"module 'cbm.metrics' has no attribute '{name}'")
