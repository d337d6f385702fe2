"""Editing a trained bottleneck: what a person takes away or puts in, and what it does to the decisions."""

from cbm.editing.apply import edited_logits, edited_model, logit_change
from cbm.editing.comparison import Comparison, changed_most
from cbm.editing.counterfactual import Counterfactual, contrast, counterfactual
from cbm.editing.edits import Edit, EditSet, load_edits, signed
from cbm.editing.policies import POLICIES, CoopWeights, QuestionCurve, ask_in_turn
from cbm.editing.prune import prune

__all__ = [
    "POLICIES", "Comparison", "CoopWeights", "Counterfactual", "Edit", "EditSet", "QuestionCurve", "ask_in_turn",
    "changed_most", "contrast", "counterfactual", "edited_logits", "edited_model", "load_edits", "logit_change",
    "prune", "signed",
]  # fmt: skip
