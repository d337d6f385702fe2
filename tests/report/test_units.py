"""Concepts that were found, in the report: what is doubtful first, then units with the pictures on which they fire."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from birds_run import shared_folder
from explored_run import copied
from PIL import Image

import cbm
from cbm.concepts import Concept, ConceptBank, Dropped
from cbm.concepts.units import Crop, Unit, units_of
from cbm.data.dataset import ImageDataset, Split
from cbm.data.features import FeatureData, FeatureSplit
from cbm.data.images import ImageArray
from cbm.layers import ConceptBottleneck, LinearHead, SparseCode, UnitCode
from cbm.metrics.codes import said_share
from cbm.report.explanations import sums_of_words
from cbm.report.facts import unit_of_weights, what_is_read
from cbm.report.units import cropped, describe_units, doubts, firing, null_mark, part_name, strongest_middle_weakest
from cbm.report.vocabulary import grounded_concepts
from cbm.run.rewrite_report import rewrite_report

COUNT, DIM = 24, 4


def unit_bank(**first) -> ConceptBank:
    concepts = [
        Concept(text, provenance={"unit": {"number": k, "word": None if text.startswith("un") else text,
                                           "words": [{"text": "red", "cosine": 0.5 - k / 10}], "firing": 0.25,
                                           **(first if k == 0 else {})}})
        for k, text in enumerate(["red", "unnamed 0001", "blue", "unnamed 0003"])
    ]  # fmt: skip
    dead = (Dropped("unit 0004", (), "fires on no training image"),)
    return ConceptBank("discovered", "topk on the training images", tuple(concepts), "e", torch.eye(4), dead)


def planted(layer: bool = True, **first) -> tuple[ConceptBottleneck, ConceptBank, FeatureData, ImageDataset]:
    """Picture n fires unit n % 4, the earlier the more; unit 2 has no weight, unit 1 speaks against."""
    strength = torch.linspace(1, 0.5, COUNT)
    x = torch.zeros(COUNT, DIM)
    x[torch.arange(COUNT), torch.arange(COUNT) % DIM] = strength
    y = torch.arange(COUNT) % 2
    names = [f"{n}.png" for n in range(COUNT)]
    pixels = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    splits = {name: FeatureSplit(x, y, names) for name in ("train", "val", "test")}
    images = {name: Split(ImageArray(pixels, names), y.numpy()) for name in splits}
    zeros = torch.zeros(DIM)
    code = UnitCode(zeros, zeros, torch.ones(DIM), torch.eye(DIM), 1) if layer else None
    head = LinearHead(torch.tensor([[2.0, -1, 0, 0.5], [-2.0, 0, 0, 0]]), torch.zeros(2))
    model = ConceptBottleneck(torch.eye(DIM), head, activation=code).requires_grad_(False)
    return model, unit_bank(**first), FeatureData(splits, ["ant", "bee"]), ImageDataset("x", ["ant", "bee"], images)


@pytest.mark.parametrize("layer", [True, False])
def test_units_are_shown_by_weight_then_unnamed_then_unused(layer: bool):
    page = describe_units(*planted(layer), {}, 1)
    assert [(title, [card.text for card in cards]) for title, cards in page.cards] == [
        ("The units with most weight", ["red", "unnamed 0001", "unnamed 0003"]),
        ("Units that no class uses", ["blue"]),
    ]
    assert (page.count, page.named, page.idle, page.dead) == (4, 2, 1, 1)
    assert page.nearest == (None if layer else 1)
    red, one, _ = page.cards[0][1]
    assert (red.votes, red.against, red.used_by) == ([("ant", 2.0)], [("bee", -2.0)], 2)
    assert (one.votes, one.against) == ([], [("ant", -1.0)])
    assert [p.name for p in red.strongest] == ["0.png", "4.png", "8.png", "12.png"]
    assert (red.split, red.fires, red.count) == ("test", 6, COUNT)
    assert [p.name for p in red.middle + red.weakest] == ["16.png", "20.png"]
    assert len(red.near) == 3
    assert red.has_pictures
    assert red.mark is None


def test_concepts_that_were_written_down_have_no_such_section():
    model, bank, data, dataset = planted()
    written = replace(bank, concepts=tuple(Concept(text) for text in bank.texts))
    assert describe_units(model, written, data, dataset, {}) is None
    assert (part_name(bank), part_name(written), part_name(None)) == ("unit", "word", "word")


def test_a_unit_that_hardly_fires_in_the_test_is_shown_by_training_pictures():
    model, bank, data, dataset = planted()
    few = {**data.splits, "test": data.test.take(np.arange(4))}
    page = describe_units(model, bank, replace(data, splits=few), dataset, {})
    assert {card.split for _, cards in page.cards for card in cards} == {"train"}


def test_a_unit_that_is_a_part_of_a_picture_shows_it():
    crop = {"image": "5.png", "box": [0.0, 0.5, 0.5, 1.0]}
    model, bank, data, dataset = planted(crop=crop)
    card = describe_units(model, bank, data, dataset, {}).cards[0][1][0]
    assert card.prototype.name == "5.png"
    assert card.prototype.uri.startswith("data:image/png")
    gone = planted(crop={**crop, "image": "gone.png"})
    assert describe_units(*gone, {}).cards[0][1][0].prototype is None


def test_the_part_is_the_part():
    picture = np.zeros((1, 10, 20, 3), np.uint8)
    picture[0, 5:, :10] = 255
    shown = cropped(ImageArray(picture, ["a.png"]), 0, Crop("a.png", (0.0, 0.5, 0.5, 1.0)))
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2]))).convert("RGB"))
    assert seen.shape == (5, 10, 3)
    assert seen.min() == 255


def test_pictures_of_three_kinds_are_never_the_same():
    for count in range(20):
        kinds = strongest_middle_weakest(list(range(count)), 4)
        rows = [row for rows in kinds for row in rows]
        assert len(rows) == len(set(rows)) == min(count, 12)
        assert kinds[0] == list(range(min(4, count)))
        assert count < 9 or kinds[2] == list(range(count - 4, count))


def test_marks_and_doubts():
    metrics = {"method/name_cosine_null": 0.3, "method/name_cosine_null_q95": 0.45, "method/name_named": 0.5,
               "method/name_named_null": 0.48, "method/name_named_dealt": 0.01, "method/dead": 0.6,
               "method/stability_matched": 0.3, "method/stability_matched_null": 0.05}  # fmt: skip
    own, mean, high = null_mark(Unit(0, words=(("red", 0.6),)), metrics)
    assert 0 < mean < high < own <= 1
    assert null_mark(Unit(0, words=(("red", -0.2),)), metrics)[0] == 0.0
    assert null_mark(Unit(0), metrics) is None
    assert null_mark(Unit(0, words=(("red", 0.6),)), {}) is None
    found = {what: (here, bad) for what, here, _, bad in doubts(metrics)}
    assert found["Units with a name, of those that fire on enough pictures to be tested"] == (
        "50 %",
        True,
    )  # random directions get as many
    assert found["Units that never fire"] == ("60 %", True)
    assert [bad for here, bad in found.values() if here == "30 %"] == [False]
    assert doubts({}) == []
    alone = doubts({"method/name_named": 0.5})
    named = "Units with a name, of those that fire on enough pictures to be tested"
    assert alone == [(named, "50 %", "", None)]
    rare = doubts({"method/name_named": 0.3, "method/name_too_rare": 0.68})
    assert rare[0][2] == "68 % of the units fire on too few pictures for a test"  # no fault of the words


def test_a_picture_is_a_sum_of_units():
    """Atoms and encoder rows differ: what is left is what the atoms leave."""
    model, bank, data, _ = planted()
    atoms = torch.nn.functional.normalize(torch.eye(DIM) + 0.3, dim=1)
    code = UnitCode(torch.zeros(DIM), torch.full((DIM,), 0.1), torch.ones(DIM), atoms, 2)
    model = model.with_activation(code)
    x = torch.nn.functional.normalize(data.test.x + 0.1, dim=1)
    found = sums_of_words(model, bank.texts, x, part="unit")
    for row, each in enumerate(found):
        weights = dict(each.words)
        made = sum(weight * atoms[bank.texts.index(text)] for text, weight in weights.items())
        assert each.rest == pytest.approx(float((x[row] - 0.1 - made).norm()), abs=1e-5)
        assert (each.part, len(weights), each.others_count) == ("unit", 2, 0)
    cosine = torch.cosine_similarity(x - 0.1, model.activations(x) @ atoms)
    torch.testing.assert_close(said_share(model, x), cosine.clamp(min=0).square())
    assert what_is_read(code) == "the 2 units that fire most"
    assert what_is_read(UnitCode(code.offset, code.mean, code.typical, atoms, 0)) == "the units that fire"
    assert unit_of_weights(model) == "firing by 1"
    words = SparseCode(code.offset, code.mean, code.typical, 0.0, 3, False, False, 0)
    assert what_is_read(words, "unit") == "exactly 3 units whose sum comes nearest to the picture"


def test_which_units_fire():
    model, _, data, _ = planted(layer=False)
    columns, values = firing(model, data.test.x, 1)
    assert columns[:, 0].tolist() == [n % 4 for n in range(COUNT)]
    assert torch.equal(values[:, 0], data.test.x.max(dim=1).values)


def test_the_page_of_a_run():
    run = copied()
    page = rewrite_report(run, shared_folder() / "cache").read_text()
    bank = cbm.load(run).bank
    named = sum(unit.named for unit in units_of(bank))
    section = page[page.index('<h2 id="units">') : page.index("</section>", page.index('<h2 id="units">'))]
    assert f"{len(bank)} units are left; {named} of them have a name" in section
    assert section.index("What to doubt first") < section.index("The units with most weight")
    assert "random directions get a name in the same way" in section
    assert "Fires most on" in section
    assert "data:image/png" in section
    assert "The picture as a sum of units" in page
    assert "not said by any unit" in page
    assert '<a href="#units">' in page


def test_features_without_pictures(command, tmp_path: Path):
    """Nothing reads text and there is nothing to look at: units are found, and the page says what it cannot show."""
    g = np.random.default_rng(0)
    y = np.tile(np.arange(4), 60)
    x = g.normal(size=(4, 16))[y] + 0.3 * g.normal(size=(240, 16))
    split = np.array(["train"] * 160 + ["val"] * 40 + ["test"] * 40)
    names = np.array([f"img{i}.jpg" for i in range(240)])
    np.savez("f.npz", X=x.astype(np.float32), y=y, classes=["ant", "bee", "cat", "dog"], split=split, names=names)
    settings = ["dataset=features", "dataset.root=f.npz", "method=discovered", "method.passes=30", "method.size=12"]
    settings += ["method.k=3", "method.start=data", "cache=cache", "controls=false", "trainer.progress=false"]
    status, errors = command("train", *settings, "run_dir=one", "nec=[]")
    assert status == 0, errors
    page = Path("one/report.html").read_text()
    assert "No name: there is no vocabulary." in page
    assert "No picture to show: only its features are known. It fires on" in page
    assert "of them have a name" in page
    assert "; 0 of them" in page


def test_two_units_of_one_labelled_word():
    bank = ConceptBank("d", "d", tuple(Concept(text, provenance={"unit": {"number": k, "word": "red belly"}})
                                       for k, text in enumerate(["red belly", "red belly (2)"])))  # fmt: skip
    found = grounded_concepts(bank, {0: 0.7, 1: 0.9}, torch.tensor([[1.0], [0.0]]), ["red belly"])
    assert [(each.text, each.prevalence) for each in found] == [("red belly (2)", 0.5), ("red belly", 0.5)]
