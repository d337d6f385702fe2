"""One file per paper. ``create_method`` is the door; a file in this folder that registers a class is a method."""

from cbm.methods import cms, label_free, labo, linear_probe, posthoc, sparse, zero_shot  # noqa: F401  they register themselves
from cbm.methods.base import METHODS, Method, create_method, register_method

__all__ = ["METHODS", "Method", "create_method", "register_method"]
