"""A column that is a label and a concept: the concept is no evidence for its own label, it is the label."""

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData


def other_concepts(bank: ConceptBank, data: FeatureData) -> Tensor | None:
    """Which concepts the head of every label may read, ``[L, K]`` bool: all but the label's own column, where a table
    says that a column is both (``allow_overlap``). None if no label has a concept of its own in the bank, or if images
    have classes.

    Args:
        bank: the K concepts.
        data: encoded splits; of an attribute with values, levels or a number all its concepts are the column's.

    Example:
        >>> from cbm.concepts import Concept
        >>> from cbm.data import FeatureSplit
        >>> bank = ConceptBank("b", "b", (Concept("red"), Concept("wet")))
        >>> train = FeatureSplit(torch.ones(1, 2), torch.ones(1, 2), ["a.png"])
        >>> other_concepts(bank, FeatureData({"train": train}, ["wet", "old"], concept_names=["red", "wet"])).tolist()
        [[True, False], [True, True]]
        >>> other_concepts(bank, FeatureData({"train": train}, ["warm", "old"], concept_names=["red", "wet"])) is None
        True
    """
    if not data.many:
        return None
    columns = {name: [name] for name in data.concept_names}
    columns |= {spec.name: [spec.name] if spec.kind == "continuous" else spec.columns for spec in data.specs}
    allowed = torch.ones(len(data.classes), len(bank), dtype=torch.bool)
    for label, name in enumerate(data.classes):
        allowed[label, [k for k, _ in match_concepts(bank.phrases, columns.get(name, []))]] = False
    return None if bool(allowed.all()) else allowed
