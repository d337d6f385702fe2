"""Correct a model for another domain: what an editor may look at, the editors, and what comes of them."""

from cbm.editing.domains import editors  # noqa: F401  they register themselves
from cbm.editing.domains.base import EDITORS, DomainEditor, EditContext, Proposal, create_editor, register_editor

__all__ = ["EDITORS", "DomainEditor", "EditContext", "Proposal", "create_editor", "register_editor"]
