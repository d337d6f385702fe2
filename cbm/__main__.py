"""``python -m cbm``: the same as ``cbm``, also in that Python files of the working folder are no part of it.

With ``-m`` Python looks for modules in the working folder first: a ``yaml.py`` in a received folder would be run. What
Python itself imports before this line (``runpy``, ``importlib``) it still takes from there: inside a received folder
say ``cbm``, which has no such folder, or ``python -P -m cbm``.
"""

import os
import sys

if __name__ == "__main__":
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - nothing else is imported yet
    here = os.path.realpath(os.getcwd())  # noqa: PTH109
    if here != home:  # unless this package itself lies there
        sys.path[:] = [place for place in sys.path if os.path.realpath(place or here) != here]

from cbm.commands.main import main

if __name__ == "__main__":
    main()
