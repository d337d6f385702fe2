"""Train a run from a configuration, and evaluate, correct and report it later."""

from cbm.run.evaluate import evaluate
from cbm.run.rewrite_report import rewrite_report
from cbm.run.train import train

__all__ = ["evaluate", "rewrite_report", "train"]
