"""``cbm.explore("runs/NAME")``: the explorer inside a notebook."""

from contextlib import ExitStack
from pathlib import Path

from cbm.app.explorer import Explorer
from cbm.app.render import render
from cbm.errors import UserError


class Explored:
    """A run that is open in the explorer; a notebook shows it inline.

    Args:
        explorer: the run.
        port: by default the first that is free from 7860 on.
        height: height in pixels of the frame.

    Attributes:
        address: where it is served, on this computer only.
    """

    def __init__(self, explorer: Explorer, port: int | None = None, height: int = 900):
        from cbm.app.page import serving

        self._open = ExitStack()
        _, self.address = self._open.enter_context(serving(explorer, port, framed=True))
        self.height = height

    def close(self) -> None:
        """Stop serving; edits that were not saved are forgotten."""
        self._open.close()

    def __repr__(self) -> str:
        return f"<explorer at {self.address}; close() ends it>"

    def _repr_html_(self) -> str:
        return render("notebook", address=self.address, height=self.height)


def explore(
    run: str | Path,
    *,
    split: str = "test",
    dataset: str | None = None,
    root: str | Path | None = None,
    cache: str | Path = "cache",
    port: int | None = None,
    height: int = 900,
) -> Explored:
    """Open a run in the explorer, in the background of this process; a notebook shows it below the cell.

    The page is served on this computer only, and may be framed by pages of this computer, such as a notebook at
    ``localhost``. Where the notebook runs elsewhere, forward its port.

    Args:
        run: the run directory.
        split: the pictures: train, val or test.
        dataset: a card of other pictures with the same classes; by default those of the run.
        root: where they are, if the card does not say.
        cache: the feature store.
        port: by default the first that is free from 7860 on.
        height: height in pixels of the frame.

    Returns:
        What is shown; ``close()`` ends it.

    Raises:
        UserError: no such run, card or split, the port is taken, or Gradio is not installed.
    """
    from importlib.util import find_spec

    from cbm.files.shipped import install_command

    if find_spec("gradio") is None:
        raise UserError(f"the explorer needs Gradio: {install_command('app')}")
    return Explored(Explorer(run, Path(cache), dataset=dataset, root=root, name=split), port, height)
