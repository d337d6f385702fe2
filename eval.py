"""Evaluate a trained run: ``python eval.py run=runs/NAME [split=test]``, the same as ``cbm eval ...``."""

from cbm.commands.main import main

if __name__ == "__main__":
    main("eval")
