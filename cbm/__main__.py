"""``python -m cbm``: everything that is not training or evaluating."""

from cbm.commands.main import main

if __name__ == "__main__":
    main()
