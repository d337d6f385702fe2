"""The former address of ``cbm.ConceptClassifier``, which stands."""

from cbm.trained.estimator import ConceptClassifier

__all__ = ["ConceptClassifier"]
