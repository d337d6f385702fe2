"""``python -m cbm``: the same as ``cbm``."""

from cbm.commands.main import main

if __name__ == "__main__":
    main()
