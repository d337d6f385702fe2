"""Training by gradient descent under Lightning: the LightningModule, its batches, and ``fit``."""

from cbm.training.batches import epochs_of
from cbm.training.fit import fit
from cbm.training.module import ConceptBottleneckModule, write_history

__all__ = ["ConceptBottleneckModule", "epochs_of", "fit", "write_history"]
