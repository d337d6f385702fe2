"""Train a concept bottleneck model: ``python train.py method=labo dataset=birds`` (see ``--help``)."""

from cbm.commands.launch import launch


def main(cfg):
    """Train as configured; returns the test accuracy (what a Hydra sweeper optimises)."""
    from cbm.run import train

    return train(cfg)["test/accuracy"]


if __name__ == "__main__":
    launch(main, "train")
