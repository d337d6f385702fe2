"""Train a concept bottleneck model: ``python train.py method=labo dataset=birds``, the same as ``cbm train ...``."""

from cbm.commands.main import main

if __name__ == "__main__":
    main("train")
