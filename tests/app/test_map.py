"""The map: principal components, whole numbers, colours, and what is chosen on it."""

import base64

import numpy as np
import pytest
import torch
from explored_run import explored, explored_labels, explored_values
from hypothesis import given
from hypothesis import strategies as st

from cbm.app import Session
from cbm.app.filters import scores_of
from cbm.app.map import (
    CLASS,
    CONCEPTS,
    CYCLE,
    FEATURES,
    HELD,
    LEVELS,
    RIGHT,
    STEPS,
    coloured,
    draw,
    place,
    principal,
    scaled,
    ways_to_colour,
    ways_to_place,
)
from cbm.app.render import render
from cbm.errors import UserError


def read(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_components_are_those_of_a_singular_value_decomposition():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((400, 9)) @ np.diag([5.0, 3, 1, 1, 0.5, 0.5, 0.2, 0.1, 0.1]) + 2
    points, share = principal(torch.from_numpy(x).float())
    away = x - x.mean(axis=0)
    u, s, v = np.linalg.svd(away, full_matrices=False)
    expected = away @ v[:2].T
    for axis in (0, 1):
        sign = np.sign(v[axis][np.abs(v[axis]).argmax()])
        inside = np.abs(points[:, axis].numpy()) < 1
        ratio = points[:, axis].numpy()[inside] / (sign * expected[inside, axis])
        assert ratio == pytest.approx(ratio[0], rel=1e-3)
        assert ratio[0] > 0
    assert share == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()), rel=1e-5)


def test_one_dimension_and_equal_pictures_have_a_map():
    assert principal(torch.randn(50, 1))[0].shape == (50, 2)
    points, share = principal(torch.ones(20, 5))
    assert bool(points.isfinite().all())
    assert 0 <= share <= 1


@given(st.integers(1, 400), st.floats(1e-3, 1e3))
def test_everything_is_in_the_square(count: int, size: float):
    points = scaled(size * torch.randn(count, 2, generator=torch.Generator().manual_seed(count)))
    assert float(points.abs().max()) <= 1
    assert float(points.abs().max()) > 0.9


def test_places_are_sent_as_whole_numbers():
    explorer = explored()
    tab = Session(explorer)
    for by in ways_to_place(explorer)[:2]:
        found = draw(tab, by, CLASS)
        sent = read(found.points, "<i2").reshape(-1, 2) / STEPS
        assert np.abs(sent - place(explorer, by)[0].numpy()).max() <= 0.5 / STEPS + 1e-7
        assert read(found.colours, "u1").tolist() == (explorer.split.y % CYCLE).tolist()
        labels = read(found.labels, "<u2").reshape(-1, 2)
        assert labels.tolist() == torch.stack([explorer.split.y, explorer.predicted], dim=1).tolist()
        assert 0 < found.explained <= 1


def test_colours_say_what_they_mean():
    tab = Session(explored())
    explorer = tab.explorer
    wrong, scale, legend = coloured(tab, RIGHT)
    assert (scale, legend) == ("two", ["right", "wrong"])
    assert int(wrong.sum()) == int((explorer.predicted != explorer.split.y).sum())
    with pytest.raises(UserError, match="choose a concept first"):
        coloured(tab, HELD)
    tab.hold(3)
    shade, scale, _ = coloured(tab, HELD)
    scores = scores_of(explorer, 3)
    assert scale == "shades"
    assert int(shade.max()) <= LEVELS - 1
    assert int(shade[scores.argmax()]) == int(shade.max())
    order = scores.argsort()
    assert bool((shade[order].int().diff() >= 0).all())
    with pytest.raises(UserError, match="no colours by"):
        coloured(tab, "mood")
    with pytest.raises(UserError, match="did you mean 'features'"):
        place(explorer, "feature")


def test_labels_groups_and_the_page():
    many = Session(explored_labels())
    assert ways_to_colour(many.explorer)[0] == RIGHT
    assert CLASS not in ways_to_colour(many.explorer)
    assert draw(many, FEATURES, RIGHT).labels == ""
    grouped = Session(explored_values())
    column = next(iter(grouped.explorer.split.groups))
    values, _, legend = coloured(grouped, column)
    assert legend == grouped.explorer.data.group_names[column][:CYCLE]
    assert values.tolist() == [CYCLE if v < 0 else v % CYCLE for v in grouped.explorer.split.groups[column].tolist()]
    page = render("map", map=draw(Session(explored()), CONCEPTS, RIGHT))
    assert "<canvas" in page
    assert 'data-scale="two"' in page


def test_names_in_the_map_are_text():
    evil = "\"><script>alert('x')</script>"
    found = draw(Session(explored()), FEATURES, CLASS)
    page = render("map", map=type(found)(found.points, found.colours, "classes", [evil], "", [evil], None))
    assert "<script>" not in page
