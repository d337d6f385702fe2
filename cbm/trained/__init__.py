"""A model back from disk: use it, edit it, give it away."""

from cbm.trained.model import Prediction, TrainedModel, load

__all__ = ["Prediction", "TrainedModel", "load"]
