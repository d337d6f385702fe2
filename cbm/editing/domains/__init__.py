"""Correct a model for another domain: the editors, their input, and their result."""

from cbm.editing.domains import combined, editors  # noqa: F401  they register themselves
from cbm.editing.domains.base import EDITORS, DomainEditor, EditContext, Proposal, create_editor, register_editor

__all__ = ["EDITORS", "DomainEditor", "EditContext", "Proposal", "create_editor", "register_editor"]
