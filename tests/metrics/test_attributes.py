"""Values, levels and numbers told by concepts whose scores are set by hand, against counts by hand."""

import pytest
import torch

from cbm.concepts import Concept, ConceptBank
from cbm.data.dataset import ConceptSpec
from cbm.data.features import FeatureData, FeatureSplit
from cbm.layers import ConceptBottleneck, LinearHead, Valued
from cbm.metrics.attributes import attribute_metrics

NAMES = ["colour: red", "colour: blue", "size: middle or more", "size: large", "weight"]
SPECS = [
    ConceptSpec("colour", "categorical", NAMES[:2], ["red", "blue"]),
    ConceptSpec("size", "ordinal", NAMES[2:4], ["small", "middle", "large"]),
    ConceptSpec("weight", "continuous", ["weight"], unit="g"),
]
SCORES = torch.tensor([  # red wins twice; small, middle, large, middle; a weight in deviations
    [2.0, 0.0, -1.0, -2.0, -1.0], [0.0, 1.0, 1.0, -1.0, 0.0], [3.0, 1.0, 2.0, 1.0, 1.0], [0.0, 2.0, 1.0, -3.0, 0.5],
])  # fmt: skip
TOLD = torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1], [torch.nan, torch.nan, torch.nan, torch.nan]])
WEIGHTS = torch.tensor([[10.0], [20.0], [40.0], [torch.nan]])


def measured(specs: list[ConceptSpec] = SPECS) -> dict[str, float]:
    number, group = torch.tensor([False] * 4 + [True]), torch.tensor([0, 0, -1, -1, -1])
    model = ConceptBottleneck(
        torch.eye(5), LinearHead(torch.zeros(2, 5)), activation=Valued(torch.zeros(5), number, group)
    )
    about = {"number": {"mean": 20.0, "sd": 10.0, "unit": "g", "low": 10.0, "high": 40.0}}
    bank = ConceptBank("b", "b", tuple(Concept(name, provenance=about if name == "weight" else {}) for name in NAMES))
    split = FeatureSplit(SCORES, torch.tensor([0, 1, 0, 1]), list("abcd"), TOLD, values=WEIGHTS)
    data = FeatureData({"train": split}, ["x", "y"], concept_names=NAMES[:4], specs=specs)
    return attribute_metrics(model, bank, split, data)


def test_every_kind():
    found = measured()
    assert found["concept_value_accuracy"] == pytest.approx(2 / 3)  # the second is said to be blue, the fourth unknown
    assert found["concept_kappa"] == pytest.approx(1.0)
    assert found["concept_off_by_one"] == 1.0
    assert found["concept_r2"] == pytest.approx(1 - 10**2 / (10**2 + 20**2))  # 10, 20, 30 of 10, 20, 40 g
    assert found["concept_concordance"] == 1.0


def test_what_the_bank_lacks_is_not_measured():
    assert measured([]) == {}
    absent = ConceptSpec("shape", "categorical", ["shape: round", "shape: flat"], ["round", "flat"])
    assert measured([absent]) == {}
