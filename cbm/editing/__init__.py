"""Editing a trained bottleneck: what a person takes away or puts in, and what it does to the decisions."""

from cbm.editing.prune import prune

__all__ = ["prune"]
