"""The former address of ``cbm.Editor``, which stands: ``from cbm.editor import Editor``."""

from cbm.trained.editor import Editor

__all__ = ["Editor"]
