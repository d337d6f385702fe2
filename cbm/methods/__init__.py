"""One file per paper; ``create_method`` makes a method from its settings."""

from cbm.methods import (  # noqa: F401  they register themselves
    cms,
    discovered,
    embedding,
    energy,
    grounded,
    label_free,
    labo,
    linear_probe,
    posthoc,
    sparse,
    splice,
    stochastic,
    supervised,
    v2c,
    zero_shot,
)
from cbm.methods.base import METHODS, Built, Method, create_method, register_method
from cbm.methods.fit import fit_method

__all__ = ["METHODS", "Built", "Method", "create_method", "fit_method", "register_method"]
