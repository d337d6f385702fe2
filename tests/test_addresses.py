"""Names that others import by the address they had before the house was rebuilt."""

import importlib

import pytest

import cbm


@pytest.mark.parametrize(
    ("module", "name", "public"),
    [
        ("cbm.editor", "Editor", "Editor"),
        ("cbm.estimator", "ConceptClassifier", "ConceptClassifier"),
        ("cbm.trained", "TrainedModel", "TrainedModel"),
        ("cbm.trained", "Prediction", "Prediction"),
        ("cbm.trained", "load", "load"),
    ],
)
def test_public_classes(module: str, name: str, public: str):
    assert getattr(importlib.import_module(module), name) is getattr(cbm, public)


@pytest.mark.parametrize("name", ["train", "evaluate", "rewrite_report"])
def test_what_runs(name: str):
    """The functions, although the modules they are in have the same names."""
    importlib.import_module(f"cbm.run.{name}")
    found = getattr(importlib.import_module("cbm.run"), name)
    assert callable(found)
    assert found.__module__ == f"cbm.run.{name}"


@pytest.mark.parametrize("name", ["PARTIAL", "SHIPPED", "cannot_write", "resolve_path", "write_atomically"])
def test_files(name: str):
    assert hasattr(importlib.import_module("cbm.files"), name)


def test_the_choices_of_the_schema_are_those_of_the_code():
    """``cbm.config`` lies below the rooms whose choices it checks, so it says them itself."""
    from cbm.concepts import CONTROLS
    from cbm.config import CHOICES
    from cbm.data.store import DTYPES
    from cbm.encoders.base import AUTOCAST

    assert CHOICES["concepts.control"] == CONTROLS
    assert CHOICES["encoder.store_dtype"] == CHOICES["teacher.store_dtype"] == tuple(DTYPES)
    assert CHOICES["encoder.precision"] == CHOICES["teacher.precision"] == tuple(AUTOCAST)
