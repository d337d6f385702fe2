"""Paper birds: small pictures of birds drawn from named attributes, so that the truth about every concept is known.

A bird is one value for each of the groups in ``ATTRIBUTES`` (colour of the belly, shape of the beak, habitat, ...); a
*concept* is one value of one group, named by a short phrase such as ``yellow belly``. A species is a row of typical
values in ``SPECIES``; its individuals differ from the typical bird now and then, and every species has a look-alike
that differs in two to four groups only. Pictures are drawn with anti-aliased signed distance fields in numpy.

Variants:

- ``birds``: the clean one; the habitat says nothing about the species.
- ``birds_spurious``: in train and val 95 % of the birds of a species sit in its home habitat, in test none of it holds
  (habitat uniform). Everything but the habitat is the same as in ``birds``.
- ``birds_shift``: train and val are those of ``birds``; test comes from another camera (colour cast, blur, smaller).

In every variant the belly has the colour of the breast for most species, and for those an individual whose breast is
unusual has a belly to match in 9 of 10 cases: the two concepts are strongly correlated (an editor that changes one
should move the other).

Every number is a hash of (seed, split, species, number of the bird), so the same seed gives the same bytes however the
work is divided, and the first birds of a class stay the same when more are asked for.
"""

import csv
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from cbm.errors import UserError, did_you_mean
from cbm.files import new_folder

VARIANTS = ("birds", "birds_spurious", "birds_shift")
SPLITS = ("train", "val", "test")

# group -> short value -> concept phrase; the order of the groups is the order of the columns everywhere
ATTRIBUTES: dict[str, dict[str, str]] = {
    "breast colour": {c: f"{c} breast" for c in ("white", "yellow", "red", "blue", "brown", "black")},
    "belly colour": {c: f"{c} belly" for c in ("white", "yellow", "red", "blue", "brown", "black")},
    "wing colour": {c: f"{c} wing" for c in ("black", "brown", "grey", "blue", "green")},
    "wing pattern": {p: f"{p} wing" for p in ("plain", "barred", "spotted", "streaked")},
    "crown colour": {c: f"{c} crown" for c in ("black", "red", "yellow", "blue", "white")},
    "cheek colour": {c: f"{c} cheeks" for c in ("white", "grey", "brown", "black")},
    "eye": {"plain": "plain eye", "white": "white eye ring", "red": "red eye ring"},
    "beak shape": {
        "short": "short conical beak",
        "thin": "long thin beak",
        "hooked": "hooked beak",
        "flat": "broad flat beak",
    },
    "beak colour": {c: f"{c} beak" for c in ("yellow", "red", "black")},
    "crest": {"smooth": "smooth round head", "pointed": "pointed crest", "plume": "curled plume"},
    "tail shape": {"short": "short tail", "long": "long tail", "forked": "forked tail", "fan": "fan-shaped tail"},
    "tail colour": {c: f"{c} tail" for c in ("black", "white", "red", "blue")},
    "leg length": {"short": "short legs", "long": "long legs"},
    "leg colour": {c: f"{c} legs" for c in ("orange", "black", "grey")},
    "size": {"small": "small bird", "large": "large bird"},
    "habitat": {h: f"{h} in background" for h in ("water", "grass", "forest", "sand", "snow", "sky")},
}
GROUPS: tuple[str, ...] = tuple(ATTRIBUTES)
CONCEPTS: tuple[str, ...] = tuple(phrase for values in ATTRIBUTES.values() for phrase in values.values())

LABEL_RULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "patterned wings": ("any", ("barred wing", "streaked wing")),
    "showy head": ("any", ("red crown", "curled plume")),
    "blue feathers": ("any", ("blue wing", "blue tail")),
    "a shore behind it": ("any", ("water in background", "sand in background")),
    "a wading build": ("all", ("long legs", "large bird")),
    "a perching build": ("all", ("short legs", "pointed crest")),
}
"""Labels that follow from what a bird shows: any or all of some concepts. A bird has .15 to .46 of each."""

# How often an individual has the typical value of its species; habitat is drawn apart from the species.
TYPICAL = {"eye": 0.75, "leg length": 0.75, "size": 0.70}
TYPICAL_OTHERWISE = 0.80
BELLY_FOLLOWS_BREAST = 0.9
SPURIOUS_HOME = 0.95

# One row per species, values in the order of GROUPS; the last column is the home habitat (birds_spurious only).
# Rows stand in pairs of look-alikes that differ in two to four groups.
_SPECIES_TABLE = """
species   breast belly  wing  pattern  crown  cheek eye   beak   colour crest   tail   tailc leg   legcol size  home
Aldermoor yellow yellow black barred   black  white plain short  black  smooth  forked black short black  small forest
Brennick  yellow yellow black plain    yellow white plain short  black  smooth  forked black short black  small grass
Caldreth  white  white  grey  plain    black  white red   thin   red    smooth  short  white long  orange large water
Drennmar  white  white  grey  plain    white  grey  red   thin   black  smooth  short  white long  orange large sand
Elsdon    red    red    brown streaked red    brown plain short  yellow pointed long   red   short grey   small snow
Fenholt   red    white  brown streaked red    brown white short  yellow pointed long   black short grey   small forest
Gellinor  blue   blue   blue  spotted  blue   black white hooked black  pointed fan    blue  short grey   large forest
Hadrell   blue   blue   green spotted  blue   black white hooked yellow plume   fan    blue  short grey   large sky
Isvane    brown  brown  brown barred   black  brown plain hooked yellow smooth  fan    red   short black  large sky
Jorrimel  brown  brown  grey  barred   black  grey  plain hooked yellow smooth  long   red   short black  large sand
Kellowyn  white  white  black spotted  black  white white flat   yellow smooth  short  black short orange large water
Lorimund  black  black  black spotted  black  white red   flat   yellow smooth  short  white short orange large snow
Marsdeen  white  yellow green streaked yellow grey  white thin   black  plume   short  blue  short grey   small grass
Norvalle  white  yellow green plain    yellow grey  plain thin   black  plume   forked blue  short grey   small sky
Orsinet   black  black  blue  plain    red    black red   short  red    plume   long   black long  black  small sand
Pellandry black  black  blue  streaked red    black red   flat   red    plume   long   white long  black  small snow
Quennick  yellow yellow green barred   red    grey  red   hooked red    smooth  long   blue  short orange small forest
Rothwen   yellow yellow green plain    black  grey  red   hooked red    smooth  long   white short orange small grass
Selwick   brown  white  brown spotted  white  brown plain thin   red    pointed short  white long  grey   small water
Tavistan  brown  white  brown barred   white  brown white thin   red    pointed short  blue  long  grey   small grass
"""
SPECIES: dict[str, dict[str, str]] = {
    row.split()[0]: dict(zip(GROUPS, row.split()[1:], strict=True)) for row in _SPECIES_TABLE.strip().splitlines()[1:]
}
SPECIES_NAMES: tuple[str, ...] = tuple(SPECIES)

_VALUES = tuple(tuple(values) for values in ATTRIBUTES.values())  # short values by group number
_COUNTS = np.array([len(values) for values in _VALUES])
_OFFSETS = np.concatenate([[0], np.cumsum(_COUNTS)[:-1]])  # first concept column of each group
_GROUP = {name: number for number, name in enumerate(GROUPS)}


def typical_attributes() -> np.ndarray:
    """The species table as numbers: ``[S, G]`` int64, the value of each group (``habitat`` is the home habitat)."""
    return np.array([[_VALUES[g].index(row[name]) for g, name in enumerate(GROUPS)] for row in SPECIES.values()])


def home_habitats() -> dict[str, str]:
    """The phrase of the habitat that goes with a species where the set is ``birds_spurious``, by species.

    >>> home_habitats()["Caldreth"]
    'water in background'
    """
    return {species: ATTRIBUTES["habitat"][row["habitat"]] for species, row in SPECIES.items()}


def concepts_of(attributes: np.ndarray) -> np.ndarray:
    """Ground truth: attribute values ``[N, G]`` to one 0/1 column per concept ``[N, K]`` uint8, as in ``CONCEPTS``."""
    truth = np.zeros((len(attributes), len(CONCEPTS)), np.uint8)
    np.put_along_axis(truth, np.asarray(attributes) + _OFFSETS, 1, axis=1)
    return truth


def labels_of(truth: np.ndarray, names: Sequence[str] = CONCEPTS) -> np.ndarray:
    """What ``LABEL_RULES`` make of concepts ``[N, K]`` of 0 and 1: ``[N, L]`` float32.

    Args:
        truth: the concepts.
        names: what their columns are called.
    """
    shown = np.asarray(truth) == 1
    found = []
    for how, concepts in LABEL_RULES.values():
        columns = shown[:, [names.index(concept) for concept in concepts]]
        found.append(columns.any(axis=1) if how == "any" else columns.all(axis=1))
    return np.stack(found, axis=1).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------------
# sampling


def _hash(*parts: np.ndarray | int) -> np.ndarray:
    """Mix integers (broadcast together) into well-spread uint64: splitmix64, one round per part."""
    with np.errstate(over="ignore"):
        state = np.asarray(np.uint64(0x243F6A8885A308D3))
        for part in parts:
            state = (state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return state


def _uniform(keys: np.ndarray, n: int, stream: int) -> np.ndarray:
    """``n`` uniform numbers in [0, 1) for every key: ``[N, n]`` float64."""
    return (_hash(keys[:, None], stream, np.arange(n)[None, :]) >> np.uint64(11)) * 2.0**-53


def sample(
    variant: str = "birds", split: str = "train", n_per_class: int = 100, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the birds of one split, species by species.

    Returns ``attributes [N, G]`` int64 (value numbers, groups as in ``GROUPS``), ``labels [N]`` int64 (species as in
    ``SPECIES_NAMES``) and ``keys [N]`` uint64, the seeds of the pictures for ``render``. ``N = 20 * n_per_class``.
    """
    _check_variant(variant)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
    labels = np.repeat(np.arange(len(SPECIES)), n_per_class)
    keys = _hash(seed, SPLITS.index(split), labels, np.tile(np.arange(n_per_class), len(SPECIES)))
    typical = typical_attributes()[labels]  # [N, G]
    u_keep, u_other = np.split(_uniform(keys, 2 * len(GROUPS), stream=1), 2, axis=1)
    other = (u_other * (_COUNTS - 1)).astype(np.int64)  # any value but the typical one
    other += other >= typical
    keep = u_keep < [TYPICAL.get(group, TYPICAL_OTHERWISE) for group in GROUPS]
    attributes = np.where(keep, typical, other)

    breast, belly, habitat = _GROUP["breast colour"], _GROUP["belly colour"], _GROUP["habitat"]
    follows = (typical[:, breast] == typical[:, belly]) & (u_keep[:, belly] < BELLY_FOLLOWS_BREAST)
    attributes[:, belly] = np.where(follows, attributes[:, breast], attributes[:, belly])
    attributes[:, habitat] = (u_other[:, habitat] * _COUNTS[habitat]).astype(np.int64)
    if variant == "birds_spurious" and split != "test":
        home = u_keep[:, habitat] < SPURIOUS_HOME
        attributes[:, habitat] = np.where(home, typical[:, habitat], other[:, habitat])
    return attributes, labels, keys


def random_birds(n: int, seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Birds of no species: every group drawn uniformly and independently.

    Returns ``images [n, size, size, 3]`` uint8 and ``attributes [n, G]`` int64.
    """
    keys = _hash(seed, len(SPLITS), np.arange(n))
    attributes = (_uniform(keys, len(GROUPS), stream=1) * _COUNTS).astype(np.int64)
    return render(attributes, keys, size), attributes


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise UserError(f"unknown variant of the paper birds '{variant}': {did_you_mean(variant, VARIANTS)}")


# --------------------------------------------------------------------------------------------------------------------
# drawing
#
# A bird is drawn in its own coordinates: u forward, v up, the body about one unit long, facing right. For a chunk of n
# pictures with P pixels every distance field is [n, P] and the picture is [n, 3, P], both float32.

_PAINT = {
    "white": (0.96, 0.95, 0.92),
    "black": (0.10, 0.10, 0.12),
    "grey": (0.47, 0.50, 0.54),
    "brown": (0.50, 0.32, 0.17),
    "red": (0.83, 0.14, 0.13),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.98, 0.84, 0.16),
    "blue": (0.16, 0.36, 0.84),
    "green": (0.20, 0.55, 0.24),
}
_CHUNK = 16  # pictures drawn at a time: the fields of a chunk stay in the cache

# outlines (u, v), all of one kind padded to the same number of corners by repeating the last one
_BEAKS = {
    "short": ((0.74, 0.64), (0.88, 0.61), (1.06, 0.46), (0.88, 0.37), (0.74, 0.34)),
    "thin": ((0.74, 0.56), (1.00, 0.52), (1.46, 0.40), (1.00, 0.41), (0.74, 0.42)),
    "hooked": ((0.72, 0.67), (0.96, 0.66), (1.12, 0.53), (1.13, 0.22), (0.98, 0.40), (0.74, 0.35)),
    "flat": ((0.72, 0.58), (1.00, 0.50), (1.30, 0.53), (1.36, 0.43), (1.28, 0.34), (0.96, 0.36), (0.72, 0.36)),
}
_TAILS = {
    "short": ((-0.40, 0.10), (-1.00, -0.02), (-1.04, -0.22), (-0.44, -0.26)),
    "long": ((-0.40, 0.10), (-1.00, -0.10), (-1.56, -0.36), (-1.54, -0.54), (-1.00, -0.32), (-0.44, -0.24)),
    "forked": (
        (-0.4, 0.1),
        (-1.0, 0.08),
        (-1.42, 0.22),
        (-0.98, -0.12),
        (-1.36, -0.52),
        (-0.96, -0.34),
        (-0.44, -0.24),
    ),
    "fan": ((-0.4, 0.06), (-0.98, 0.4), (-1.18, 0.22), (-1.26, -0.06), (-1.2, -0.36), (-1.04, -0.56), (-0.44, -0.2)),
}
_CRESTS = {
    "smooth": ((0.50, 0.50),),  # hidden inside the head
    "pointed": ((0.66, 0.78), (0.52, 0.92), (0.02, 1.20), (0.20, 0.88), (-0.08, 0.86), (0.20, 0.62)),
    "plume": ((0.46, 0.78), (0.38, 1.04), (0.50, 1.22), (0.66, 1.24), (0.76, 1.12), (0.58, 1.08), (0.54, 0.80)),
}


def _outlines(table: dict[str, tuple]) -> np.ndarray:
    """Corner lists of different lengths to one array ``[V, M, 2]``."""
    longest = max(map(len, table.values()))
    return np.array([corners + corners[-1:] * (longest - len(corners)) for corners in table.values()], np.float32)


_BEAK_CORNERS, _TAIL_CORNERS, _CREST_CORNERS = _outlines(_BEAKS), _outlines(_TAILS), _outlines(_CRESTS)


def _polygon(u: np.ndarray, v: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance ``[n, P]`` to the polygon with ``corners [n, M, 2]`` (negative inside)."""
    nearest = np.full_like(u, 1e9)
    inside = np.zeros(u.shape, bool)
    for i in range(corners.shape[1]):
        (au, av), (bu, bv) = corners[:, i - 1, :, None].swapaxes(0, 1), corners[:, i, :, None].swapaxes(0, 1)
        eu, ev = bu - au, bv - av
        wu, wv = u - au, v - av
        t = np.clip((wu * eu + wv * ev) / (eu * eu + ev * ev + np.float32(1e-9)), 0, 1)
        np.minimum(nearest, (wu - eu * t) ** 2 + (wv - ev * t) ** 2, out=nearest)
        inside ^= ((v >= av) != (v >= bv)) & ((eu * wv > ev * wu) == (ev > 0))
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _capsule(u, v, au, av, bu, bv, radius_a, radius_b) -> np.ndarray:
    """Distance ``[n, P]`` to a stroke from a to b whose radius goes from ``radius_a`` to ``radius_b``."""
    eu, ev = bu - au, bv - av
    t = np.clip(((u - au) * eu + (v - av) * ev) / (eu * eu + ev * ev), 0, 1)
    return np.hypot(u - au - eu * t, v - av - ev * t) - (radius_a + (radius_b - radius_a) * t)


def _ellipse(u, v, cu, cv, ru, rv, degrees: float = 0.0) -> np.ndarray:
    """Approximate distance ``[n, P]`` to a turned ellipse (exact on the outline, right slope near it)."""
    c, s = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    p, q = c * (u - cu) + s * (v - cv), c * (v - cv) - s * (u - cu)
    k0 = np.hypot(p / ru, q / rv)
    return k0 * (k0 - 1) / (np.hypot(p / ru**2, q / rv**2) + np.float32(1e-6))


def _smooth_union(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Union of two shapes with the seam rounded over a distance ``k``."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * np.float32(k / 4)


def _backgrounds(x: np.ndarray, y: np.ndarray, habitat: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Landscapes ``[n, 3, P]`` on picture coordinates (-1..1, y up) ``[P]``; ``r [n, 24]`` are uniform numbers."""
    out = np.empty((len(habitat), 3, x.size), np.float32)

    def blend(picture, colour, alpha):
        colour = np.asarray(colour, np.float32)
        colour = colour[None, :, None] if colour.ndim == 1 else colour
        picture += (colour - picture) * np.clip(alpha, 0, 1)[:, None]

    def ramp(low, high, t):  # a colour gradient; t [n, P] from 0 to 1
        low, high = (np.asarray(c, np.float32)[None, :, None] for c in (low, high))
        return low + (high - low) * np.clip(t, 0, 1)[:, None]

    for h, name in enumerate(ATTRIBUTES["habitat"]):
        rows = np.flatnonzero(habitat == h)
        if not len(rows):
            continue
        q = r[rows].T[:, :, None].astype(np.float32)  # [24, n, 1]
        turn = 6.2832 * q
        horizon = 0.15 + 0.4 * q[0] + 0 * x
        edge = 14.0  # softness of the borders in the landscape: about two pixels
        if name == "water":
            picture = ramp((0.86, 0.91, 0.93), (0.66, 0.80, 0.90), (y - horizon) / 0.9)
            blend(picture, (0.45, 0.55, 0.45), (horizon + 0.05 + 0.03 * np.sin(5 * x + turn[1]) - y) * edge * 2)
            sea = ramp((0.10, 0.38, 0.50), (0.36, 0.66, 0.72), (y + 1.0) / (horizon + 1.0))
            depth = 1.0 / (np.maximum(horizon - y, 0) + 0.35)
            waves = np.sin(26 * depth + 1.2 * np.sin(4 * x + turn[2]) + turn[3]) * np.sin(5 * x + 9 * depth + turn[4])
            sea += (0.13 * np.clip(waves, 0, 1))[:, None]
            picture += (sea - picture) * np.clip((horizon - y) * edge, 0, 1)[:, None]
        elif name == "grass":
            picture = ramp((0.93, 0.95, 0.86), (0.72, 0.86, 0.94), (y - horizon) / 0.8)
            hill = horizon + 0.10 * np.sin(2.2 * x + turn[1])
            field = ramp((0.24, 0.50, 0.12), (0.58, 0.74, 0.30), (y + 1.0) / (hill + 1.0))
            lean = 0.25 * np.sin(3 * x + turn[2])
            blades = np.sin(34 * (x + lean * y) + 2.5 * np.sin(7 * y + turn[3]) + turn[4])
            blades = blades * np.sin(9 * y - 5 * x + turn[5])
            field *= 1 + (0.16 * blades)[:, None]
            picture += (field - picture) * np.clip((hill - y) * edge, 0, 1)[:, None]
        elif name == "forest":
            picture = ramp((0.16, 0.27, 0.15), (0.38, 0.55, 0.32), (y + 1.0) / 2 + 0 * horizon)
            for k in range(5):  # trunks, the later ones nearer and darker
                middle = -0.9 + 0.45 * k + 0.3 * (q[1 + k] - 0.5)
                width = 0.05 + 0.07 * q[6 + k]
                trunk = (width + 0.02 * np.sin(4 * y + turn[1 + k]) - np.abs(x - middle)) * edge
                shade = 0.55 + 0.5 * q[11 + k]
                blend(picture, np.array([0.42, 0.31, 0.21])[None, :, None] * shade[:, None], trunk)
            leaves = np.sin(11 * x + turn[16] + 2 * np.sin(6 * y))
            leaves = leaves * np.sin(10 * y + turn[17] + 2 * np.sin(5 * x + turn[18]))
            blend(picture, (0.28, 0.52, 0.22), (leaves - 0.25 + 0.9 * (y - 0.45)) * 2)
            blend(picture, (0.27, 0.33, 0.17), (-0.52 + 0.04 * np.sin(6 * x + turn[19]) - y) * edge)
        elif name == "sand":
            picture = ramp((0.98, 0.92, 0.80), (0.62, 0.80, 0.93), (y - horizon) / 0.9)
            far = horizon + 0.12 * np.sin(3.0 * x + turn[1])
            near = horizon - 0.35 + 0.14 * np.sin(2.0 * x + turn[2])
            blend(picture, (0.80, 0.62, 0.38), (far - y) * edge)
            dune = ramp((0.78, 0.60, 0.34), (0.95, 0.81, 0.55), (y + 1.0) / (near + 1.0))
            dune += (0.045 * np.sin(30 * (y + 0.10 * np.sin(4 * x + turn[3]))))[:, None]
            picture += (dune - picture) * np.clip((near - y) * edge, 0, 1)[:, None]
        elif name == "snow":
            picture = ramp((0.84, 0.87, 0.92), (0.62, 0.70, 0.80), (y - horizon) / 0.9)
            for k in range(4):  # firs on the horizon
                middle, tall = -0.85 + 0.55 * k + 0.4 * (q[1 + k] - 0.5), 0.25 + 0.25 * q[5 + k]
                fir = (tall - (y - horizon + 0.05)) * 0.35 - np.abs(x - middle) + 0.02 * np.sin(40 * y)
                blend(picture, (0.30, 0.40, 0.42), fir * edge)
            bank = horizon - 0.02 + 0.06 * np.sin(2.5 * x + turn[9])
            ground = ramp((0.97, 0.98, 1.00), (0.82, 0.88, 0.96), (y + 1.0) / (bank + 1.0))
            drift = np.clip(np.sin(3 * x + 9 * y + turn[10]), 0, 1)
            ground -= drift[:, None] * np.array([[0.072], [0.048], [0.018]], np.float32)  # bluish
            picture += (ground - picture) * np.clip((bank - y) * edge, 0, 1)[:, None]
            flakes = np.cos(13 * x + 3 * np.sin(4 * y + turn[11]) + turn[12])
            flakes = flakes * np.cos(12 * y + 3 * np.sin(5 * x) + turn[13])
            blend(picture, (1.0, 1.0, 1.0), (np.abs(flakes) - 0.93) * 14)
        else:  # sky
            picture = ramp((0.66, 0.84, 0.97), (0.22, 0.50, 0.90), (y + 1.0) / 2 + 0 * horizon)
            for k in range(3):
                cx, cy, w = 1.8 * q[1 + k] - 0.9, 0.95 - 1.3 * q[4 + k], 0.25 + 0.2 * q[7 + k]
                for dx, dy, f in ((0, 0, 1.0), (0.7, -0.1, 0.7), (-0.7, -0.12, 0.65)):
                    puff = 1 - np.hypot((x - cx - dx * w) / (w * f), (y - cy - dy * w) / (0.45 * w * f))
                    blend(picture, (0.97, 0.98, 1.0), puff * 2.5)
        out[rows] = picture
    return out


def _draw(attributes: np.ndarray, keys: np.ndarray, size: int, shifted: bool) -> np.ndarray:
    """One chunk of pictures: ``[n, size, size, 3]`` uint8."""
    n, f32 = len(attributes), np.float32
    value = {group: attributes[:, g] for g, group in enumerate(GROUPS)}
    name = {group: [_VALUES[g][i] for i in attributes[:, g]] for g, group in enumerate(GROUPS)}
    r = _uniform(keys, 96, stream=2).astype(f32)  # the nuisance of each picture
    jitter = iter((r[:, 24:, None] - f32(0.5)).swapaxes(0, 1))  # [n, 1] each, in -0.5..0.5

    axis = (np.arange(size, dtype=f32) + f32(0.5)) * f32(2 / size) - 1
    x, y = np.tile(axis, size), np.repeat(-axis, size)  # [P]
    picture = _backgrounds(x, y, value["habitat"], r[:, :24])

    # pose: where the bird stands, how big it is, how it leans, which way it looks
    large = (value["size"] == 1)[:, None]
    scale = np.where(large, f32(0.62), f32(0.45)) * (1 + f32(0.10) * next(jitter))
    if shifted:
        scale = scale * f32(0.90)
    leg = np.where((value["leg length"] == 1)[:, None], f32(0.62), f32(0.24))
    lean = f32(0.24) * next(jitter)
    facing = np.where(next(jitter) < 0, f32(-1), f32(1))
    feet_y = f32(-0.72) + f32(0.16) * next(jitter) + np.where(large, f32(0), f32(0.08))
    cx = facing * f32(0.04) + f32(0.22) * next(jitter)
    cy = feet_y + scale * (f32(0.38) + leg)
    u0, v0 = facing * (x - cx) / scale, (y - cy) / scale  # upright: the legs and the ground
    u, v = np.cos(lean) * u0 + np.sin(lean) * v0, np.cos(lean) * v0 - np.sin(lean) * u0
    pixel = f32(2 / size) / scale  # [n, 1], in bird units

    light = 1 + f32(0.10) * next(jitter)

    def colour(names: Sequence[str], spread: float = 0.12) -> np.ndarray:  # [n, 3, 1]
        base = np.array([_PAINT[c] for c in names], f32)
        tint = np.concatenate([next(jitter) for _ in range(3)], axis=1)
        return np.clip(base * (1 + f32(spread) * next(jitter)) + f32(0.4 * spread) * tint, 0.02, 1)[:, :, None]

    def cover(distance: np.ndarray) -> np.ndarray:  # how much of the pixel lies inside
        return np.clip(f32(0.5) - distance / pixel, 0, 1)

    def paint(paint_colour: np.ndarray, alpha: np.ndarray) -> None:
        nonlocal picture
        picture += (paint_colour - picture) * alpha[:, None]

    def shape(paint_colour: np.ndarray, distance: np.ndarray, contour: float = 0.55) -> None:
        paint(paint_colour * f32(0.42), f32(contour) * cover(distance - f32(0.9) * pixel))
        paint(paint_colour, cover(distance))

    # what the bird stands on: a branch in the sky and in the forest, a ripple on the water, else its shadow
    ground = -f32(0.38) - leg
    habitat = np.array(name["habitat"])[:, None]
    perched = (habitat == "sky") | (habitat == "forest")
    branch = np.abs(v0 - ground + f32(0.06) + f32(0.05) * np.sin(f32(1.3) * u0 + 9 * r[:, :1])) - f32(0.075)
    paint(np.array([0.33, 0.22, 0.13], f32)[None, :, None], cover(branch) * perched)
    spot = np.hypot((u0 + f32(0.05)) / f32(0.75), (v0 - ground) / f32(0.13))
    shadow = f32(0.40) * np.clip(f32(1.5) * (1 - spot), 0, 1) * ~(perched | (habitat == "water"))
    paint(np.full((1, 3, 1), 0.12, f32), shadow)
    ripple = np.clip(1 - np.abs(spot - f32(0.75)) * 5, 0, 1) * (habitat == "water")
    paint(np.array([0.85, 0.94, 0.96], f32)[None, :, None], f32(0.65) * ripple)

    # legs and tail, behind the body
    leg_colour = colour(name["leg colour"])
    swing = f32(0.05) * next(jitter)
    for hip, shade in ((-0.16, 0.75), (0.10, 1.0)):
        foot = hip + swing * (1 if shade == 1.0 else -1)
        stroke = _capsule(u0, v0, f32(hip), f32(-0.25), foot, ground, f32(0.058), f32(0.048))
        heel, toe = foot - f32(0.07), foot + f32(0.17)
        toes = _capsule(u0, v0, heel, ground + f32(0.01), toe, ground - f32(0.01), f32(0.045), f32(0.035))
        shape(leg_colour * f32(shade), np.minimum(stroke, toes), contour=0.35)
    shape(colour(name["tail colour"]), _polygon(u, v, _TAIL_CORNERS[value["tail shape"]]) - f32(0.03))

    # body and head are one silhouette; back, breast, belly, cheeks and crown are regions of it
    head = np.hypot(u - f32(0.50), v - f32(0.52)) - f32(0.34)
    body = _ellipse(u, v, -0.06, 0.0, 0.66, 0.43, degrees=20)
    silhouette = _smooth_union(body, head, 0.30)
    crown_colour, crest = colour(name["crown colour"]), _polygon(u, v, _CREST_CORNERS[value["crest"]])
    shape(crown_colour, crest - f32(0.02))
    wing_colour = colour(name["wing colour"])
    shade = np.clip(f32(0.93) + f32(0.22) * v, 0.72, 1.06)[:, None]
    shape(wing_colour * f32(0.82), silhouette)
    inside = cover(silhouette)
    under = cover(v - f32(0.10) - f32(0.55) * (u - f32(0.1)))
    breast_side = (u - f32(0.10)) * f32(0.85) + (v + f32(0.12)) * f32(0.52)
    paint(colour(name["belly colour"]) * shade, inside * under)
    paint(colour(name["breast colour"]) * shade, inside * cover(-breast_side) * cover(f32(-0.02) - u + f32(0.1) * v))
    in_head = cover(np.maximum(head, silhouette))
    paint(colour(name["cheek colour"]), in_head)
    cap = f32(0.60) - v - f32(0.10) * (u - f32(0.5))
    paint(crown_colour, cover(np.maximum(np.maximum(head - f32(0.02), silhouette), cap)))

    # beak with a line between the halves
    beak_colour, beak = colour(name["beak colour"]), _polygon(u, v, _BEAK_CORNERS[value["beak shape"]]) - f32(0.015)
    shape(beak_colour, beak)
    line = np.abs(v - f32(0.47) + f32(0.15) * (u - f32(0.74))) - f32(0.012)
    paint(beak_colour * f32(0.6), f32(0.5) * cover(np.maximum(beak, line)))

    # eye, with or without a ring, and a glint
    eye = np.hypot(u - f32(0.60), v - f32(0.53))
    ring_colour = colour(["red" if e == "red" else "white" for e in name["eye"]], spread=0.05)
    paint(ring_colour, cover(eye - f32(0.150)) * (value["eye"] > 0)[:, None])
    paint(np.full((1, 3, 1), 0.04, f32), cover(eye - f32(0.088)))
    paint(np.ones((1, 3, 1), f32), f32(0.9) * cover(np.hypot(u - f32(0.63), v - f32(0.565)) - f32(0.034)))

    # wing: a drop from the shoulder to the tip, patterned in its own coordinates (a along, b across)
    wing = _capsule(u, v, f32(0.12), f32(0.08), f32(-0.86), f32(-0.10), f32(0.27), f32(0.05))
    a, b = f32(0.983) * u + f32(0.180) * v, f32(0.983) * v - f32(0.180) * u
    shape(wing_colour * np.clip(1 + f32(0.25) * b, 0.8, 1.15)[:, None], wing, contour=0.75)
    phase = f32(0.10) * next(jitter)
    bars = f32(0.055) - np.abs((a + phase) % f32(0.26) - f32(0.13))
    row = np.floor((b + phase) / f32(0.20))
    along, across = (a + f32(0.12) * (row % 2)) % f32(0.24), (b + phase) % f32(0.20)
    dots = f32(0.070) - np.hypot(along - f32(0.12), across - f32(0.10))
    streaks = f32(0.034) - np.abs((b + f32(0.03) * np.sin(9 * a) + phase) % f32(0.15) - f32(0.075))
    pattern = np.choose(value["wing pattern"][:, None], [np.full_like(bars, -1), bars, dots, streaks])
    paint(colour(["white"] * n), f32(0.92) * cover(np.maximum(wing + f32(0.05), -pattern)))

    # light and camera
    warmth = f32(0.06) * next(jitter)
    cast = np.concatenate([light + warmth, light, light - warmth], axis=1)[:, :, None]
    picture = picture.reshape(n, 3, size, size)
    if shifted:
        tint = np.concatenate([next(jitter) for _ in range(3)], axis=1)
        cast = cast * (np.array([1.12, 0.98, 0.80], f32) + f32(0.06) * tint)[:, :, None]
        for _ in range(max(1, round(size / 64))):  # binomial blur, standard deviation 0.7 pixels at size 64
            edged = np.pad(picture, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
            rows = f32(0.5) * edged[:, :, 1:-1] + f32(0.25) * (edged[:, :, :-2] + edged[:, :, 2:])
            picture = f32(0.5) * rows[..., 1:-1] + f32(0.25) * (rows[..., :-2] + rows[..., 2:])
        picture = f32(0.07) + f32(0.86) * picture
    picture = picture.reshape(n, 3, -1) * cast
    grain = _hash(keys[:, None], 3, np.arange(x.size)[None, :])
    for channel in range(3):
        bits = (grain >> np.uint64(20 * channel)) & np.uint64(0xFFFF)
        picture[:, channel] += (bits.astype(f32) * f32(2**-16) - f32(0.5)) * f32(0.07)
    picture = np.clip(picture * 255 + f32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture.reshape(n, 3, size, size).transpose(0, 2, 3, 1))


def render(attributes: np.ndarray, keys: np.ndarray | int = 0, size: int = 64, shifted: bool = False) -> np.ndarray:
    """Draw birds.

    ``attributes [N, G]`` are value numbers (groups as in ``GROUPS``); ``keys [N]`` seed what the attributes leave open
    (pose, light, shades, landscape, grain), and one integer stands for a key per picture; ``size`` is in pixels;
    ``shifted`` takes the pictures with the camera of ``birds_shift``. Returns ``[N, size, size, 3]`` uint8 RGB.
    """
    attributes = np.asarray(attributes)
    if np.ndim(keys) == 0:
        keys = _hash(keys, len(SPLITS) + 1, np.arange(len(attributes)))
    keys = np.asarray(keys).astype(np.uint64)
    starts = range(0, len(attributes), _CHUNK)
    chunks = [_draw(attributes[i : i + _CHUNK], keys[i : i + _CHUNK], size, shifted) for i in starts]
    return np.concatenate(chunks) if chunks else np.empty((0, size, size, 3), np.uint8)


def part_pixels(attributes: np.ndarray, group: str, keys: np.ndarray | int = 0, size: int = 64) -> np.ndarray:
    """Where birds show a group: pixels that change clearly if it has its next value; ``[N, size, size]`` bool."""
    attributes, g = np.asarray(attributes), GROUPS.index(group)
    other = attributes.copy()
    other[:, g] = (other[:, g] + 1) % _COUNTS[g]
    drawn, changed = (render(each, keys, size).astype(int) for each in (attributes, other))
    return np.abs(drawn - changed).max(axis=3) > 40


# --------------------------------------------------------------------------------------------------------------------
# the data set on disk


def write_birds(
    root: Path | str,
    variant: str = "birds",
    seed: int = 0,
    n_train: int = 100,
    n_val: int = 20,
    n_test: int = 40,
    size: int = 64,
    workers: int | None = None,
) -> None:
    """Draw a data set of ``20 * (n_train + n_val + n_test)`` pictures of ``size`` pixels into ``root``.

    Writes ``images/SPLIT/SPECIES/NUMBER.png``, ``images.csv`` (``path`` relative to the csv, ``label``, ``split``, then
    one 0/1 column per concept) and ``groups.json`` (group -> its concepts). ``root`` appears complete or not at all;
    the bytes do not depend on ``workers``, the number of threads (default: one per core).
    """
    root = Path(root)
    _check_variant(variant)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists already: remove it, or name another folder for the paper birds")
    with suppress(OSError):
        root.rmdir()  # an empty one
    try:
        with new_folder(root) as whole:
            _write_into(whole, variant, seed, dict(zip(SPLITS, (n_train, n_val, n_test))), size, workers)
    except UserError:
        if not (root / "images.csv").exists():  # else another process was faster, with the same bytes
            raise


def _write_into(folder: Path, variant: str, seed: int, counts: dict[str, int], size: int, workers: int | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cbm.files.terminal import errors

    rows, chunks = [], []  # a chunk of work: paths, attributes, keys, shifted
    for split, n_per_class in counts.items():
        attributes, labels, keys = sample(variant, split, n_per_class, seed)
        paths = []
        for i, (label, truth) in enumerate(zip(labels, concepts_of(attributes))):
            species = SPECIES_NAMES[label]
            paths.append(f"images/{split}/{species.lower()}/{i % n_per_class:04d}.png")
            rows.append([paths[-1], species, split, *truth.tolist()])
        for species in SPECIES_NAMES:
            (folder / "images" / split / species.lower()).mkdir(parents=True)
        shifted = variant == "birds_shift" and split == "test"
        for i in range(0, len(paths), _CHUNK):
            part = slice(i, i + _CHUNK)
            chunks.append((paths[part], attributes[part], keys[part], shifted))

    def draw(chunk: tuple[list[str], np.ndarray, np.ndarray, bool]) -> int:
        from PIL import Image

        paths, attributes, keys, shifted = chunk
        for path, pixels in zip(paths, render(attributes, keys, size, shifted)):
            Image.fromarray(pixels).save(folder / path, compress_level=4)
        return len(paths)

    columns = (TextColumn("drawing paper birds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = errors()
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(rows))
        for drawn in pool.map(draw, chunks):
            progress.advance(task, drawn)

    groups = {group: list(values.values()) for group, values in ATTRIBUTES.items()}
    (folder / "groups.json").write_text(json.dumps(groups, indent=2) + "\n", encoding="utf-8")
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split", *CONCEPTS])
        writer.writerows(rows)
