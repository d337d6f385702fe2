"""``python tests/trust/coverage_fuzz.py KIND FILE -max_total_time=60``: a reader of ``readable_files`` under atheris.

Atheris (``uv pip install atheris``; not among the dependencies, not run in CI) looks for inputs that reach other lines
of our readers. It stops at the first exception that is not a ``UserError`` and writes the input beside it.
"""

import shutil
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["cbm"]):
    from trust.readable_files import READABLE

    from cbm.errors import UserError

warnings.simplefilter("ignore")
kind, name = sys.argv[1:3]
root = Path(tempfile.mkdtemp())
READABLE[kind].write(root)
corpus = root / "corpus"
corpus.mkdir()
shutil.copy(root / name, corpus / "valid")


def attempt(content: bytes) -> None:
    """One input."""
    (root / name).write_bytes(content)
    with suppress(UserError):
        READABLE[kind].read(root)


atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], attempt)
atheris.Fuzz()
