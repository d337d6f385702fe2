"""Heat maps: on paper birds, whose parts are known because a bird can be drawn again with a part of another colour."""

import functools

import numpy as np
import pytest
import torch
from conftest import PROJECT, PixelEncoder
from PIL import Image
from torch.nn.functional import interpolate, normalize
from torchmetrics.functional.classification import binary_auroc

from cbm.data.birds import ATTRIBUTES, GROUPS, part_pixels, random_birds, render
from cbm.encoders import create_encoder
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe
from cbm.trained.heat_map import heat_map

PARTS = ("belly colour", "wing colour", "crown colour", "beak colour")
BIRDS = 12


@functools.cache
def tiny_clip():
    return create_encoder(f"local-dir:{PROJECT / 'cbm/encoders/tiny_clip'}", device="cpu")


@functools.cache
def birds(group: str) -> list[tuple[Image.Image, str, torch.Tensor]]:
    """Pictures, what they show of a group, and where: pixels ``[64, 64]`` that change with its value."""
    g, values, found = GROUPS.index(group), list(ATTRIBUTES[group].values()), []
    _, attributes = random_birds(BIRDS, seed=5)
    for picture, part, value in zip(render(attributes, 7), part_pixels(attributes, group, 7), attributes[:, g]):
        if part.sum() >= 12:
            found.append((Image.fromarray(picture), values[value], torch.from_numpy(part)))
    return found


def bottleneck(texts: list[str]) -> ConceptBottleneck:
    concepts = normalize(tiny_clip().encode_text(texts), dim=1)
    return ConceptBottleneck(concepts, LinearHead(torch.zeros(2, len(texts))))


@pytest.mark.parametrize("group", PARTS)
def test_covering_finds_the_part(group: str):
    """Pixels of the part rank above the others: by chance .5; of another part's map (same birds) it is less."""
    aurocs, aside = [], []
    others = birds(PARTS[PARTS.index(group) - 1])
    for (picture, text, part), (_, other_text, _) in zip(birds(group), others):
        model = bottleneck([text, other_text])
        for column, values in ((0, aurocs), (1, aside)):
            found = heat_map(tiny_clip(), model, column, picture)
            assert found.method == "covering"  # the bundled encoder has 2 x 2 positions: too few
            fine = interpolate(found.values[None, None], (64, 64), mode="bilinear")
            values.append(float(binary_auroc(fine.flatten(), part.flatten().int())))
    assert len(aurocs) >= BIRDS // 2
    lowest = np.mean(aurocs) - 2 * np.std(aurocs) / len(aurocs) ** 0.5
    assert lowest > 0.5
    assert np.mean(aurocs) > np.mean(aside)


def test_covering_is_the_fall_of_the_score():
    """Against a loop: the mean fall over the windows that cover a cell."""
    encoder, model = tiny_clip(), bottleneck(["yellow belly"])
    picture = birds("belly colour")[0][0]
    values = heat_map(encoder, model, 0, picture, "covering").values
    pixels = encoder.preprocess(picture)
    score = lambda p: float(normalize(encoder.encode_images(p[None]), dim=1) @ model.concepts[0])  # noqa: E731
    falls = []
    for top in (2, 3):  # the four windows of 16 pixels, 8 apart, over the cell in row 3, column 5
        for left in (4, 5):
            covered = pixels.clone()
            covered[:, 8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = pixels.mean(dim=(1, 2), keepdim=True)
            falls.append(score(pixels) - score(covered))
    assert values.shape == (8, 8)
    assert float(values[3, 5]) == pytest.approx(np.mean(falls), abs=1e-5)


def test_positions_when_asked_for():
    found = heat_map(tiny_clip(), bottleneck(["yellow belly"]), 0, birds("belly colour")[0][0], "positions")
    assert found.method == "positions"
    assert found.values.shape == (2, 2)
    assert float(found.values.mean()) == pytest.approx(0, abs=1e-6)
    assert found.overlay(100).size == (100, 100)


def test_a_uniform_picture_has_no_place():
    """Nothing to cover: every window leaves it as it is."""
    found = heat_map(tiny_clip(), bottleneck(["yellow belly"]), 0, Image.new("RGB", (64, 64), (90, 90, 90)))
    assert float(found.values.abs().max()) < 1e-5
    found.overlay()


def test_bad_input_is_said():
    model = bottleneck(["yellow belly"])
    picture = Image.new("RGB", (16, 16))
    with pytest.raises(UserError, match="did you mean 'covering'"):
        heat_map(tiny_clip(), model, 0, picture, "cover")
    with pytest.raises(UserError, match="no concepts"):
        heat_map(tiny_clip(), LinearProbe(torch.zeros(2, 128), torch.zeros(2)), 0, picture)
    pixels = ConceptBottleneck(torch.eye(16), LinearHead(torch.zeros(2, 16)))
    assert heat_map(PixelEncoder(), pixels, 0, picture).method == "covering"
    with pytest.raises(UserError, match="covering"):
        heat_map(PixelEncoder(), pixels, 0, picture, "positions")
