"""The card of a model of several labels: what it says, from where on, and how well."""

from labelled_run import NAMES, LabelRun

from cbm.layers import ConceptBottleneck
from cbm.trained.model_card import model_card

CONFIG = {"dataset": {"name": "folder"}, "method": {"name": "labo"}, "seed": 0}
ABOUT = {"classes": NAMES, "encoder": None, "dim": 16, "changes": []}
MEASURED = {"test/auroc_macro": 0.9312, "controls/random_lead_low": -0.09, "controls/random_lead_high": -0.06}


def test_card_of_labels():
    run = LabelRun()
    card = model_card(run.model, run.bank, "here", CONFIG, ABOUT, MEASURED)
    assert "it says which of 3 labels an image has, any number of them, through 8 named concepts.\nMade with" in card
    assert "| AUROC, mean over labels | 0.931 |" in card
    assert "they rank labels worse than random directions under the same names do" in card
    assert 'out.explain(0, label="wet")' in card
    assert "| wet | 26.9% |" in card  # a logit of -1
    assert "above its threshold, which validation pictures chose.\n\n|" in card
    assert "## Classes" not in card
    assert "picture of anything else is called one of them" not in card


def test_thresholds_of_one_half():
    run = LabelRun()
    model = ConceptBottleneck(run.model.concepts, run.model.head, link="sigmoid")
    card = model_card(model, run.bank, "here", CONFIG, {**ABOUT, "changes": ["set a weight"]}, {})
    assert "above one half.\n" in card
    assert "| cold | 50.0% |" in card
