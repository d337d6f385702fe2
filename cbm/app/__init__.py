"""The explorer: a trained run in the browser, to be looked at, corrected and tried (``python -m cbm app runs/NAME``).

``Explorer`` is the run, opened once and changed by nobody; a ``Session`` is one browser tab with its edits. Both answer
with data. ``page`` is all that knows of Gradio.
"""

from cbm.app.explorer import Explorer
from cbm.app.session import Session

__all__ = ["Explorer", "Session"]
