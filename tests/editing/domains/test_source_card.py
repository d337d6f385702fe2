"""What is kept of the domain a model was trained for."""

import pytest
import torch

from cbm.editing import load_source_card, source_card
from cbm.editing.domains.source_card import PER_CLASS
from cbm.errors import UserError


def test_as_many_of_every_class_and_back_from_disk(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(700, 8, generator=g), dim=1)
    y = torch.tensor([0] * 500 + [1] * 150 + [3] * 50)
    card = source_card(x, y, 4)
    assert card.y.bincount(minlength=4).tolist() == [PER_CLASS, 150, 0, 50]
    rows = (card.x[:, None] == x[None]).all(dim=2).float().argmax(dim=1)
    assert len(set(rows.tolist())) == len(rows)
    assert torch.equal(y[rows], card.y)
    card.save(tmp_path / "card.safetensors")
    back = load_source_card(tmp_path / "card.safetensors")
    torch.testing.assert_close(back.x, card.x, rtol=1e-3, atol=1e-4)
    assert torch.equal(back.y, card.y)
    many = source_card(x, y, 1_000)
    assert int(many.y.bincount().max()) == 50


def test_absent_and_damaged(tmp_path):
    with pytest.raises(UserError, match="no source card .* train the run again"):
        load_source_card(tmp_path / "card.safetensors")
    (tmp_path / "card.safetensors").write_bytes(b"not a card")
    with pytest.raises(UserError, match="damaged or was not written by cbm"):
        load_source_card(tmp_path / "card.safetensors")
