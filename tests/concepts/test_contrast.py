from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cbm.concepts import Concept, ConceptBank, read_bank
from cbm.concepts.prepare import prepare_bank, warn_shared_reference
from cbm.errors import UserError


def test_a_phrase_against_a_reference(tmp_path: Path):
    """The direction from one text to the other, and the same spelling in a list and in JSON."""
    (tmp_path / "a.txt").write_text("ulcer | skin\nred spot\n")
    (tmp_path / "a.json").write_text('[{"text": "ulcer", "contrast": "skin"}, "red spot"]')
    said = {"ulcer": [1.0, 0.0, 0.0], "skin": [0.6, 0.8, 0.0], "red spot": [0.0, 0.0, 1.0]}

    def encode_text(texts):
        return torch.tensor([said[text] for text in texts])

    for name in ("a.txt", "a.json"):
        bank = read_bank(tmp_path / name)
        assert bank.texts == ["ulcer", "red spot"]
        made = prepare_bank(bank, ["x", "y"], encode_text, "e", hygiene=False, max_words=9, remove_class_names="none")
        expected = torch.tensor([0.4, -0.8, 0.0])
        torch.testing.assert_close(made.directions()[0], expected / expected.norm())
        torch.testing.assert_close(made.directions()[1], torch.tensor(said["red spot"]))
        assert made.concepts[0].provenance["contrast"]["norm"] == pytest.approx(float(expected.norm()))
    (tmp_path / "same.txt").write_text("ulcer | ulcer\n")
    with pytest.raises(UserError, match=r"'ulcer \| ulcer': the encoder cannot tell the two apart"):
        prepare_bank(read_bank(tmp_path / "same.txt"), ["x", "y"], encode_text, "e", hygiene=False, max_words=9,
                     remove_class_names="none")  # fmt: skip


def test_one_reference_for_everything_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    x = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    alike = torch.tensor([[1.0, 0.0, 0.0], [0.999, 0.04, 0.0]])
    about = {"contrast": {"reference": "skin", "norm": 1.0}}
    concepts = tuple(Concept(text, provenance=about) for text in ("ulcer", "spot"))
    bank = ConceptBank("b", "b", concepts, embeddings=torch.nn.functional.normalize(alike, dim=1))
    warn_shared_reference(bank, x)
    assert "2 contrast concepts have nearly the same scores" in caplog.text
    caplog.clear()
    warn_shared_reference(replace(bank, embeddings=torch.eye(3)[:2]), x)
    assert not caplog.text
