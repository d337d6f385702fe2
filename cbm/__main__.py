"""``python -m cbm``: the same as ``cbm``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks in the working folder first, where a stranger's torch.py may lie; not so for ``cbm`` and train.py
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())] != [str(Path(__file__).parent.parent)]:
        del sys.path[0]

from cbm.commands.main import main

if __name__ == "__main__":
    main()
