"""A trained model, loaded from disk: use it, edit it, publish it."""

from cbm.trained.model import Prediction, TrainedModel, load

__all__ = ["Prediction", "TrainedModel", "load"]
