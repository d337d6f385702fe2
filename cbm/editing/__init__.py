"""Editing a trained bottleneck: edits of its concepts, and their effect on the decisions."""

from cbm.editing.apply import edited_logits, edited_model, logit_change, returned_share, without_words
from cbm.editing.asking.policies import POLICIES, CoopWeights
from cbm.editing.asking.probes import (
    ConceptProbe,
    edit_representation,
    fit_concept_probe,
    intervenability,
    tell_in_turn,
)
from cbm.editing.asking.propagation import conditional_mean, propagate, source_covariance, to_activations, to_logits
from cbm.editing.asking.questions import QuestionCurve, ask_in_turn
from cbm.editing.bank_swap import BankSwap, Kept, refit_head, swap_bank
from cbm.editing.comparison import Comparison, changed_most
from cbm.editing.counterfactual import Counterfactual, contrast, counterfactual, label_counterfactual
from cbm.editing.domains import EDITORS, DomainEditor, EditContext, Proposal, create_editor
from cbm.editing.domains.gate import Gate, fit_gate, load_gate
from cbm.editing.domains.source_card import SourceCard, load_source_card, source_card
from cbm.editing.edits import Edit, EditSet, load_edits, signed
from cbm.editing.energies import EditedEnergies, energy_guided_edits
from cbm.editing.lookalikes import LookAlike, look_alikes, still_said
from cbm.editing.margin import label_margin_edits, margin_edits
from cbm.editing.prune import alike, prune
from cbm.editing.rebalance import Rebalanced, Refit, rebalance

__all__ = [
    "EDITORS",
    "POLICIES",
    "BankSwap",
    "Comparison",
    "ConceptProbe",
    "CoopWeights",
    "Counterfactual",
    "DomainEditor",
    "Edit",
    "EditContext",
    "EditSet",
    "EditedEnergies",
    "Gate",
    "Kept",
    "LookAlike",
    "Proposal",
    "QuestionCurve",
    "Rebalanced",
    "Refit",
    "SourceCard",
    "alike",
    "ask_in_turn",
    "changed_most",
    "conditional_mean",
    "contrast",
    "counterfactual",
    "create_editor",
    "edit_representation",
    "edited_logits",
    "edited_model",
    "energy_guided_edits",
    "fit_concept_probe",
    "fit_gate",
    "intervenability",
    "label_counterfactual",
    "label_margin_edits",
    "load_edits",
    "load_gate",
    "load_source_card",
    "logit_change",
    "look_alikes",
    "margin_edits",
    "propagate",
    "prune",
    "rebalance",
    "refit_head",
    "returned_share",
    "signed",
    "source_card",
    "source_covariance",
    "still_said",
    "swap_bank",
    "tell_in_turn",
    "to_activations",
    "to_logits",
    "without_words",
]
