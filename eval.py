"""Evaluate a trained run: ``python eval.py run=runs/NAME [split=test]`` (see ``--help``)."""

from cbm.commands.launch import launch


def main(cfg):
    """Evaluate as configured; returns the accuracy."""
    from cbm.run import evaluate

    return evaluate(cfg)[f"{cfg.split}/accuracy"]


if __name__ == "__main__":
    launch(main, "eval")
