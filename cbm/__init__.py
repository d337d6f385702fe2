"""cbm: concept bottleneck models on frozen CLIP features.

import cbm
model = cbm.load("runs/NAME")
out = model.predict(["bird.png"])
out.labels, out.explain(0)
"""

from typing import TYPE_CHECKING

from cbm.errors import UserError

if TYPE_CHECKING:
    __version__: str
    from cbm.app.notebook import explore
    from cbm.trained import Prediction, TrainedModel, load
    from cbm.trained.editor import Editor
    from cbm.trained.estimator import ConceptClassifier

__all__ = ["ConceptClassifier", "Editor", "Prediction", "TrainedModel", "UserError", "__version__", "explore", "load"]


def __getattr__(name: str):
    if name == "Editor":
        from cbm.trained.editor import Editor

        return Editor
    if name == "ConceptClassifier":
        from cbm.trained.estimator import ConceptClassifier

        return ConceptClassifier
    if name == "__version__":
        from cbm.files.shipped import VERSION

        return VERSION
    if name == "explore":
        from cbm.app.notebook import explore

        return explore
    if name in ("Prediction", "TrainedModel", "load"):
        import cbm.trained

        return getattr(cbm.trained, name)
    raise AttributeError(f"module 'cbm' has no attribute '{name}'")
