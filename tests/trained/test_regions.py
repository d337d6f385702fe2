"""Deleting what a heat map calls strongest: fills by hand, planted parts of paper birds, and what is not decided."""

import functools

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image
from torch.nn.functional import normalize

from cbm.data.birds import ATTRIBUTES, GROUPS, part_pixels, random_birds, render
from cbm.encoders import create_encoder
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.trained.regions import (
    CHOICES,
    FILLS,
    SHARES,
    UNDECIDED,
    RegionDeletion,
    compare_regions,
    delete_regions,
    fill,
    strongest,
)


def test_fills_change_the_region_alone():
    pixels = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(20, 24, dtype=torch.bool)
    region[5:11, 8:20] = True
    for kind in FILLS:
        filled = fill(pixels, region, kind, torch.tensor([0.1, 0.2, 0.3]))
        assert torch.equal(filled[:, ~region], pixels[:, ~region])
        assert not torch.equal(filled, pixels)
    assert fill(pixels, region, "colour", torch.tensor([0.1, 0.2, 0.3]))[:, 7, 9].tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    flat = torch.full((3, 20, 24), 0.7)
    for kind in ("blur", "border"):
        torch.testing.assert_close(fill(flat, region, kind, torch.zeros(3)), flat)
    with pytest.raises(ValueError, match="kind is 'noise'"):
        fill(pixels, region, "noise", torch.zeros(3))
    with pytest.raises(ValueError, match="expected one with a border"):
        fill(pixels, torch.ones_like(region), "border", torch.zeros(3))


def test_border_fill_against_a_loop():
    pixels = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    region = torch.zeros(9, 9, dtype=torch.bool)
    region[0:4, 3:8] = True  # it touches the edge of the picture
    values, known = pixels.numpy().copy(), ~region.numpy()
    while not known.all():
        ring = [(i, j) for i in range(9) for j in range(9) if not known[i, j]]
        fresh = {}
        for i, j in ring:
            around = [(a, b) for a in range(max(i - 1, 0), min(i + 2, 9)) for b in range(max(j - 1, 0), min(j + 2, 9))
                      if known[a, b]]  # fmt: skip
            if around:
                fresh[i, j] = np.mean([values[:, a, b] for a, b in around], axis=0)
        for (i, j), value in fresh.items():
            values[:, i, j], known[i, j] = value, True
    np.testing.assert_allclose(fill(pixels, region, "border", torch.zeros(3)).numpy(), values, atol=1e-9)


def test_how_many_patches():
    values = torch.arange(64.0).view(8, 8)
    assert [int(strongest(values, share).sum()) for share in SHARES] == [3, 6, 13]
    assert strongest(values, 0.05).nonzero().tolist() == [[7, 5], [7, 6], [7, 7]]
    assert int(strongest(torch.zeros(2, 2), 0.05).sum()) == 1


@functools.cache
def measured() -> list[RegionDeletion]:
    """Birds whose belly can be seen, by the score of its own colour, on which a class of its own hangs; the other map
    is of the crown's."""
    encoder = create_encoder(f"local-dir:{PROJECT / 'cbm/encoders/tiny_clip'}", device="cpu")
    _, attributes = random_birds(30, seed=5)
    pictures = [Image.fromarray(picture) for picture in render(attributes, 7)]
    texts = [*ATTRIBUTES["belly colour"].values(), *ATTRIBUTES["crown colour"].values()]
    head = torch.eye(len(ATTRIBUTES["belly colour"]), len(texts))
    model = ConceptBottleneck(normalize(encoder.encode_text(texts), dim=1), LinearHead(head))
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures])
    spread = model.scores(normalize(encoder.encode_images(pixels), dim=1)).std(dim=0)
    found, belly, crown = [], GROUPS.index("belly colour"), GROUPS.index("crown colour")
    for n, part in enumerate(part_pixels(attributes, "belly colour", 7)):
        if part.sum() >= 12 and len(found) < 20:
            column = int(attributes[n, belly])
            other = len(ATTRIBUTES["belly colour"]) + int(attributes[n, crown])
            found.append(delete_regions(encoder, model, column, other, pictures[n], pixels.mean(dim=(0, 2, 3)),
                                        spread=float(spread[column]), seed=n))  # fmt: skip
    return found


def test_a_planted_attribute_falls_more_than_by_random_patches():
    found = measured()
    assert len(found) == 20
    rows = {(row.share, row.control): row for row in compare_regions(found)}
    for share in SHARES:
        assert rows[share, "random"].verdict == rows[share, "other"].verdict == "more"
        assert min(rows[share, "random"].wins.values()) >= 0.8
        assert min(rows[share, "random"].logit.values()) > 0  # the class that reads the score falls with it


def test_fills_that_disagree_decide_nothing():
    score = torch.zeros(len(FILLS), len(SHARES), len(CHOICES))
    score[:, :, 0] = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    rows = compare_regions([RegionDeletion(score, score)] * 3)
    assert [row.verdict for row in rows if row.control == "random"] == ["more", UNDECIDED, "less"]
    assert [row.wins["blur"] for row in rows if row.control == "other"] == [1.0, 1.0, 0.0]
