"""A configuration in, a run directory out; and what is asked of it later."""

from cbm.run.evaluate import evaluate
from cbm.run.rewrite_report import rewrite_report
from cbm.run.train import train

__all__ = ["evaluate", "rewrite_report", "train"]
